"""Drawn scenes, 8 classes, 128x96: a ResNet-18 ISNet in a few minutes on two CPU cores; nothing to download.

    python -m isnet_jax.main --config=configs/quickstart.py
"""
from isnet_jax import config


def get_config(backbone="resnet18"):
    c = config.default(backbone)
    c.model.num_classes = 8
    c.data.name = "scenes"
    c.augment.resize = ()
    c.augment.scale_range = (0.75, 1.25)
    c.augment.crop_size = (64, 96)
    c.train.global_batch_size = 8
    c.train.epochs = 6
    c.train.base_lr = 0.02
    c.test.resize = ()
    c.run.eval_every_epochs = 3
    c.run.log_every_steps = 25
    return c
