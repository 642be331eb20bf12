"""Drawn people (drawn_people.py) with the LIP recipe at 64x64 with ResNet-18: flips swap left and right, images are
rotated, stage 2 is at stride 4, and the head has LeakyReLU. The labels of the test are at their original 96x128.
"""

from benchmarks.accuracy import drawn_people
from isnet_jax import config


def get_config(backbone="resnet18"):
    c = config.default(backbone)
    c.model.num_classes = len(drawn_people.CLASSES)
    c.model.activation = "leaky_relu"
    c.model.shortcut = True
    c.data.name = "folder"
    c.data.folder.name = "people"
    c.data.folder.classes = drawn_people.CLASSES
    c.data.folder.splits = {split: (f"{split}/images", f"{split}/labels") for split in drawn_people.SPLITS}
    c.augment.resize = (70, 70)
    c.augment.keep_ratio = False
    c.augment.scale_range = (0.75, 1.25)
    c.augment.crop_size = (64, 64)
    c.augment.flip_pairs = drawn_people.FLIP_PAIRS
    c.augment.rotate_probability = 0.6
    c.train.global_batch_size = 8
    c.train.epochs = 20
    c.test.resize = (64, 64)
    c.test.keep_ratio = False
    return c
