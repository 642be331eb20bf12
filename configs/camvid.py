"""CamVid, 11 classes, 480x360: the official Cityscapes recipe at CamVid's size, with ResNet-50.

    python -m isnet_jax.main --config=configs/camvid.py --config.data.source=DIR

DIR contains train/, val/ and test/, each with images/ and labels/. No ISNet result on CamVid is published.
"""

from isnet_jax import config


def get_config(backbone="resnet50"):
    c = config.default(backbone)
    c.model.num_classes = 11
    c.data.name = "camvid"
    c.augment.resize = (480, 360)
    c.augment.crop_size = (360, 480)
    c.train.epochs = 440
    c.test.resize = ()
    return c
