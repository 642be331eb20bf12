"""Evaluates photographs one by one in PyTorch, as the official code does, without importing JAX."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import torch_fast, torch_isnet
from benchmarks.paths import REFERENCE

MEAN, STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))


def create_network(spec: dict[str, Any], device: str) -> torch.nn.Module:
    """The network of the variant, without dropout, with the weights that ours has too."""
    module = torch_isnet if spec["variant"] == "loop" else torch_fast
    tensor = runpy.run_path(str(REFERENCE / "weights.py"))["tensor"]
    net = module.ISNet(spec["backbone"], spec["classes"], dropout=0.0)
    net.load_state_dict({name: torch.from_numpy(tensor(name, tuple(x.shape))) for name, x in net.state_dict().items()})
    layout = torch.contiguous_format if spec["variant"] == "loop" else torch.channels_last
    return net.to(device, memory_format=layout)


def _main() -> None:
    spec, place = json.loads(sys.argv[1]), Path(sys.argv[2])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = create_network(spec, device).eval()
    classes, confusion = spec["classes"], 0
    for path in sorted((place / "tree/images").iterdir()):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        label = cv2.imread(str(place / "tree/labels" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        x = torch.from_numpy((image - MEAN) / STD).permute(2, 0, 1)[None].to(device)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=spec["dtype"] == "bfloat16"):
            logits = torch_isnet.resize(net(x)[0].float(), label.shape)
            prediction = logits.argmax(1)[0].cpu().numpy()
        inside = label < classes
        pairs = label[inside].astype(np.int64) * classes + prediction[inside]
        confusion = confusion + np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    Path(sys.argv[3]).write_text(json.dumps(confusion.tolist()))


if __name__ == "__main__":
    _main()
