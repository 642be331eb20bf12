"""ADE20K, 150 classes: a stronger recipe, not an official one, and not measured yet.

    python -m isnet_jax.main --config=configs/modern.py --config.train.pretrained=resnet50d

Scores compare with no published result. What is not set here is as in configs/ade20k.py.
"""

from isnet_jax import config


def get_config(backbone="resnet50d"):
    c = config.default(backbone)  # d: pooled shortcuts (He et al., "Bag of tricks", CVPR 2019); weights of timm
    c.model.num_classes = 150
    c.data.name = "ade20k"
    c.loss.dice_weight = 0.0  # 1.0 adds a Dice loss (Milletari et al., V-Net, 2016), for rare classes
    c.train.epochs = 130  # as the official recipe: 82,000 steps of 32 images instead of 164,000 of 16
    c.train.global_batch_size = 32
    c.train.optimizer = "adamw"  # as for a ResNet-50 on ADE20K in Mask2Former (Cheng et al., CVPR 2022)
    c.train.base_lr = 1e-4  # of the backbone: ConvNeXt (Liu et al., CVPR 2022) with UPerNet on ADE20K
    c.train.head_lr_factor = 10.0  # the head starts from random weights: SegFormer (Xie et al., NeurIPS 2021)
    c.train.weight_decay = 0.05  # ConvNeXt, Mask2Former
    c.train.decay_norms_and_biases = False  # "Bag of tricks", section 3.1; ConvNeXt
    c.train.schedule = "cosine"  # "Bag of tricks", section 5.1; timm
    c.train.min_lr = 1e-6  # where ConvNeXt's cosine ends on ImageNet
    c.train.warmup_steps = 1500  # ConvNeXt and SegFormer on ADE20K
    # Evaluated beside the weights, as in ConvNeXt and timm. Their decay of 0.9999 averages over 10,000 steps; this one,
    # over 1,000, has forgotten the random head at the first evaluation, after 10 epochs.
    c.train.ema_decay = 0.999
    return c
