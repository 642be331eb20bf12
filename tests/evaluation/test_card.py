"""Model cards: they say what is recorded, nothing else, and replace no text of others."""

import json
import re

import numpy as np
import pytest
from small_evaluation import NAMES, write_evaluation
from small_run import run_inside, unwrapped

from isnet_jax import config as configs
from isnet_jax.checkpoints import manager
from isnet_jax.checkpoints.manager import Checkpoints, save_variables
from isnet_jax.errors import UserError
from isnet_jax.evaluation import card
from isnet_jax.evaluation.boundary import CONVENTION

VARIABLES = {"params": {"a": np.zeros((3, 4), np.float32)}, "batch_stats": {}}
STEP = 7
HOSTILE = '<script>alert(1)</script> | [x](http://y) `z`\n---\n# \x1b[2J "q": {}'


def a_config(data="cityscapes", backbone="resnet50"):
    c = configs.default(backbone)
    c.model.num_classes, c.data.name = len(NAMES), data
    c.train.pretrained = "/home/somebody/weights/resnet50c.pth"
    return c


@pytest.fixture
def run(tmp_path):
    """A run at step 7, with two evaluations of that step and one of another."""
    directory = tmp_path / "run"
    with Checkpoints(directory, a_config().to_dict() | {"train_examples": 18}) as checkpoints:
        checkpoints.save(STEP, VARIABLES)
        checkpoints.wait()
    truth = [np.array([[0, 0, 1, 2]], np.uint8), np.array([[0, 1, 1, 255]], np.uint8)]
    found = [np.array([[0, 1, 1, 2]], np.uint8), np.array([[0, 1, 1, 0]], np.uint8)]
    facts = {"checkpoint": str(directory), "step": STEP, "boundary_iou": {"convention": CONVENTION}}
    write_evaluation(directory / "evaluation-single", ["x", "y"], truth, found, **facts)
    write_evaluation(directory / "evaluation-old", ["x"], truth[:1], truth[:1], **facts | {"step": 3})
    write_evaluation(directory / "evaluation-ema", ["x"], truth[:1], truth[:1], **facts, ema=True)
    return directory


def card_of(path, license=None, **more):
    origin = card.Origin(str(path), path, card.recorded_step(path), **more)
    return card.render(manager.recorded_config(path), VARIABLES, origin, 'isnet_jax.load("x")', license)


def front_matter(text):
    """What huggingface_hub reads of a card."""
    return pytest.importorskip("huggingface_hub").ModelCard(text).data


def test_card_states_what_a_run_records(run, capsys):
    text = card_of(run, "mit")
    assert "Weights from run, a training run, at step 7." in text
    assert "- Training: split train, 18 images" in text and "- Classes: 0 class 0, 1 class 1" in text
    assert "- Starting weights: resnet50c.pth" in text and "/home" not in text and str(run) not in text
    assert "the official cityscapes:resnet50, except for:" in text and "  - train.epochs: 1 (official: 440)" in text
    hit = {"road": 2 / 3, "sky": 3 / 4, "car": 1.0}  # of 3, 4 and 1 pixels in prediction or ground truth
    miou = f"{100 * np.mean(list(hit.values())):.2f}"
    assert f"| val | 2 | whole images, scales 1.0, no flips | {miou} |" in text
    assert text.count("| val |") == 1 and capsys.readouterr().out.count("of other weights, and is left out") == 2
    data = front_matter(text)
    assert (data.library_name, data.pipeline_tag, data.license) == ("isnet_jax", "image-segmentation", "mit")
    [result] = data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == ("cityscapes", "val", "mean_iou")
    assert f"{result.metric_value:.2f}" == miou


def test_card_of_averages_takes_their_scores_alone(run):
    assert "| val | 1 | whole images" in (text := card_of(run, ema=True)) and "Moving averages" in text


def test_card_takes_the_last_scores_of_a_run_that_was_not_evaluated(run):
    for name in "single", "ema":
        (run / f"evaluation-{name}/images.npz").unlink()
    scores = {"miou": 51.25, "mean_accuracy": None, "pixel_accuracy": 80}
    for step, is_there in (STEP, True), (3, False):
        (run / "results.json").write_text(json.dumps({"step": step, "weights": scores}))
        row = "| val | not recorded | at the end of the training, one scale, no flips | 51.25 | n/a | 80.00 |"
        assert (row in (text := card_of(run))) == is_there != ("no evaluation of these weights was found" in text)


def test_card_of_a_converted_file_says_what_is_unknown(tmp_path):
    save_variables(tmp_path / "c", a_config("ade20k"), VARIABLES, "/home/somebody/x.pth", ["stage1_classifier"])
    text = card_of(tmp_path / "c")
    assert text.count("not recorded") >= 4 and "no evaluation of these weights" in text and "somebody" not in text
    assert "**Not trained:** stage1_classifier. What these weights come from did not hold them" in text
    assert front_matter(text).license is None and "\n# license: FILL IN" in text


def test_hostile_texts_stay_texts(tmp_path):
    c = a_config("folder")
    c.data.folder.name, c.data.folder.classes = HOSTILE, (HOSTILE, *NAMES[1:])
    c.data.folder.splits = {"train": ("i", "l")}
    text = card.render(c, VARIABLES, card.Origin(HOSTILE, tmp_path / "x"), 'isnet_jax.load("x")', None)
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[x\]|^# \\x1b|\x1b", text, re.M) and "\\<script\\>" in text
    assert [line for line in text.splitlines() if line == "---"] == ["---", "---"]


def test_only_own_unchanged_cards_are_replaced(tmp_path, run, capsys):
    first, second = card_of(run), card_of(run, "mit")
    card.write(tmp_path / "model.pth", first)
    assert "model.pth.md; fill in the line of its license" in capsys.readouterr().out
    path = tmp_path / "model.pth.md"
    card.write(tmp_path / "model.pth", second)
    assert path.read_text() == second
    for other in second.replace("mit", "apache-2.0"), "my notes", "", first[:-1], "\udcff":
        path.write_text(other, errors="surrogateescape")
        before = path.read_bytes()
        card.write(tmp_path / "model.pth", first)
        assert path.read_bytes() == before and "is kept; delete it" in capsys.readouterr().out
    card.write(run, first)
    assert (run / "README.md").read_text() == first


def test_card_in_place_of_a_directory_is_not_written(tmp_path, run, capsys):
    (tmp_path / "m.onnx.md").mkdir()
    card.write(tmp_path / "m.onnx", card_of(run))
    assert "is kept" in capsys.readouterr().out


@pytest.mark.parametrize("license", ["MIT", "", "a b", "mit\nx: y", "-", "x" * 65])
def test_licenses_are_identifiers(license):
    with pytest.raises(UserError, match="no identifier of the Hugging Face Hub"):
        card.check_license(license)


@pytest.mark.parametrize("module", ["convert", "export"])
def test_commands_refuse_a_license_before_any_work(tmp_path, module):
    flags = {
        "convert": ("--config=ade20k", "--input=x.pth", f"--output={tmp_path / 'o'}"),
        "export": ("--checkpoint=x.pth", "--format=onnx", f"--output={tmp_path / 'o.onnx'}"),
    }
    code, _, err = run_inside(*flags[module], "--license=My License", module=module)
    assert code == 1 and "is no identifier" in unwrapped(err) and not list(tmp_path.iterdir())
