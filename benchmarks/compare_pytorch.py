"""PyTorch's side of benchmarks.compare_torch: python -m benchmarks.compare_pytorch SPEC OUTPUT."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import torch_isnet
from benchmarks.compare_evaluation_torch import MEAN, STD, create_network
from benchmarks.compare_work import STEPS, best_rate, load_batch, logits_sample
from benchmarks.workload import LEARNING_RATE


def measure(call: Callable[[], Any], device: str) -> tuple[list[float], list[Any], float]:
    """Seconds of each call after the first two, the results of the first two, and the seconds of the first."""
    seconds, results = [], []
    for _ in range(2 + STEPS):
        start = time.perf_counter()
        results = [*results, call()][:2]
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[2:], results, seconds[0]


def run(spec: dict[str, Any], device: str) -> dict[str, Any]:
    """Measures train steps or forward passes of the variant."""
    net = create_network(spec, device).train(spec["work"] == "train")
    forward = torch.compile(net) if spec["variant"] == "compiled" else net
    images, labels = load_batch(spec)
    images = (images.astype(np.float32) - MEAN) / STD
    images = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels_last
    images = (images.contiguous() if spec["variant"] == "loop" else images).to(device)
    labels = torch.from_numpy(labels).to(device)
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    autocast = torch.autocast(device, torch.bfloat16, enabled=spec["dtype"] == "bfloat16")

    def train_step():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            losses = torch_isnet.losses(forward(images), labels)
        losses["total"].backward()
        optimizer.step()
        return [losses[name].item() for name in ("aux", "stage1", "stage2", "total")]

    @torch.inference_mode()
    def infer():
        with autocast:
            return forward(images)[0]

    seconds, results, first = measure(train_step if spec["work"] == "train" else infer, device)
    if spec["work"] == "train":
        result = {f"losses of step {i + 1}": values for i, values in enumerate(results)}
    else:
        result = {"logits": logits_sample(results[0].float().permute(0, 2, 3, 1).cpu().numpy())}
    return {"seconds": seconds, "first_seconds": first, "result": result}


def _main() -> None:
    spec = json.loads(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    side, dtype = (8192 if device == "cuda" else 2048), getattr(torch, spec["dtype"])
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    rate = best_rate(lambda: (a @ b)[0, 0].item(), 2 * side**3)
    measured = run(spec, device)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    measured |= {
        "device": name,
        "versions": {"torch": torch.__version__},
        "peak_gib": peak / 2**30,
        "matrix_rate": rate,
    }
    Path(sys.argv[2]).write_text(json.dumps(measured))


if __name__ == "__main__":
    _main()
