"""Speed, memory and exactness of the official recipes on one accelerator, next to PyTorch on the same one.

usage: python -m benchmarks.accelerator [options], in the repository's root

  --output=FILE  results, written after every measurement; by default benchmarks/accelerator.json (--quick: in /tmp)
  --seconds=N    nothing starts after N seconds (420) or runs past N + 30; what is left is named as skipped
  --resume       keeps what FILE holds and measures what was skipped or failed
  --table_only   measures nothing: writes the table in docs/performance.md from FILE
  --quick        every path at toy size, in a minute or two on a CPU; leaves docs/performance.md alone

docs/performance.md says what is measured and how. It needs neither TensorFlow nor data, and PyTorch only to compare.
Where ml_collections is missing, put its wheel (`pip download --no-deps ml_collections`) on PYTHONPATH, unpacked.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import runpy
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax import convert, create_model, inference, photometry, roofline, sharding, train

ROOT = Path(__file__).resolve().parents[1]
DOC, REFERENCE = ROOT / "docs/performance.md", ROOT / "tests/reference"
weights = SimpleNamespace(**runpy.run_path(str(REFERENCE / "weights.py")))  # of the reference cases
RECIPES = [
    f"{data}-{backbone}"
    for data in ("ade20k", "coco_stuff", "cityscapes", "lip")
    for backbone in ("resnet50", "resnet101", "resnest101")
]
COMPARED = ("ade20k-resnet50", "cityscapes-resnet50", "lip-resnet101", "ade20k-resnest101")  # with PyTorch
LR = 1e-4  # weights are random, not pretrained: at the recipe's rate they might overflow while being timed


def plan(quick):
    """Names of all measurements, JAX's before PyTorch's, the most telling first: time may run out."""
    recipes, compared, cases = RECIPES, COMPARED, ("resnet50_150", "resnet18_19", "resnet101_20", "resnest50_182")
    if quick:
        recipes, compared, cases = ["ade20k-resnet18"], ["ade20k-resnet18"], ["resnet18_19"]
    parity = [f"parity {case} {dtype}" for case in cases for dtype in ("float32", "bfloat16")]
    speeds = [f"{kind} {name}" for name in compared for kind in ("train", "infer")]
    names = ["matrix bfloat16", *parity[:2], *speeds, *parity[2:]]
    names += [f"{kind} {name}" for kind in ("train", "infer") for name in recipes]
    return list(dict.fromkeys(names + [f"torch {name}" for name in speeds + parity]))


def recipe(name, training, quick):
    """Of DATASET-BACKBONE: the config, (height, width) of a training or test image, and the batch size."""
    data, backbone = name.split("-")
    config = runpy.run_path(str(ROOT / "configs" / f"{data}.py"))["get_config"](backbone)
    config.model.dtype, config.train.base_lr, config.train.min_lr = "bfloat16", LR, LR
    if quick:
        return config, (64, 64), 2
    if training:
        return config, tuple(config.augment.crop_size), config.train.global_batch_size
    long, short = config.test.resize or (2048, 1024)  # Cityscapes as it is
    photograph = len(config.test.resize) and config.test.keep_ratio  # 4:3
    return config, (short, round(short * 4 / 3) if photograph else long), config.test.batch_size


def random_batch(shape, size, classes):
    """uint8 images (B, H, W, 3) and labels (B, H, W), 5 % of them ignored."""
    images = np.random.default_rng(0).integers(0, 256, (size, *shape, 3), np.uint8)
    return images, weights.labels(*shape, classes, batch=size).astype(np.uint8)


def load_case(name):
    """An eval case: `create_model`'s fields, official state dict, images, and the logits recorded in float64."""
    with np.load(REFERENCE / "cases" / f"eval_{name}.npz") as file:
        meta, logits = json.loads(str(file["meta"])), file["logits"].astype(np.float64)
    lip, fields = meta["dataset"] == "lip", {key: meta[key] for key in ("backbone", "num_classes")}
    fields |= {"shortcut": lip, "activation": "leaky_relu" if lip else "relu"}
    state_dict = weights.state_dict(REFERENCE / f"keys/{meta['backbone']}_{meta['num_classes']}.json", meta["seed"])
    return fields, state_dict, weights.image(meta["height"], meta["width"], meta["seed"], meta["batch"]), logits


def compare(found, recorded):
    """Logits (B, H, W, K) against the recorded ones."""
    error = (found.astype(np.float64) - recorded) / recorded.std()
    return {
        "max_error": float(np.abs(error).max()),
        "rms_error": float(np.sqrt((error**2).mean())),
        "argmax_agreement": float((found.argmax(-1) == recorded.argmax(-1)).mean()),
    }


def timed(call, wait):
    """Median seconds of `call()`, and the spread of five repeats over it; `wait(result)` blocks until it is done."""
    wait([call() for _ in range(3)])
    seconds, count = [], 1
    for _ in range(6):  # the first only says how many steps a repeat takes
        start = time.perf_counter()
        for _ in range(count):
            result = call()
        wait(result)
        seconds.append((time.perf_counter() - start) / count)
        count = max(1, min(50, round(0.4 / seconds[0])))
    del seconds[0]
    return statistics.median(seconds), (max(seconds) - min(seconds)) / statistics.median(seconds)


def halving(attempt, wanted):
    """`attempt(batch)`, a dict with "seconds", with half the batch for as long as memory runs out."""
    batch = wanted
    while True:
        try:
            result = attempt(batch)
            return result | {"images_per_second": batch / result["seconds"], "batch": batch, "wanted_batch": wanted}
        except Exception as error:  # JAX and PyTorch each have their own kind
            if batch == 1 or not any(x in str(error).lower() for x in ("resource_exhausted", "out of memory")):
                raise
        gc.collect()
        batch //= 2
        print(f"         out of memory; trying batch {batch}", flush=True)


def jax_matrix(quick):
    n = 512 if quick else 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    seconds, spread = timed(partial(jax.jit(jnp.matmul), a, b), jax.block_until_ready)
    return {"side": n, "tflops": 2e-12 * n**3 / seconds, "spread": spread}


def jax_parity(case, dtype):
    fields, state_dict, images, recorded = load_case(case)
    model = create_model(fields | {"dtype": dtype})
    return compare(np.asarray(jax.jit(model.apply)(convert.from_torch(state_dict, model), images)["logits"]), recorded)


def predict(variables, images, model):  # uint8 (B, H, W, 3) -> classes, uint8 (B, H, W)
    logits = model.apply(variables, photometry.normalize(images))["logits"]
    return inference.predict_classes([(logits, None)], images.shape[1:3])


def jax_speed(name, training, quick):
    """Images per second and costs of a train step or of inference."""
    config, shape, wanted = recipe(name, training, quick)
    model, mesh = create_model(config.model), sharding.make_mesh(devices=jax.devices()[:1])
    optimizer = train.make_optimizer(config.train, 100_000)
    variables = convert.from_torch(
        {key: weights.tensor(key, form) for key, (_, form) in convert.official_names(model).items()}, model
    )
    forward = partial(model.apply, train=training, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    traced = jax.make_jaxpr(forward)(variables, np.zeros((1, *shape, 3), np.float32))  # of one image
    flops = roofline.count_flops(traced).model
    flops *= 3 if training else 1  # the backward pass is two such passes

    def attempt(size):
        images, labels = random_batch(shape, size, model.num_classes)
        batch = {"image": images, "label": labels, "window": np.tile(np.array([0, 0, *shape], np.int32), (size, 1))}
        batch, losses = sharding.to_devices(batch, mesh), {}
        if training:
            function, inputs = train.make_train_step(model, optimizer, config, mesh, sharding.replicated(mesh)), batch
            state = jax.jit(partial(train.state_from_variables, optimizer=optimizer))(variables)
        else:
            function, inputs, state = jax.jit(partial(predict, model=model)), batch["image"], jax.device_put(variables)
        began = time.perf_counter()
        program = function.lower(state, inputs).compile()
        compile_seconds, memory = time.perf_counter() - began, program.memory_analysis()

        def call():
            nonlocal state, losses
            if not training:
                return program(state, inputs)
            state, losses = program(state, inputs)  # the state is donated
            return losses

        seconds, spread = timed(call, jax.block_until_ready)
        held = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        return {
            "seconds": seconds,
            "spread": spread,
            "size": shape,
            "compile_seconds": compile_seconds,
            "memory_gib": (held - memory.alias_size_in_bytes) / 2**30,
            "gflops_per_image": flops / 1e9,
            "losses": {key: float(value) for key, value in losses.items()},
        }

    return halving(attempt, wanted)


def winners_class_vectors(feats, logits):
    """`torch_isnet.class_vectors`, visiting only the classes that win a pixel."""
    out = feats.new_zeros(feats.shape).flatten(2)
    for b in range(len(feats)):
        pixels, scores = feats[b].flatten(1), logits[b].flatten(1)  # (channels, N), (classes, N)
        winner = scores.argmax(0)
        for c in winner.unique().tolist():
            mask = winner == c
            out[b][:, mask] = (pixels[:, mask] * scores[c, mask].softmax(0)).sum(1, keepdim=True).to(out.dtype)
    return out.view_as(feats)


def torch_network(fields, state_dict=None):
    """torch_isnet.ISNet of `create_model`'s fields with the weights given, or random ones; and where it runs."""
    from benchmarks import torch_isnet

    torch = torch_isnet.torch
    leaky = fields["activation"] == "leaky_relu"
    net = torch_isnet.ISNet(fields["backbone"], fields["num_classes"], fields["shortcut"], leaky)
    state_dict = state_dict or {key: weights.tensor(key, tuple(x.shape)) for key, x in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(np.array(x)) for key, x in state_dict.items()})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return net.to(device, memory_format=torch.channels_last), device


def torch_parity(case, dtype):
    import torch

    torch.backends.cudnn.allow_tf32 = False
    fields, state_dict, images, recorded = load_case(case)
    net, device = torch_network(fields, state_dict)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = net.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))[0]
    return compare(logits.permute(0, 2, 3, 1).float().cpu().numpy(), recorded)


def torch_speed(name, training, quick):
    from benchmarks import torch_isnet

    torch = torch_isnet.torch
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    config, shape, wanted = recipe(name, training, quick)
    net, device = torch_network(config.model)
    net, cuda = net.train(training), device == "cuda"
    optimizer = torch.optim.SGD(net.parameters(), LR, config.train.momentum, weight_decay=config.train.weight_decay)
    forms = {"over all classes": torch_isnet.class_vectors, "over winning classes": winners_class_vectors}

    def attempt(size):
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        images, labels = random_batch(shape, size, config.model.num_classes)
        images = torch.from_numpy((images - np.float32(photometry.MEAN)) / np.float32(photometry.STD)).to(device)
        images, labels = images.permute(0, 3, 1, 2), torch.from_numpy(labels).to(device)  # channels_last as it is

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

        found = {}
        try:
            for form, function in forms.items():
                torch_isnet.class_vectors = function
                found[form] = timed(train_step if training else infer, lambda _: cuda and torch.cuda.synchronize())
        finally:
            torch_isnet.class_vectors = forms["over all classes"]
        best = min(found, key=found.get)
        return {
            "seconds": found[best][0],
            "spread": found[best][1],
            "size": shape,
            "loop_over": best,
            "seconds_by_loop": {form: seconds for form, (seconds, _) in found.items()},
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        }

    return halving(attempt, wanted)


def run(framework, results, path, started, deadline, quick):
    """Takes the measurements of "jax" or "torch" in this process, until the deadline."""
    done, longest = results["measured"], {}
    if framework == "jax":
        device, on_cpu = jax.devices()[0], jax.default_backend() == "cpu"
        here = f"{device.device_kind}, {(device.memory_stats() or {}).get('bytes_limit', 0) / 2**30:.1f} GiB for JAX"
        if results.setdefault("device", here) != here:
            sys.exit(f"{path} was measured on {results['device']}, and this is {here}; leave out --resume.")
    else:
        import torch

        torch.set_num_threads(1)  # of the CPU
        on_cpu = not torch.cuda.is_available()
    if on_cpu and not quick:
        sys.exit(f"{framework} finds no accelerator here; --quick runs every path at toy size on a CPU.")
    save(results, path)
    names = [name for name in plan(quick) if name.startswith("torch") == (framework == "torch")]
    for name in [name for name in names if name not in done or "error" in done[name]]:
        kind, *what = name.removeprefix("torch ").split()
        start, rate = time.time(), done.get("matrix bfloat16", {}).get("tflops")
        if start + longest.get(kind, 0) > deadline:
            print(f"{start - started:6.0f} s {name}: skipped, no time left", flush=True)
            continue
        function = globals()[f"{framework}_{kind if kind in ('matrix', 'parity') else 'speed'}"]
        arguments = {"matrix": (quick,), "parity": what}.get(kind, (*what, kind == "train", quick))
        try:
            value = function(*arguments)
        except Exception as error:  # noqa: BLE001 - the others can still be measured
            value = {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        gc.collect()
        if rate and "gflops_per_image" in value:
            value["share"] = value["images_per_second"] * value["gflops_per_image"] / 1000 / rate
        done[name], longest[kind] = value, max(longest.get(kind, 0), time.time() - start)
        save(results, path)
        shown = ", ".join(f"{key} {x:.4g}" if isinstance(x, float) else f"{key} {x}" for key, x in value.items())
        print(f"{time.time() - started:6.0f} s {name}: {shown}", flush=True)


def save(results, path):
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    unfinished.replace(path)


def table(results):
    """The Markdown between the markers."""
    good = {name: value for name, value in results["measured"].items() if "error" not in value}

    def cell(name, key, form="{:.1f}"):
        value = good.get(name, {}).get(key)
        if value is None:
            return "-"
        fewer = key == "images_per_second" and good[name]["batch"] < good[name]["wanted_batch"]
        return form.format(value) + (f" (memory: batch {good[name]['batch']})" if fewer else "")

    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    rate = cell("matrix bfloat16", "tflops", "{:.0f}")
    lines = [f"{results['device']}; {versions}. Measured bfloat16 matrix rate: {rate} TFLOP/s."]
    for kind in ("train", "infer"):
        lines += [
            "",
            f"| {kind} | size, batch | img/s | of rate | GiB | compile s | PyTorch | loop | GiB | ratio |",
            "|---|---|--:|--:|--:|--:|--:|---|--:|--:|",
        ]
        for name in sorted({name.split()[-1] for name in good if kind in name.split()}):
            ours, theirs = f"{kind} {name}", f"torch {kind} {name}"
            one, other = good.get(ours), good.get(theirs)
            ratio = f"{one['images_per_second'] / other['images_per_second']:.2f}" if one and other else "-"
            cells = [
                name,
                "{}x{}, {}".format(*(one or other)["size"], (one or other)["wanted_batch"]),
                cell(ours, "images_per_second"),
                cell(ours, "share", "{:.0%}"),
                cell(ours, "memory_gib"),
                cell(ours, "compile_seconds"),
                cell(theirs, "images_per_second"),
                cell(theirs, "loop_over", "{}"),
                cell(theirs, "memory_gib"),
                ratio,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| logits | max error | RMS error | same argmax | PyTorch max | PyTorch RMS | PyTorch same argmax |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in sorted({name.removeprefix("torch ") for name in good if "parity" in name}):
        cells = [
            cell(prefix + name, key, form)
            for prefix in ("", "torch ")
            for key, form in (("max_error", "{:.1e}"), ("rms_error", "{:.1e}"), ("argmax_agreement", "{:.2%}"))
        ]
        lines.append(f"| {name.removeprefix('parity ')} | {' | '.join(cells)} |")
    failed = [f"{name} ({x['error'].splitlines()[0][:120]})" for name, x in results["measured"].items() if "error" in x]
    lines += [
        f"\n{what}: {'; '.join(names)}."
        for what, names in (
            ("Failed", failed),
            ("Skipped, for want of time or of PyTorch on a GPU", results["skipped"]),
        )
        if names
    ]
    return "\n".join(lines)


def write_doc(results):
    text, begin, end = DOC.read_text(), "<!-- accelerator:begin -->", "<!-- accelerator:end -->"
    DOC.write_text(f"{text.split(begin)[0]}{begin}\n{table(results)}\n{end}{text.split(end)[1]}")


def main(output, seconds, resume, table_only, quick):
    output = output or Path(tempfile.gettempdir() if quick else ROOT / "benchmarks") / "accelerator.json"
    if table_only:
        return write_doc(json.loads(output.read_text()))
    packages = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    started, spawn = time.time(), multiprocessing.get_context("spawn")
    results = {"measured": {}} if not (resume and output.exists()) else json.loads(output.read_text())
    names = ("jax", "jaxlib", "flax", "torch", "nvidia-cudnn-cu13")
    results |= {"started": started, "versions": {name: packages.get(name) for name in names}}
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    deadlines = {"jax": started + seconds - min(120, seconds / 3), "torch": started + seconds}
    if "torch" not in packages:
        deadlines = {"jax": started + seconds}
    for framework, deadline in deadlines.items():  # a process each, so that each has the memory to itself
        process = spawn.Process(target=run, args=(framework, results, output, started, deadline, quick))
        process.start()
        process.join(deadline + 30 - time.time())
        process.kill()
        process.join()
        results = json.loads(output.read_text()) if output.exists() else {}
        if results.get("started") != started:
            sys.exit("Nothing was measured.")
        results["skipped"] = [name for name in plan(quick) if name not in results["measured"]]
        save(results, output)
        if not quick:
            write_doc(results)
    print(f"\n{table(results)}\n\n{output}, {time.time() - started:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=420)
    for flag in ("--quick", "--resume", "--table_only"):
        parser.add_argument(flag, action="store_true")
    main(**vars(parser.parse_args()))
