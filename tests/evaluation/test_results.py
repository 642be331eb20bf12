"""Where `report` and `compare` look for an evaluation, and what they say if there is none, or more than one."""

import json

import numpy as np
import pytest
from small_evaluation import write_evaluation
from small_run import run_inside, unwrapped

from isnet_jax.errors import UserError
from isnet_jax.evaluation import results


@pytest.fixture
def workdir(tmp_path):
    """The workdir of a training run that was not evaluated, below a directory [1] of runs."""
    workdir = tmp_path / "[1]" / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    (workdir / "results.json").write_text(json.dumps({"step": 6, "weights": {"miou": None}}))
    return workdir


def evaluation(directory):
    labels = [np.arange(12).reshape(3, 4) % 3]
    return write_evaluation(directory, ["x"], labels, labels)


def test_evaluation_of_a_run_is_found_and_named(workdir, capsys):
    single = evaluation(workdir / "evaluation-single")
    assert results.find(single) == single and capsys.readouterr().out == ""
    for directory in workdir, workdir.parent, workdir.parent.parent:
        assert results.find(directory) == single
        assert capsys.readouterr().out == f"the evaluation in {directory}: {single}\n"


@pytest.mark.parametrize("module", ["compare", "report"])
def test_commands_take_the_workdir_of_an_evaluated_run(workdir, module):
    single = evaluation(workdir / "evaluation-single")
    code, out, err = run_inside(workdir, module=module, cwd=workdir)
    assert (code, err) == (0, "") and f"the evaluation in {workdir}: {single}" in out
    assert (single / "report.html").exists() == (module == "report")


def test_find_lists_up_to_ten_evaluations(workdir):
    found = [evaluation(workdir / f"evaluation-{i:02d}") for i in range(2)]
    with pytest.raises(UserError) as error:
        results.find(workdir)
    assert str(error.value) == f"{workdir} holds 2 evaluations; name one of them: {found[0]}, {found[1]}."
    for i in range(2, 12):
        evaluation(workdir / f"evaluation-{i:02d}")
    with pytest.raises(UserError, match=r"holds 12 evaluations.*evaluation-09, \.\.\.\.$"):
        results.find(workdir)


@pytest.mark.parametrize("module", ["compare", "report"])
def test_commands_say_how_to_evaluate(workdir, tmp_path, module):
    for directory, message in {
        workdir: "is not the results.json of an evaluation (missing: dataset",
        workdir / "checkpoints": "holds no evaluation (results.json beside images.npz), nor does a directory below it",
        tmp_path / "nowhere": "is not a directory",
    }.items():
        code, _, err = run_inside(directory, module=module, cwd=tmp_path)
        assert code == 1 and "python -m isnet_jax.evaluate --config=FILE --checkpoint=DIR writes one" in unwrapped(err)
        assert message in unwrapped(err) and "Traceback" not in err


def test_find_follows_no_links_and_looks_four_levels_deep(workdir, tmp_path):
    elsewhere = evaluation(tmp_path / "elsewhere" / "evaluation")
    (workdir / "link").symlink_to(elsewhere)
    evaluation(workdir / "a/b/c/d/too-deep")
    deepest = evaluation(workdir / "a/b/c/evaluation")
    assert results.find(workdir) == deepest
