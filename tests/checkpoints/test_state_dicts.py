"""Tests of checkpoints.state_dicts: the weights are found in whatever wraps them, in .pth and .safetensors files."""

import numpy as np
import pytest
from pth_files import FORMATS, torch_save

from isnet_jax.checkpoints import safetensors_file, state_dicts
from isnet_jax.errors import UserError


@pytest.fixture(scope="module")
def weights():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    net(torch.randn(2, 3, 5, 5))
    return net.state_dict()


def assert_weights(found, expected, factor=1):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], factor * value.numpy())


@FORMATS
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "_orig_mod.module.", "net.model."])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"model": sd, "epoch": 3},
        lambda sd: {"state_dict": sd, "model": "resnet50"},
        lambda sd: {"meta": {"text": "x"}, "model_state_dict": sd},
        lambda sd: {"model_state": {"model": sd}},
        lambda sd: {"ema": {"module": sd, "updates": 5}},
        lambda sd: {"model_ema": {**sd, "n_averaged": sd["1.num_batches_tracked"]}} if "0.weight" in sd else sd,
    ],
)
def test_read_finds_the_weights(tmp_path, weights, zipped, wrap, prefix):
    prefixed = {prefix + name: value for name, value in weights.items()}
    assert_weights(state_dicts.read(torch_save(wrap(prefixed), tmp_path / "a.pth", zipped)), weights)


@pytest.mark.parametrize(
    "keys, taken",
    [
        (("model", "model_ema"), "model"),
        (("ema", "state_dict"), "state_dict"),
        (("state_dict_ema", "state_dict"), "state_dict"),
    ],
)
def test_read_prefers_plain_weights_and_says_so(tmp_path, capsys, weights, keys, taken):
    content = {key: {name: (1 if key == taken else 2) * value for name, value in weights.items()} for key in keys}
    assert_weights(state_dicts.read(torch_save(content, tmp_path / "a.pth", True)), weights)
    (other,) = set(keys) - {taken}
    assert f"the weights at {taken} are taken; there are others at {other}" in capsys.readouterr().out


def test_read_says_that_weights_are_averages(tmp_path, capsys, weights):
    torch_save({"ema": weights}, tmp_path / "a.pth", True)
    state_dicts.read(tmp_path / "a.pth")
    assert "moving averages at ema; there are no others" in capsys.readouterr().out
    torch_save({"model": weights}, tmp_path / "a.pth", True)
    state_dicts.read(tmp_path / "a.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content, pattern",
    [
        ({"model": {"lr": 0.1}}, "not a float at 'lr' in 'model'"),
        ({i: 0 for i in range(9)}, "a int at '4', ..."),
        ({"optimizer": {"state": {0: {"momentum": 1}}}}, "a dict at 'optimizer'"),
    ],
)
def test_read_says_what_a_file_holds_instead(tmp_path, content, pattern):
    torch_save(content, tmp_path / "a.pth", True)
    with pytest.raises(UserError, match=f"holds no network weights.*{pattern}"):
        state_dicts.read(tmp_path / "a.pth")


def test_read_names_the_skipped_module(tmp_path):
    torch = pytest.importorskip("torch")
    torch_save({"model": torch.nn.Linear(1, 1), "epoch": 1}, tmp_path / "a.pth", True)
    with pytest.raises(UserError, match=r"a 'torch.nn.modules.linear.Linear' at 'model'.*Save model.state_dict\(\)"):
        state_dicts.read(tmp_path / "a.pth")


def test_read_is_quick_on_wrappers_that_share_their_content(tmp_path):
    """Few objects with 2^60 paths between them, and names of a million prefixes."""
    shared = {"n": 1}
    for _ in range(60):
        shared = {key: shared for key in (*state_dicts.WRAPPERS, *state_dicts.AVERAGES)}
    assert list(state_dicts._candidates(shared, (), set())) == []
    safetensors_file.write(tmp_path / "a.safetensors", {"module." * 100_000: np.ones(2)})
    assert len(state_dicts.read(tmp_path / "a.safetensors")) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64"])
def test_safetensors_agree_with_pth(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {"module.a": torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)), "module.b": torch.tensor(3)}
    save_file(tensors, tmp_path / "weights.bin")  # known by its content
    torch_save(tensors, tmp_path / "weights.pth", True)
    found, expected = (state_dicts.read(tmp_path / name) for name in ("weights.bin", "weights.pth"))
    assert set(found) == {"a", "b"}
    for name in found:
        assert found[name].dtype == expected[name].dtype and found[name].shape == expected[name].shape
        np.testing.assert_array_equal(found[name].astype(float), expected[name].astype(float))


def test_safetensors_are_written_for_pytorch(tmp_path):
    load_file = pytest.importorskip("safetensors.torch", exc_type=ImportError).load_file
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.zeros((), np.int64)}
    safetensors_file.write(tmp_path / "a.safetensors", arrays)
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])
        assert tuple(tensor.shape) == arrays[name].shape


@pytest.mark.parametrize(
    "content, pattern",
    [
        (b"", "EOF|header|Error"),
        (b"\xff" * 16, "its header is longer"),
        (b"\x02\0\0\0\0\0\0\0{}junk", "not fully covered"),
        (b"\x40" + bytes(7) + b'{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}' + bytes(4), "."),
    ],
)
def test_load_refuses_damaged_safetensors(tmp_path, content, pattern):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"Cannot read the checkpoint .*{pattern}"):
        state_dicts.read(path)


def test_load_refuses_numbers_of_other_kinds(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="numbers of the kind F8_E4M3"):
        state_dicts.read(tmp_path / "a.safetensors")


def test_read_reports_missing_files(tmp_path):
    for name in "a.safetensors", "a.pth":
        with pytest.raises(UserError, match=f"Cannot read the checkpoint .*{name}"):
            state_dicts.read(tmp_path / name)
