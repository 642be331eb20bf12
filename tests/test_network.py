"""The network against itself: other forms of the same function, canvases, devices, precisions, and PyTorch."""

import functools
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cast, load_module, random_variables, weights
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from isnet_jax import attention, convert, create_model, layers, losses
from isnet_jax.image_level_context import ImageLevelContext
from isnet_jax.inference import predict, rescale, sliding_window
from isnet_jax.models import BACKBONES
from isnet_jax.semantic_level_context import SemanticLevelContext

DEEP = ("resnet101", "resnet152", "resnest101", "resnest200")


def slow_if(names, slow):
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


def assert_close(found, wanted, tolerance):
    """Every leaf within `tolerance` of the largest value of the wanted leaf (at least 1e-3)."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    errors = {}
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted)):
        a, b, path = np.asarray(a, np.float64), np.asarray(b, np.float64), jax.tree_util.keystr(path)
        assert a.shape == b.shape and np.isfinite(a).all(), path
        errors[path] = np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)
    worst = max(errors, key=errors.get)
    print(f"largest error {errors[worst]:.1e} {worst}")  # pytest -s
    assert errors[worst] <= tolerance


@functools.cache
def network(backbone, num_classes=5, seed=0, **fields):
    """Network without dropout and its float32 variables, as NumPy arrays."""
    model = create_model({"backbone": backbone, "num_classes": num_classes, "dropout": 0.0} | fields)
    return model, random_variables(model, seed)


def randomised(variables, seed=0):
    """Other values in every leaf (a fresh module has zero biases): scales and variances in [0.5, 1.5]."""
    rng = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(dict(variables))
    for path, leaf in flat.items():
        if path[-1] in ("scale", "var"):
            flat[path] = rng.uniform(0.5, 1.5, leaf.shape)
        elif path[-1] == "num_batches_tracked":
            flat[path] = np.zeros((), np.int32)
        else:
            std = 0.3 if leaf.ndim == 1 else (2 / np.prod(leaf.shape[:-1])) ** 0.5
            flat[path] = std * rng.standard_normal(leaf.shape)
    return traverse_util.unflatten_dict(flat)


# --- semantic-level context: pixels and loops instead of class tokens --------------------------


def pixel_by_pixel(variables, feats, logits, image_context, train, winner):
    """The module as the paper puts it: one vector a pixel, loops over images and classes, N x N attention."""
    params, stats, new = variables["params"], variables["batch_stats"], {}

    def normalize_act(x, name):
        bn, old = params[name]["bn"], stats[name]["bn"]
        mean, var, count = old["mean"], old["var"], x[..., 0].size
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            new[name] = {
                "bn": {
                    "mean": 0.9 * old["mean"] + 0.1 * mean,
                    "num_batches_tracked": 1,
                    "var": 0.9 * old["var"] + 0.1 * var * count / (count - 1),
                }
            }
        return jax.nn.leaky_relu((x - mean) / jnp.sqrt(var + 1e-5) * bn["scale"] + bn["bias"], 0.01)

    def project(x, name):
        return normalize_act(x @ params[name]["conv"]["kernel"][0, 0], name)

    b, h, w, channels = feats.shape
    source = jnp.zeros_like(feats)
    for image in range(b):
        for c in range(logits.shape[-1]):
            ys, xs = np.nonzero(winner[image] == c)
            if len(ys):
                confidence = jnp.exp(logits[image, ys, xs, c])
                vector = (confidence[:, None] * feats[image, ys, xs]).sum(0) / confidence.sum()
                source = source.at[image, ys, xs].set(vector)
    query = project(project(feats, "query1"), "query2").reshape(b, h * w, -1)
    key = project(project(source, "key1"), "key2").reshape(b, h * w, -1)
    weights = jax.nn.softmax(query @ key.swapaxes(1, 2) / np.sqrt(channels // 2))
    context = weights @ project(source, "value").reshape(b, h * w, -1)
    both = jnp.concatenate([image_context, project(context.reshape(b, h, w, -1), "out")], -1)
    padded = jnp.pad(both, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = params["bottleneck"]["conv"]["kernel"]
    y = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))
    return normalize_act(y, "bottleneck"), new


@pytest.mark.parametrize("train", [True, False])
def test_class_tokens_equal_pixels(train, x64):
    rng = np.random.default_rng(0)
    module = SemanticLevelContext(functools.partial(nn.leaky_relu, negative_slope=0.01))
    feats, image_context, cotangent = rng.standard_normal((3, 2, 5, 7, 16))
    logits = 2 * rng.standard_normal((2, 5, 7, 6))
    logits[:, :, :, 2] = -9  # never predicted; class 4 in the second image only
    logits[0, :, :, 4] = -9
    variables = randomised(jax.eval_shape(lambda: module.init(jax.random.key(0), feats, logits, image_context, False)))

    def tokens(params, feats, logits, image_context):
        y, new = module.apply(
            {**variables, "params": params}, feats, logits, image_context, train, mutable=["batch_stats"]
        )
        return (y * cotangent).sum(), (y, new["batch_stats"] if train else {})

    def pixels(params, feats, logits, image_context):
        y, new = pixel_by_pixel({**variables, "params": params}, feats, logits, image_context, train, winner)
        return (y * cotangent).sum(), (y, new)

    winner = logits.argmax(-1)
    (grads, found), (wanted_grads, wanted) = (
        jax.jit(jax.grad(function, argnums=(0, 1, 2, 3), has_aux=True))(
            variables["params"], feats, logits, image_context
        )
        for function in (tokens, pixels)
    )
    assert_close(found, wanted, 1e-12)  # output and running statistics
    assert_close(grads, wanted_grads, 1e-10)
    assert np.abs(grads[2]).max() > 1e-4  # logits do get a gradient


# --- attention ------------------------------------------------------------------------------


@pytest.mark.parametrize("max_scores", [10, 39, 200])
def test_blocked_attention_equals_direct(max_scores, monkeypatch, x64):
    rng = np.random.default_rng(1)
    query, key, value, cotangent = (rng.standard_normal((2, 13, n)) for n in (4, 4, 6, 6))
    bias = np.where(rng.random((2, 13)) < 0.3, -np.inf, rng.standard_normal((2, 13)))

    def run(key_bias):
        y, pullback = jax.vjp(lambda q, k, v: attention.attention(q, k, v, key_bias), query, key, value)
        return y, pullback(cotangent)

    scores = np.exp(np.einsum("bnd,bmd->bnm", query, key) / 2 + bias[:, None])
    direct = run(None), run(bias)
    assert_close(direct[1][0], scores / scores.sum(-1, keepdims=True) @ value, 1e-12)
    monkeypatch.setattr(attention, "MAX_SCORES", max_scores)
    assert_close((run(None), run(bias)), direct, 1e-12)


def test_attention_memory_grows_with_the_pixels():
    pixels = jax.ShapeDtypeStruct((1, 128 * 128, 64), jnp.float32)  # N x N scores would take 1 GiB
    for function in (attention.attention, jax.grad(lambda *x: attention.attention(*x).sum(), argnums=(0, 1, 2))):
        memory = jax.jit(function).lower(pixels, pixels, pixels).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 160 * 2**20


def test_image_vector_equals_concatenation(x64):
    rng = np.random.default_rng(2)
    feats, vector = rng.standard_normal((2, 5, 6, 8)), rng.standard_normal((2, 1, 1, 3))
    conv = layers.Conv(4, use_bias=True)
    variables = conv.init(jax.random.key(0), feats, vector)
    both = np.concatenate([np.broadcast_to(vector, (2, 5, 6, 3)), feats], -1)
    assert_close(conv.apply(variables, feats, vector), conv.apply(variables, both), 1e-14)


def test_image_level_context_in_blocks(monkeypatch, x64):
    module, rng = ImageLevelContext(nn.relu), np.random.default_rng(3)
    feats = rng.standard_normal((2, 5, 6, 8))
    mask = layers.valid_mask(np.array([[5, 6], [3, 4]]), 5, 6)
    variables = randomised(module.init(jax.random.key(0), feats, False))

    def run(feats):
        return jax.jit(jax.value_and_grad(lambda x: (module.apply(variables, x, False, mask) ** 2).sum()))(feats)

    direct = run(feats)
    monkeypatch.setattr(attention, "MAX_SCORES", 100)
    assert_close(run(feats), direct, 1e-12)


# --- canvases ----------------------------------------------------------------------------------


def on_canvas(images, shape, seed=0):
    """Images at the top left of canvases that are full of garbage, NaN included."""
    rng = np.random.default_rng(seed)
    canvas = np.where(rng.random((len(images), *shape, 3)) < 0.5, np.nan, 1e6)
    for i, image in enumerate(images):
        canvas[i, : image.shape[0], : image.shape[1]] = image
    return canvas, np.array([image.shape[:2] for image in images])


@pytest.mark.parametrize("backbone", slow_if(BACKBONES, DEEP))
def test_canvas_is_invisible(backbone, x64):
    model, variables = network(backbone, shortcut=backbone in ("resnet18", "resnest50"))
    variables = cast(variables, np.float64)
    images = [weights.image(*size).astype(np.float64)[0] for size in ((41, 57), (52, 31))]
    images = images[:1] if backbone in DEEP else images
    forward = jax.jit(lambda variables, x, size: model.apply(variables, x, valid_size=size))
    canvas, sizes = on_canvas(images, (64, 72))
    padded = forward(variables, canvas, sizes)
    for i, image in enumerate(images):
        for name, wanted in forward(variables, image[None], None).items():
            h, w = wanted.shape[1:3]
            assert h == -(-image.shape[0] // (4 if name == "logits" and model.shortcut else 8))
            assert_close(padded[name][i, :h, :w], wanted[0], 1e-10)


@pytest.mark.parametrize("backbone", slow_if(("resnet18", "resnest50", "resnet50"), ("resnet50",)))
def test_canvas_is_invisible_in_training(backbone, x64):
    model, variables = network(backbone)
    variables = cast(variables, np.float64)
    images = weights.image(41, 57, batch=2).astype(np.float64)
    labels = weights.labels(41, 57, 5, batch=2)

    @jax.jit
    def forward(variables, x, size):
        outputs, new = model.apply(
            variables, x, True, size, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        return losses.isnet_losses({name: y[:, :6, :8] for name, y in outputs.items()}, labels), new

    assert_close(forward(variables, *on_canvas(images, (48, 72))), forward(variables, images, None), 1e-9)


def test_prediction_on_a_canvas(x64):
    """Multi-scale and mirrored prediction of images of mixed sizes in one program."""
    model, variables = network("resnet18", num_classes=6, shortcut=True)
    variables = cast(variables, np.float64)
    images = [weights.image(*size).astype(np.float64)[0] for size in ((41, 57), (52, 31))]
    run = jax.jit(
        functools.partial(predict, model, scales=(1.0, 0.75), flip=True, flip_pairs=((1, 2), (4, 5))), static_argnums=2
    )
    canvas, sizes = on_canvas(images, (56, 64))
    padded = run(variables, canvas, (51, 72), valid_size=sizes, output_size=np.array([(50, 70), (33, 40)]))
    for i, (image, (h, w)) in enumerate(zip(images, ((50, 70), (33, 40)))):
        assert_close(padded[i, :h, :w], run(variables, image[None], (h, w))[0], 1e-10)


def test_windows():
    """Windows are averaged where they overlap, and cut at small images."""
    images = np.random.default_rng(4).standard_normal((2, 13, 9, 3)).astype(np.float32)
    run = functools.partial(sliding_window, lambda x, _: x - x.mean((1, 2), keepdims=True), images)
    wanted, count = np.zeros_like(images), np.zeros((13, 9, 1))
    for y in (0, 3, 6, 8):
        for x in (0, 2, 4):
            crop = images[:, y : y + 5, x : x + 5]
            wanted[:, y : y + 5, x : x + 5] += crop - crop.mean((1, 2), keepdims=True)
            count[y : y + 5, x : x + 5] += 1
    assert_close(run((5, 5), (3, 2)), wanted / count, 1e-5)
    assert_close(run((20, 20), (3, 2)), images - images.mean((1, 2), keepdims=True), 1e-5)


# --- devices, precision, recomputation ------------------------------------------------------


@functools.cache
def training_step(devices, remat, shortcut):
    """Losses, gradients and batch statistics in float64 of a batch of 8 split over the devices."""
    model, variables = network("resnet18", shortcut=shortcut, remat=remat)
    variables = cast(variables, np.float64)
    images, labels = weights.image(25, 33, batch=8).astype(np.float64), weights.labels(25, 33, 5, batch=8)

    def loss(params, stats, images, labels):
        outputs, new = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        values = losses.isnet_losses(outputs, labels)
        return values["total"], (values, new["batch_stats"])

    mesh = Mesh(jax.devices()[:devices], "data")
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(jax.grad(loss, has_aux=True), in_shardings=(whole, whole, split, split), out_shardings=whole)
    return jax.device_get(step(variables["params"], variables["batch_stats"], images, labels))


@pytest.mark.parametrize("shortcut", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_eight_devices_equal_one(shortcut, x64):
    assert len(jax.devices()) >= 8
    assert_close(training_step(8, False, shortcut), training_step(1, False, shortcut), 1e-10)


def test_remat_changes_nothing(x64):
    assert_close(training_step(1, True, True), training_step(1, False, True), 1e-10)


def test_bfloat16():
    images, outputs = weights.image(41, 33), {}
    for dtype in ("float32", "bfloat16"):
        model, variables = network("resnet18", dtype=dtype)
        outputs[dtype] = jax.jit(model.apply)(variables, images)["stage1_logits"]
    assert outputs["bfloat16"].dtype == jnp.float32
    assert 0 < np.abs(outputs["bfloat16"] - outputs["float32"]).mean() < 0.05 * outputs["float32"].std()
    fresh = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh["params"])} == {jnp.dtype("float32")}


# --- losses, imports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [4, 32])
def test_cross_entropy_equals_full_resolution(block_rows, monkeypatch, x64):
    monkeypatch.setattr(losses, "BLOCK_ROWS", block_rows)
    rng = np.random.default_rng(5)
    logits, labels = 3 * rng.standard_normal((2, 4, 5, 6)), weights.labels(37, 41, 6, batch=2, ignored=0.3)

    def full(logits):
        x = jax.nn.log_softmax(layers.resize(logits, (37, 41)))
        picked = jnp.take_along_axis(x, np.where(labels == 255, 0, labels)[..., None], -1)[..., 0]
        return -jnp.where(labels != 255, picked, 0).sum()

    (total, count), grads = jax.value_and_grad(losses.resized_cross_entropy, has_aux=True)(logits, labels)
    assert count == (labels != 255).sum()
    assert_close((total, grads), jax.value_and_grad(full)(logits), 1e-12)


def test_losses_of_ignored_labels_are_zero():
    outputs = dict.fromkeys(("auxiliary_logits", "stage1_logits", "logits"), jnp.ones((1, 3, 3, 4)))
    labels = np.full((1, 20, 20), 255)
    values, grads = jax.value_and_grad(lambda outputs: losses.isnet_losses(outputs, labels)["total"])(outputs)
    assert values == 0 and not any(grad.any() for grad in grads.values())


def test_network_needs_no_tensorflow():
    code = (
        "import sys; sys.modules.update(tensorflow=None, tensorflow_datasets=None, grain=None, torch=None)\n"
        "import isnet_jax.models, isnet_jax.losses, isnet_jax.inference, isnet_jax.convert"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --- PyTorch --------------------------------------------------------------------------------


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def test_batch_norm_equals_torch(torch, x64):
    x = np.random.default_rng(6).standard_normal((3, 5, 7, 4)) * 2 + 5
    ours, theirs = layers.BatchNorm(), torch.nn.BatchNorm2d(4).double()
    variables = randomised(ours.init(jax.random.key(0), x, False))
    theirs.load_state_dict(
        {
            name: torch.tensor(np.asarray(value))
            for name, value in (
                ("weight", variables["params"]["scale"]),
                ("bias", variables["params"]["bias"]),
                ("running_mean", variables["batch_stats"]["mean"]),
                ("running_var", variables["batch_stats"]["var"]),
                ("num_batches_tracked", 0),
            )
        }
    )
    for train in (True, False):
        theirs.train(train)
        y, new = ours.apply(variables, x, train, mutable=["batch_stats"])
        wanted = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
        assert_close(y, wanted, 1e-12)
        variables |= new
        assert_close(
            dict(new["batch_stats"]),
            {"mean": theirs.running_mean.numpy(), "num_batches_tracked": 1, "var": theirs.running_var.numpy()},
            1e-12,
        )


@pytest.mark.parametrize("shape", [(23, 31), (5, 4), (9, 13), (17, 6), (9, 40)])
def test_resize_equals_torch(shape, torch, x64):
    x = np.random.default_rng(7).standard_normal((2, 9, 13, 3))
    interpolate = functools.partial(
        torch.nn.functional.interpolate, torch.tensor(x.transpose(0, 3, 1, 2)), mode="bilinear", align_corners=False
    )
    assert_close(layers.resize(x, shape), interpolate(size=shape).numpy().transpose(0, 2, 3, 1), 1e-12)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.1, 1.25, 1.75])
def test_rescale_equals_torch(scale, torch, x64):
    x = np.random.default_rng(8).standard_normal((1, 29, 23, 3))
    wanted = (
        torch.nn.functional.interpolate(
            torch.tensor(x.transpose(0, 3, 1, 2)), scale_factor=scale, mode="bilinear", align_corners=False
        )
        .numpy()
        .transpose(0, 2, 3, 1)
    )
    assert_close(rescale(x, scale)[0], wanted, 1e-12)
    padded, size = rescale(
        np.pad(x, ((0, 0), (0, 4), (0, 9), (0, 0)), constant_values=np.nan), scale, np.array([[29, 23]])
    )
    assert tuple(size[0]) == wanted.shape[1:3]
    assert_close(padded[:, : size[0, 0], : size[0, 1]], wanted, 1e-12)


@pytest.mark.parametrize("backbone", slow_if(("resnet34", *DEEP), DEEP))
def test_other_depths_equal_torch(backbone, torch, x64):
    oracle = load_module(Path(__file__).parents[1] / "benchmarks" / "torch_isnet.py")
    model, variables = network(backbone)
    net = oracle.ISNet(backbone, 5, dropout=0.0)
    net.load_state_dict(
        {key: torch.from_numpy(np.asarray(value)) for key, value in convert.to_torch(variables, model).items()}
    )
    net.double().eval()
    variables = cast(variables, np.float64)
    # ResNeSt normalises one vector an image: with few images that multiplies rounding errors, block after block
    batch = 8 if backbone.startswith("resnest") else 2
    images, labels = weights.image(33, 41, batch=batch).astype(np.float64), weights.labels(33, 41, 5, batch=batch)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        wanted = [y.numpy().transpose(0, 2, 3, 1) for y in net(x)]
        wanted_losses = oracle.losses(net.train()(x), torch.from_numpy(labels))
    outputs = jax.jit(model.apply)(variables, images)
    assert_close([outputs["logits"], outputs["stage1_logits"]], wanted, 1e-9)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    found = losses.isnet_losses(train(variables, images, rngs={"dropout": jax.random.key(0)})[0], labels)
    assert_close(
        [found[name] for name in ("auxiliary", "stage1", "stage2", "total")],
        [wanted_losses[name].numpy() for name in ("aux", "stage1", "stage2", "total")],
        1e-9,
    )
