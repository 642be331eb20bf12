"""ADE20K, 150 classes: the official recipes.

    python -m isnet_jax.main --config=configs/ade20k.py[:resnet50|resnet101|resnest101] --config.train.pretrained=X.pth

README.md has the published results; `python -m isnet_jax.evaluate` prints them beside its own.
"""

from isnet_jax import config


def get_config(backbone="resnet50"):
    c = config.default(backbone)
    c.model.num_classes = 150
    c.data.name = "ade20k"
    c.train.epochs = 130
    if backbone == "resnest101":
        c.train.epochs = 180
        c.train.base_lr = 0.004
    return c
