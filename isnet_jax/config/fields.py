"""Every field of a config with its default."""

import functools
from typing import Any

from ml_collections import ConfigDict, config_dict

from isnet_jax.errors import UserError


def default(backbone: str = "resnet50") -> ConfigDict:
    """The fields that a config file may change.

    Raises UserError for an unknown `backbone` (what follows the colon in --config=FILE:backbone).
    """
    from isnet_jax.models.isnet import BACKBONES  # imports JAX, which not every command needs

    if backbone not in BACKBONES:
        raise UserError(
            f"There is no backbone {backbone!r:.200}; write --config=FILE:BACKBONE with one of {', '.join(BACKBONES)}."
        )
    config = ConfigDict(
        {
            "seed": 0,
            "mesh": "auto",  # or e.g. data=4,spatial=2, which splits the batch in 4 and the height of images in 2
            "shard_parameters": False,  # shard parameters and optimizer state over `data` (FSDP), to save memory
            "model": {
                "backbone": backbone,
                "num_classes": 0,
                "activation": "relu",  # of the head: relu or leaky_relu
                "shortcut": False,
                "image_level_context": True,  # False, here and below: an ablation without the module
                "semantic_level_context": True,
                "dropout": 0.1,
                "dtype": "float32",  # of activations: float32 or bfloat16
                "remat": False,  # rematerialise each block in the backward pass, to save memory
            },
            "data": {
                "name": "",
                "source": config_dict.placeholder(str),  # the official folder, prepared on first use
                "data_dir": config_dict.placeholder(str),  # where prepared data sets live; default: that of TFDS
                "train_split": "train",
                "eval_split": "val",
                "folder": {  # your own data, if name is "folder"; see docs/datasets.md
                    "name": "",
                    "classes": (),  # names of the label values 0, 1, ...; "" marks a value to ignore
                    "label_values": (),  # the value, or a tuple of several, of each class, if it is not 0, 1, ...
                    "palette": (),  # (r, g, b) per class, in pictures and in labels that are colour images
                    "splits": {},  # split: (images, labels), folders or patterns; a list of names or a share
                    "split_seed": 0,  # of the shares
                    "exif": True,  # turn images as EXIF says, as viewers do; False: labels fit the stored images
                },
            },
            "augment": {
                "resize": (2048, 512),  # (long, short) side before the random scale
                "keep_ratio": True,
                "scale_range": (0.5, 2.0),
                "crop_size": (512, 512),  # (height, width)
                "max_class_share": 0.75,  # of a crop's labelled pixels; above it, another crop is tried
                "flip_pairs": (),  # classes that swap in a horizontal flip
                "rotate_probability": 0.0,
                "rotate_degrees": 30,
                "photometric": True,
            },
            "loss": {  # of each of the three classifiers; docs/training.md has the formulas
                "class_weights": (),  # a number per class; (): all count alike
                "balance_classes": False,  # True: class weights from the pixels of each class in data.train_split
                "label_smoothing": 0.0,
                "ohem_threshold": 0.0,  # above 0: only pixels count whose class is less probable, as with 0.7 ...
                "ohem_min_kept": 100_000,  # ... or the hardest ones, that many for each image of the batch
                "dice_weight": 0.0,  # above 0: of a Dice loss beside the cross entropy
            },
            "train": {
                "global_batch_size": 16,
                "epochs": 1,
                "base_lr": 0.01,
                "min_lr": 1e-4,
                "weight_decay": 5e-4,
                "momentum": 0.9,  # of adamw: the first beta
                "power": 0.9,  # of poly
                "ema_decay": 0.0,  # 0: no moving average of the weights
                "optimizer": "sgd",  # or adamw
                "schedule": "poly",  # or cosine
                "warmup_steps": 0,  # in which the learning rate rises from 0 to base_lr
                "clip_norm": 0.0,  # largest norm of the gradient; 0: any
                "head_lr_factor": 1.0,  # of the learning rate of all but the backbone
                "backbone_lr_factor": 1.0,
                "decay_norms_and_biases": True,  # False: weight decay on kernels alone
                "frozen_stages": 0,  # of the backbone, as loaded: 1 the stem, 2 also layer1, ..., 5 all; 0: none
                "freeze_batch_norm": False,  # True: the backbone's batch statistics stay as loaded
                "pretrained": config_dict.placeholder(str),  # file, run or name, of a backbone or an ISNet
            },
            "test": {
                "resize": (2048, 512),  # (long, short), or () for the original size
                "keep_ratio": True,
                "batch_size": 8,  # of `predict`, too; `main` and `evaluate` take one image per device on CPUs
                "max_shape_buckets": 8,  # padded shapes that images of mixed sizes share, one compilation each
                "tta": {  # scales and flip, for `--tta`
                    "mode": "whole",  # or slide: windows of crop_size (h, w), moved by stride (h, w)
                    "crop_size": (),
                    "stride": (),
                    "scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
                    "average": "softmax",  # or logits
                },
            },
            "run": {  # changes no step of the training
                "log_every_steps": 50,
                "eval_every_epochs": 10,
                "checkpoint_every_steps": 1000,
                "keep_checkpoints": 3,
                "best_metric": "",  # keep the best state, too: by miou, iou/NAME, ema/miou, ...; "": do not
                "stop_after_evaluations": 0,  # that many without improvement of best_metric; 0: train to the last step
                "num_pictures": 8,  # of predictions, at every evaluation
                "wandb": "",  # a project of Weights & Biases that gets the log, too; "": none
                "mlflow": "",  # an experiment of MLflow, on MLFLOW_TRACKING_URI; "": none
                "profile_steps": 0,  # traced steps, after a warm-up; the trace is for XProf and Perfetto
            },
        }
    )
    return config.lock()  # a mistyped field in a config file is an error, too


def value_of(config: ConfigDict, field: str) -> Any:
    """The value of a field, or a section, whose names are separated by dots, as in "train.base_lr"."""
    return functools.reduce(lambda section, name: section[name], field.split("."), config)
