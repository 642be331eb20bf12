"""Records the outputs of timm's and torchvision's ResNets, in float64, at output stride 8, for tests/models/test_backbones.py.

Needs PyTorch, timm and torchvision, which the tests do not: python tests/reference/record_backbones.py
"""
import json
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
import weights

HERE = Path(__file__).parent
SIZE = 41, 58  # of the image: odd and even at every stride
CHANNELS = 16  # recorded of each stage


def timm_features(name):
    net = timm.create_model(name, output_stride=8, features_only=True, out_indices=(1, 2, 3, 4))
    return net, net


def torchvision_features(name):
    net = getattr(torchvision.models, name)(replace_stride_with_dilation=[False, True, True])
    layers = {f"layer{i}": f"layer{i}" for i in range(1, 5)}
    extractor = torchvision.models._utils.IntermediateLayerGetter(net, layers)
    return net, lambda x: extractor(x).values()


CASES = {
    "resnet50d": (timm, timm_features, "resnet50d"),
    "resnet101d": (timm, timm_features, "resnet101d"),
    "resnet50b": (torchvision, torchvision_features, "resnet50"),
    "resnet101b": (torchvision, torchvision_features, "resnet101"),
}

if __name__ == "__main__":
    for backbone, (library, make, name) in CASES.items():
        net, features = make(name)
        shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
        state_dict = {key: torch.from_numpy(weights.tensor(key, tuple(shape))) for key, shape in shapes.items()}
        net.load_state_dict(state_dict)
        net.double().eval()
        image = torch.from_numpy(weights.image(*SIZE)).double().permute(0, 3, 1, 2)
        with torch.no_grad():
            stages = [stage.permute(0, 2, 3, 1).numpy() for stage in features(image)]
        meta = {"network": f"{library.__name__} {library.__version__} {name}", "size": SIZE, "shapes": shapes}
        np.savez_compressed(
            HERE / "cases" / f"backbone_{backbone}.npz",
            meta=json.dumps(meta),
            mean_abs=np.array([np.abs(stage).mean() for stage in stages]),
            **{f"stage{i + 1}": stage[..., :CHANNELS] for i, stage in enumerate(stages)},
        )
        print(backbone, meta["network"], [stage.shape for stage in stages])
