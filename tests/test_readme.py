"""The generated parts of README.md."""

import pytest
from paths import ROOT

from isnet_jax.evaluation.published import RESULTS, table_row


@pytest.fixture(autouse=True)
def importable_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def test_readme_has_the_table_of_recipes():
    from benchmarks.docs import replace_section
    from benchmarks.readme import recipes_table

    text = (ROOT / "README.md").read_text()
    assert replace_section(text, "recipes", recipes_table(text)) == text, "run python -m benchmarks.readme recipes"


def test_recipes_table_has_every_published_result_and_keeps_measured_ones():
    from benchmarks.readme import recipes_table

    _, _, *rows = recipes_table().splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert sorted(cell[1] for cell in cells) == sorted(f"{single:.2f} / {tta:.2f}" for single, tta in RESULTS.values())
    assert {cell[2] for cell in cells} == {"- / -"}
    measured = table_row("ade20k", "resnet101", {"single": 45.913})
    assert measured == "| ADE20K val, ResNet-101 | 45.92 / 47.29 | 45.91 / - |"
    text = recipes_table().replace(table_row("ade20k", "resnet101", {}), measured)
    assert recipes_table(text) == text != recipes_table()


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
