"""Trains ISNet in PyTorch on exported batches: PyTorch's network, losses and optimizer, and nothing of ours.

usage: python -m benchmarks.accuracy.torch_train BATCHES OUTPUT [--dtype=float64]

BATCHES is what export.py wrote; OUTPUT gets losses.jsonl, one line per step, and isnet.pth. Trains as many steps as
there are batches. After an interrupt the same command resumes.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import torch_isnet
from benchmarks.accuracy.batches import open_arrays, parse_args

MEAN, STD = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]], dtype=torch.float64)
SAVE_EVERY = 50  # steps


def normalize(images: np.ndarray, windows: np.ndarray, dtype: torch.dtype) -> Tensor:
    """uint8 (B, H, W, 3) -> normalised (B, 3, H, W), zero outside the windows (top, left, height, width)."""
    x = (torch.from_numpy(images).to(dtype) - MEAN.to(dtype)) / STD.to(dtype)
    for image, (top, left, height, width) in zip(x, windows.tolist()):
        outside = torch.ones(image.shape[:2], dtype=torch.bool)
        outside[top : top + height, left : left + width] = False
        image[outside] = 0
    return x.permute(0, 3, 1, 2).contiguous()


class Run:
    """Network and optimizer at a step; `state_dict` holds all that resuming needs."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype):
        """config: `config.json` of the export."""
        torch.manual_seed(config["seed"])
        self.step, model, train = 0, config["model"], config["train"]
        self.net = torch_isnet.ISNet(
            model["backbone"],
            model["num_classes"],
            shortcut=model["shortcut"],
            leaky_relu=model["activation"] == "leaky_relu",
            dropout=model["dropout"],
            image_level_context=model["image_level_context"],
            semantic_level_context=model["semantic_level_context"],
        )
        self.net.load_state_dict(weights)
        self.net.to(dtype).train()
        base, end = train["base_lr"], train["min_lr"]
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), base, train["momentum"], weight_decay=train["weight_decay"]
        )

        def factor(step):  # of the base learning rate
            return ((1 - step / config["total_steps"]) ** train["power"] * (base - end) + end) / base

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def train_step(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """One step on images (B, 3, H, W) and labels (B, H, W): the losses before it."""
        losses = torch_isnet.losses(self.net(images), labels)
        self.optimizer.zero_grad()
        losses["total"].backward()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        """For `load_state_dict`."""
        parts = {name: getattr(self, name).state_dict() for name in ("net", "optimizer", "schedule")}
        return {**parts, "step": self.step, "rng": torch.get_rng_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from the state of an interrupted run."""
        for name in ("net", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]
        torch.set_rng_state(state["rng"])


def save(state: Any, path: Path) -> None:
    """Replaces the file atomically."""
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(batches: Path, output: Path, dtype: torch.dtype) -> None:
    """Trains and writes as the module's docstring says."""
    if (output / "isnet.pth").exists():
        return
    config = json.loads((batches / "config.json").read_text())
    run = Run(config, torch.load(batches / "init.pth", weights_only=True), dtype)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint, log = output / "checkpoint.pth", output / "losses.jsonl"
    if checkpoint.exists():
        run.load_state_dict(torch.load(checkpoint, weights_only=True))
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    arrays = open_arrays(batches)
    stop = len(arrays["label"])
    with log.open("ab") as file:
        file.truncate(sum(map(len, lines[: run.step])))  # the steps since the checkpoint are repeated
        while run.step < stop:
            image, label, window = (np.array(array[run.step]) for array in arrays.values())
            losses = run.train_step(normalize(image, window, dtype), torch.from_numpy(label))
            file.write(json.dumps({"step": run.step, **losses}).encode() + b"\n")
            file.flush()
            print(f"step {run.step}/{stop}  loss {losses['total']:.4f}", flush=True)
            if run.step % SAVE_EVERY == 0:
                save(run.state_dict(), checkpoint)
    save(run.net.state_dict(), output / "isnet.pth")
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    args = parse_args(__doc__)
    train(args.batches, args.output, getattr(torch, args.dtype))
