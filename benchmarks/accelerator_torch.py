"""The measurements of benchmarks.accelerator in PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks import torch_isnet
from benchmarks.reference import load_case, weights
from benchmarks.workload import (
    LEARNING_RATE,
    compare_logits,
    load_recipe,
    random_batch,
    time_calls,
    with_largest_batch,
)
from isnet_jax.input.photometry import MEAN, STD


def open_device() -> tuple[str, bool]:
    """The name of the device, and whether it is an accelerator."""
    torch.set_num_threads(1)  # of the CPU
    available = torch.cuda.is_available()
    return torch.cuda.get_device_name() if available else "cpu", available


def winning_class_vectors(feats: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """`torch_isnet.class_vectors` with a loop over only the classes that win a pixel."""
    out = feats.new_zeros(feats.shape).flatten(2)
    for b in range(len(feats)):
        pixels, scores = feats[b].flatten(1), logits[b].flatten(1)  # (channels, N), (classes, N)
        winner = scores.argmax(0)
        for c in winner.unique().tolist():
            mask = winner == c
            out[b][:, mask] = (pixels[:, mask] * scores[c, mask].softmax(0)).sum(1, keepdim=True).to(out.dtype)
    return out.view_as(feats)


CLASS_LOOPS = {"over all classes": torch_isnet.class_vectors, "over winning classes": winning_class_vectors}


def create_network(
    fields: Mapping[str, Any], state_dict: Mapping[str, np.ndarray] | None = None
) -> tuple[torch_isnet.ISNet, str]:
    """The network of `create_model`'s fields with the weights given, or random ones, and its device."""
    is_leaky = fields["activation"] == "leaky_relu"
    net = torch_isnet.ISNet(fields["backbone"], fields["num_classes"], fields["shortcut"], is_leaky)
    if state_dict is None:
        state_dict = {name: weights.tensor(name, tuple(x.shape)) for name, x in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in state_dict.items()})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return net.to(device, memory_format=torch.channels_last), device


def parity(case: str, dtype: str) -> dict[str, float]:
    """Errors of the logits of a recorded case; bfloat16 is autocast, float32 is without TF32."""
    torch.backends.cudnn.allow_tf32 = False
    fields, state_dict, images, recorded = load_case(case)
    net, device = create_network(fields, state_dict)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = net.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))[0]
    return compare_logits(logits.permute(0, 2, 3, 1).float().cpu().numpy(), recorded)


def speed(recipe: str, training: bool, quick: bool) -> dict[str, Any]:
    """Images per second and memory of a train step or of inference, with the faster of `CLASS_LOOPS`."""
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    config, shape, wanted_batch = load_recipe(recipe, training, quick)
    net, device = create_network(config.model)
    net, on_cuda = net.train(training), device == "cuda"
    optimizer = torch.optim.SGD(
        net.parameters(), LEARNING_RATE, config.train.momentum, weight_decay=config.train.weight_decay
    )

    def measure(batch_size):
        if on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        images, labels = random_batch(shape, batch_size, config.model.num_classes)
        images = torch.from_numpy((images - np.float32(MEAN)) / np.float32(STD)).to(device)
        images, labels = images.permute(0, 3, 1, 2), torch.from_numpy(labels).to(device)  # already channels_last

        def train_step():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                total = torch_isnet.losses(net(images), labels)["total"]
            total.backward()
            optimizer.step()

        @torch.inference_mode()
        def infer():
            with torch.autocast(device, torch.bfloat16):
                return torch_isnet.resize(net(images)[0], shape).argmax(1)

        timings = {}
        try:
            for loop, function in CLASS_LOOPS.items():
                torch_isnet.class_vectors = function
                timings[loop] = time_calls(
                    train_step if training else infer, lambda _: on_cuda and torch.cuda.synchronize()
                )
        finally:
            torch_isnet.class_vectors = CLASS_LOOPS["over all classes"]
        fastest = min(timings, key=timings.get)
        return {
            "seconds": timings[fastest][0],
            "spread": timings[fastest][1],
            "size": shape,
            "loop_over": fastest,
            "seconds_by_loop": {loop: seconds for loop, (seconds, _) in timings.items()},
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_cuda else None,
        }

    return with_largest_batch(measure, wanted_batch)
