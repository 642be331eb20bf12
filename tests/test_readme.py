"""The generated parts of README.md."""

import pytest
from paths import ROOT

from isnet_jax.evaluation.published import RESULTS


@pytest.fixture(autouse=True)
def importable_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def test_readme_has_the_table_of_published_results():
    from benchmarks.docs import replace_section
    from benchmarks.readme import recipes_table

    text = (ROOT / "README.md").read_text()
    assert replace_section(text, "recipes", recipes_table()) == text, "run python -m benchmarks.readme recipes"


def test_recipes_table_has_every_published_result():
    from benchmarks.readme import recipes_table

    _, _, *rows = recipes_table().splitlines()
    cells = [cell for row in rows for cell in row.strip("| ").split(" | ")[1:]]
    assert sorted(cells) == sorted(f"{single:.2f} / {multi:.2f}" for single, multi in RESULTS.values())


def test_quickstart_output_is_the_run_without_the_installation():
    from benchmarks.readme import quickstart_output

    log = f"installing\n  resnet18 ISNet, 8 classes\nstep 1\nTensorBoard events: {ROOT}/runs/quickstart\nbye\n"
    assert quickstart_output(log) == (
        "      resnet18 ISNet, 8 classes\n    step 1\n    TensorBoard events: runs/quickstart"
    )


@pytest.mark.parametrize("text", ["", "<!-- a:begin -->", "<!-- a:end --> <!-- a:begin -->", "<!-- a:begin -->" * 2])
def test_replace_section_requires_both_markers_once(text):
    from benchmarks.docs import replace_section

    with pytest.raises(ValueError, match="the text must have <!-- a:begin --> once and, after it, <!-- a:end --> once"):
        replace_section(text, "a", "new")
