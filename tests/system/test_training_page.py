"""The commands of docs/training.md that show what people do, run as they stand, on a tiny data set."""

import functools
import re
import shlex

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from small_run import FIELDS, run_inside, unwrapped

from isnet_jax.models import isnet, resnet
from isnet_jax.runtime import compiler

QUICK = {  # to compile; no command of the page is about it
    "augment.photometric": False,
    "model.image_level_context": False,
    "model.semantic_level_context": False,
}
SIZES = {**FIELDS, **QUICK, "train.epochs": 1, "run.num_pictures": 1, "test.resize": ()}


def commands():
    """{heading: commands} of the section: one, but for the sweep, whose loop is taken apart."""
    section = re.search("six:begin -->(.*)<!-- six:end", (ROOT / "docs/training.md").read_text(), re.DOTALL)[1]
    found = {}
    for heading, line in re.findall(r"\*\*([^*]*)\*\*[^*]*?\n\n    ([^\n]*)\n", section):
        loop = re.fullmatch(r"for lr in (.*?); do (.*); done", line)
        values = loop[1].split() if loop else [""]
        found[heading] = [shlex.split((loop[2] if loop else line).replace("$lr", value)) for value in values]
    return found


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """What configs/own_folder.py describes: three classes, 8 images to train and 2 to evaluate."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for kind, shape in (("images", (48, 64, 3)), ("labels", (48, 64))):
            (folder / kind / split).mkdir(parents=True)
            for i in range(count):
                array = rng.integers(0, 256 if kind == "images" else 3, shape, np.uint8)
                Image.fromarray(array).save(folder / kind / split / f"{i}.png")
    return folder


@pytest.fixture
def quick_compilation(monkeypatch, tiny_network, one_device):
    """Networks of one block a stage, whose programs are not optimised: there are fifteen of them."""
    monkeypatch.setitem(isnet.BACKBONES, "resnet18", functools.partial(resnet.ResNet, resnet.BasicBlock, (1, 1, 1, 1)))
    monkeypatch.setattr(compiler, "options", lambda _: {"xla_backend_optimization_level": 0})


def test_the_commands_of_the_page_run(tmp_path, camvid, own_folder, quick_compilation):
    """In the order of the page, but own data first: fine-tuning starts from that run, which has other classes."""
    page = commands()
    assert [len(found) for found in page.values()] == [1, 1, 1, 1, 1, 3]

    def run(heading, **more):
        command = page[heading][-1]
        assert command[:3] == ["python", "-m", "isnet_jax.main"] and command[3].startswith("--config=configs/")
        own = "own_folder" in command[3]
        places = {"=DIR": f"={own_folder if own else camvid[0]}", "=RUN": f"={tmp_path}/runs/own_folder-resnet18"}
        recipe, *args = [re.sub("=(DIR|RUN)$", lambda match: places[match[0]], word) for word in command[3:]]
        given = {word.split("=")[0].removeprefix("--config.") for word in args} - set(more)
        sizes = SIZES | {"data.data_dir": tmp_path / "own" if own else camvid[1]} | more
        flags = [f"--config.{name}={value}" for name, value in sizes.items() if name not in given]
        recipe = recipe.replace("configs/", f"{ROOT}/configs/") + ":resnet18"
        code, out, err = run_inside(recipe, *args, *flags, cwd=tmp_path)
        assert code == 0, err
        return unwrapped(out)

    assert "best miou: " in run("Train on your own images")
    assert "stage2_classifier (3 classes there, 11 here)" in run("Fine-tune")
    assert "train.epochs 1 2" in run("Resume with changes", **{"train.epochs": 2})
    assert "class weights: sky " in run("Weight rare classes")
    assert "bfloat16" in run("Train on a small GPU")
    assert run("Sweep") and (tmp_path / "runs/sweep/0.02/results.json").is_file()
    ends = [(command[-2].split("=")[1], command[-1].split("/")[-1]) for command in page["Sweep"]]
    assert ends == [(lr, lr) for lr in ("0.005", "0.01", "0.02")]
