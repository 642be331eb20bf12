"""Cityscapes, 19 classes: the official recipes.

    python -m isnet_jax.main --config=configs/cityscapes.py[:BACKBONE] --config.train.pretrained=X.pth

README.md has the published results; `python -m isnet_jax.evaluate` prints them beside its own.
"""

from isnet_jax import config


def get_config(backbone="resnet50"):
    c = config.default(backbone)
    c.model.num_classes = 19
    c.data.name = "cityscapes"
    c.augment.resize = (2048, 1024)
    c.augment.crop_size = (512, 1024)
    c.train.epochs = 440
    c.test.resize = ()  # whole 1024x2048 images
    c.test.tta.mode = "slide"
    c.test.tta.crop_size = (512, 1024)
    c.test.tta.stride = (341, 341)
    if backbone == "resnet101":
        c.test.tta.crop_size = (1024, 512)
        c.test.tta.average = "logits"
    return c
