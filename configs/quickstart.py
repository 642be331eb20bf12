"""Drawn scenes, 8 classes, 128x96: trains an ISNet with ResNet-18 in minutes on two CPU cores, without downloads.

python -m isnet_jax.main --config=configs/quickstart.py
"""

from isnet_jax import config


def get_config(backbone="resnet18"):
    c = config.default(backbone)
    c.model.num_classes = 8
    c.data.name = "scenes"
    c.augment.resize = ()
    c.augment.scale_range = (0.9, 1.1)
    c.augment.crop_size = (80, 120)
    c.augment.photometric = False  # scenes are drawn in random colours already
    c.train.global_batch_size = 8
    c.train.epochs = 4
    c.train.base_lr = 0.007
    c.test.resize = ()
    c.run.eval_every_epochs = 2
    c.run.log_every_steps = 20
    return c
