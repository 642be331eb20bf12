"""A template for your own data, in folders of images and labels; docs/datasets.md explains the fields.

python -m isnet_jax.main --config=configs/own_folder.py --config.data.source=DIR --config.train.pretrained=resnet50c
"""

from isnet_jax import config


def get_config(backbone="resnet50"):
    c = config.default(backbone)
    c.model.num_classes = 3
    c.data.name = "folder"
    c.data.folder.name = "potholes"
    c.data.folder.classes = ("road", "pothole", "puddle")  # label values 0, 1, 2; 255 is ignored
    c.data.folder.splits = {"train": ("images/train", "labels/train"), "val": ("images/val", "labels/val")}
    c.train.epochs = 50
    return c
