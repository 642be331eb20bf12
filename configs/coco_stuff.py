"""COCO-Stuff 10k, 182 outputs, of which 171 occur: the official recipes.

    python -m isnet_jax.main --config=configs/coco_stuff.py[:BACKBONE] --config.train.pretrained=X.pth

README.md has the published results; `python -m isnet_jax.evaluate` prints them beside its own.

--config.data.name=coco_stuff164k --config.data.eval_split=val trains on the full release, for which these settings are
not official.
"""

from isnet_jax import config


def get_config(backbone="resnet50"):
    c = config.default(backbone)
    c.model.num_classes = 182
    c.data.name = "coco_stuff10k"
    c.data.eval_split = "test"
    c.train.epochs = 110
    c.train.base_lr = 0.001
    c.train.min_lr = 1e-5
    c.train.weight_decay = 1e-4
    c.test.tta.scales = (0.5, 0.75, 1.0, 1.25, 1.5)
    c.test.tta.average = "softmax" if backbone == "resnest101" else "logits"
    if backbone == "resnest101":
        c.train.global_batch_size = 32
        c.train.epochs = 150
        c.train.min_lr = 1e-4
    return c
