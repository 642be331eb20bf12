"""The PyTorch baseline (benchmarks/torch_isnet.py) against the recorded outputs of the official network, and our
network of the depths that have no record against the baseline.
"""

import functools
import json

import jax
import numpy as np
import pytest
from cases import REFERENCE, assert_close, cast, load_module, network, slow_if, weights
from paths import ROOT

from isnet_jax.checkpoints import torch_names
from isnet_jax.models import losses

torch = pytest.importorskip("torch")
torch_isnet = load_module(ROOT / "benchmarks" / "torch_isnet.py")
torch_fast = pytest.importorskip("benchmarks.torch_fast")

DEEP = ("resnet101", "resnet152", "resnest101", "resnest200")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_case(name):
    """Recorded arrays, meta, and the float64 network with the weights they were recorded under."""
    with np.load(REFERENCE / "cases" / f"{name}.npz") as file:
        case = dict(file)
    meta = json.loads(str(case.pop("meta")))
    lip = meta["dataset"] == "lip"
    net = torch_isnet.ISNet(meta["backbone"], meta["num_classes"], shortcut=lip, leaky_relu=lip, dropout=0.0)
    state = weights.state_dict(REFERENCE / "keys" / f"{meta['backbone']}_{meta['num_classes']}.json", meta["seed"])
    net.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}, strict=True)
    return case, meta, net.double()


def image(meta):
    array = weights.image(meta["height"], meta["width"], meta["seed"], meta["batch"])
    return torch.from_numpy(array).double().permute(0, 3, 1, 2).contiguous()


def error(output, recorded):
    """Largest difference over the spread of the recorded values."""
    recorded = recorded.astype(np.float64)
    output = output.permute(0, 2, 3, 1).numpy()
    assert output.shape == recorded.shape
    return np.abs(output - recorded).max() / recorded.std()


@pytest.mark.parametrize(
    "name",
    [
        "eval_resnet18_19",
        "eval_resnet50_150",
        pytest.param("eval_resnet101_20", marks=pytest.mark.slow),
        pytest.param("eval_resnest50_182", marks=pytest.mark.slow),
    ],
)
def test_eval_matches_official(name):
    case, meta, net = load_case(name)
    net.eval()
    seen = {}
    for key, module in (("feats", net.bottleneck), ("image_context", net.ilc_net), ("semantic_context", net.slc_net)):
        module.register_forward_hook(lambda _, __, output, key=key: seen.update({key: output[:, :32]}))
    net.backbone_net.register_forward_hook(lambda _, __, output: seen.update(stages=output))
    with torch.no_grad():
        seen["logits"], seen["stage1_logits"] = net(image(meta))

    means = [stage.abs().mean().item() for stage in seen.pop("stages")]
    np.testing.assert_allclose(means, case["backbone_mean_abs"], rtol=1e-8)
    errors = {key: error(output, case[key]) for key, output in seen.items()}
    print(name, errors)
    assert max(errors.values()) <= 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "train_resnet18_19",
        pytest.param("train_resnet50_150", marks=pytest.mark.slow),
        pytest.param("train_resnest50_20", marks=pytest.mark.slow),
    ],
)
def test_first_training_step_matches_official(name):
    case, meta, net = load_case(name)
    net.train()
    labels = weights.labels(meta["height"], meta["width"], meta["num_classes"], meta["seed"], meta["batch"])
    found = torch_isnet.losses(net(image(meta)), torch.from_numpy(labels))
    found["total"].backward()

    values = [found[key].item() for key in ("aux", "stage1", "stage2", "total")]
    loss_error = np.abs(values / case["losses"][0] - 1).max()

    norms = {key: parameter.grad.norm().item() for key, parameter in net.named_parameters()}
    assert set(norms) == set(case["grad_names"])
    gradients = np.array([norms[key] for key in case["grad_names"]])
    recorded = case["grad_norms"]
    noise = 1e-9  # of gradients that are zero in theory: biases before a batch norm
    grad_error = (np.abs(gradients - recorded) / (recorded + noise / 1e-8)).max()

    buffers = dict(net.named_buffers())
    means = np.array([buffers[key].mean().item() for key in case["bn_names"]])
    stds = np.array([buffers[key].std().item() for key in case["bn_names"]])
    norm_error = max(np.abs(means - case["bn_means"]).max(), np.abs(stds - case["bn_stds"]).max())
    print(name, {"losses": loss_error, "gradients": grad_error, "running statistics": norm_error})
    assert loss_error <= 1e-8
    assert grad_error <= 1e-8
    assert norm_error <= 1e-8


@pytest.mark.parametrize("name", sorted(torch_isnet.BACKBONES))
def test_backbones_have_stride_eight(name):
    with torch.device("meta"):
        stages = torch_isnet.Backbone(name).eval()(torch.zeros(1, 3, 97, 65))
    sizes = [(25, 17), (13, 9), (13, 9), (13, 9)]
    base = 64 if name in ("resnet18", "resnet34") else 256
    assert [tuple(stage.shape) for stage in stages] == [(1, base * 2**i, *size) for i, size in enumerate(sizes)]


def assert_equals_torch(backbone, **fields):
    """Outputs and losses in float64; `fields` are of both networks."""
    model, variables = network(backbone, **fields)
    net = torch_isnet.ISNet(backbone, 5, dropout=0.0, **fields)
    net.load_state_dict(
        {key: torch.from_numpy(np.asarray(value)) for key, value in torch_names.to_torch(variables, model).items()}
    )
    net.double().eval()
    variables = cast(variables, np.float64)
    # ResNeSt normalises one vector an image: with few images that multiplies rounding errors, block after block
    batch = 8 if backbone.startswith("resnest") else 2
    images, labels = weights.image(33, 41, batch=batch).astype(np.float64), weights.labels(33, 41, 5, batch=batch)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        wanted = [y.numpy().transpose(0, 2, 3, 1) for y in net(x)]
        wanted_losses = torch_isnet.losses(net.train()(x), torch.from_numpy(labels))
    outputs = jax.jit(model.apply)(variables, images)
    assert_close([outputs["logits"], outputs["stage1_logits"]], wanted, 1e-9)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    found = losses.isnet_losses(train(variables, images, rngs={"dropout": jax.random.key(0)})[0], labels)
    assert_close(
        [found[name] for name in ("auxiliary", "stage1", "stage2", "total")],
        [wanted_losses[name].numpy() for name in ("aux", "stage1", "stage2", "total")],
        1e-9,
    )


@pytest.mark.parametrize("backbone", slow_if(("resnet34", *DEEP), DEEP))
def test_isnet_of_other_depths_equals_torch(backbone, x64):
    assert_equals_torch(backbone)


@pytest.mark.parametrize("image_level, semantic_level", [(False, True), (True, False), (False, False)])
def test_isnet_without_context_modules_equals_torch(image_level, semantic_level, x64):
    """Their parameters are absent, in both frameworks: the state dict is loaded strictly."""
    assert_equals_torch("resnet18", image_level_context=image_level, semantic_level_context=semantic_level)


@pytest.mark.parametrize("train", [True, False])
def test_fast_network_computes_the_same(train):
    """benchmarks/torch_fast.py, to which benchmarks.compare_torch compares: outputs, gradients, running statistics."""
    nets = []
    for module in (torch_isnet, torch_fast):
        net = module.ISNet("resnet18", 5, dropout=0.0)
        net.load_state_dict(
            {name: torch.from_numpy(weights.tensor(name, tuple(x.shape))) for name, x in net.state_dict().items()}
        )
        nets.append(net.double().train(train))
    images = torch.from_numpy(weights.image(33, 41, batch=2).transpose(0, 3, 1, 2).copy()).double()
    labels = torch.from_numpy(weights.labels(33, 41, 5, batch=2))
    outputs = [net(images) for net in nets]
    if not train:
        outputs = [dict(zip(("stage2", "stage1"), pair)) for pair in outputs]
    for name, wanted in outputs[0].items():
        assert (outputs[1][name] - wanted).abs().max() <= 1e-9 * wanted.abs().max(), name
    if train:
        for output in outputs:
            torch_isnet.losses(output, labels)["total"].backward()
        for (name, parameter), fast in zip(nets[0].named_parameters(), nets[1].parameters()):
            assert (fast.grad - parameter.grad).norm() <= 1e-8 * max(parameter.grad.norm(), 1e-3), name
        for (name, buffer), fast in zip(nets[0].named_buffers(), nets[1].buffers()):
            assert (fast - buffer).abs().max() <= 1e-9 * max(buffer.abs().max(), 1), name
