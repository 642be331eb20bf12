"""The PyTorch baseline (benchmarks/torch_isnet.py) against the recorded outputs of the official network."""

import importlib.util
import json

import numpy as np
import pytest
from paths import ROOT

torch = pytest.importorskip("torch")

REFERENCE = ROOT / "tests" / "reference"


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


torch_isnet = load_module(ROOT / "benchmarks" / "torch_isnet.py")
weights = load_module(REFERENCE / "weights.py")


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
    losses = torch_isnet.losses(net(image(meta)), torch.from_numpy(labels))
    losses["total"].backward()

    values = [losses[key].item() for key in ("aux", "stage1", "stage2", "total")]
    loss_error = np.abs(values / case["losses"][0] - 1).max()

    norms = {key: parameter.grad.norm().item() for key, parameter in net.named_parameters()}
    assert set(norms) == set(case["grad_names"])
    found = np.array([norms[key] for key in case["grad_names"]])
    recorded = case["grad_norms"]
    noise = 1e-9  # of gradients that are zero in theory: biases before a batch norm
    grad_error = (np.abs(found - recorded) / (recorded + noise / 1e-8)).max()

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
