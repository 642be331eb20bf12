"""LIP, 20 classes of human parsing, background included: the official recipes.

    python -m isnet_jax.main --config=configs/lip.py[:resnet50|resnet101|resnest101] --config.train.pretrained=X.pth

README.md has the published results; `python -m isnet_jax.evaluate` prints them beside its own.
"""

from isnet_jax import config


def get_config(backbone="resnet50"):
    c = config.default(backbone)
    c.model.num_classes = 20
    c.model.activation = "leaky_relu"
    c.model.shortcut = True
    c.data.name = "lip"
    c.augment.resize = (520, 520)
    c.augment.keep_ratio = False
    c.augment.scale_range = (0.75, 1.25)
    c.augment.crop_size = (473, 473)
    c.augment.flip_pairs = ((14, 15), (16, 17), (18, 19))  # left and right arm, leg, shoe
    c.augment.rotate_probability = 0.6
    c.train.global_batch_size = 32
    c.train.epochs = 150
    c.test.resize = (473, 473)
    c.test.keep_ratio = False
    c.test.tta.scales = (1.0,)  # horizontal flip only
    c.test.tta.average = "logits"
    if backbone == "resnest101":
        c.train.global_batch_size = 40
        c.train.base_lr = 0.007
        c.train.min_lr = 7e-5
    return c
