"""CamVid at 160x120 in crops of 128x96 with ResNet-18, in float32: small enough for two CPU cores.

The test is on the 233 test images at 192x144, with labels at their original 480x360.
"""

from isnet_jax import config


def get_config(backbone="resnet18"):
    c = config.default(backbone)
    c.model.num_classes = 11
    c.data.name = "camvid"
    c.data.train_split = "train+val"
    c.data.eval_split = "test"
    c.augment.resize = (160, 120)
    c.augment.crop_size = (96, 128)
    c.train.global_batch_size = 4
    c.train.epochs = 20
    c.train.base_lr = 0.004  # for small batches
    c.test.resize = (192, 144)  # scales average 1.25 in training
    return c
