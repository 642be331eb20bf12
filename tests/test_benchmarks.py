"""Benchmarks as a user types them, at toy size; what they compute elsewhere is tested with the code that they time."""

import argparse
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT


def run(module, *words):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_exponents_are_slopes_of_logarithms():
    from benchmarks import growth

    points = [(n, 3.0 * n**1.5) for n in (1, 2, 8)]
    assert growth.exponent(points) == pytest.approx(1.5)
    assert growth.exponent([(1, 0.0), *points[1:]]) == pytest.approx(1.5)  # what is 0 has no logarithm
    assert growth.exponent([(1, 0.0), (2, 5.0)]) is None


def test_each_section_of_the_performance_page_has_a_part_that_writes_it():
    from benchmarks import performance

    page = (ROOT / "docs/performance.md").read_text()
    sections = re.findall(r"<!-- (\w+):begin -->", page)
    parts = performance.parts(argparse.Namespace(turns=1, ade20k=None, coco_stuff=None))
    assert sorted(sections) == sorted({name for part in parts.values() for name in part.sections})
    for path in performance.RESULTS.glob("*.json"):
        json.loads(path.read_text())
    for picture in re.findall(r"\]\((images/.*?)\)", page):
        assert (ROOT / "docs" / picture).exists()


def test_products_of_a_convolution_agree_in_every_form():
    from benchmarks import products

    results = {}
    for operation, form, function, arguments, _ in products.forms(quick=True):
        kind = operation, form.split(",")[0].replace("'s gradient", "'s")
        results.setdefault(kind, []).append(np.ravel(function(*arguments)))
    for values in results.values():
        for other in values[1:]:
            np.testing.assert_allclose(other, values[0], rtol=1e-3, atol=1e-3)
    assert sorted(map(len, results.values())) == [1, 1, 1, 2, 3]


@pytest.mark.slow
def test_growth_products_and_freezing_run():
    assert "exponent" in run("growth", "--backbone=resnet18", "--quick")
    assert "kernel's gradient" in run("products", "--quick")
    assert "stem to layer4" in run("freezing", "--backbone=resnet18", "--quick")


@pytest.mark.slow
def test_comparison_with_pytorch_proves_equal_work(tmp_path, torch):
    for work in ("train", "forward"):
        words = f"--work={work} --backbone=resnet18 --size=64x64 --classes=5 --turns=1 --json={tmp_path}/x.json".split()
        assert "PyTorch / ours" in run("compare_torch", *words)
        found = json.loads((tmp_path / "x.json").read_text())
        assert found["ratio_loop"] > 0 and found["ratio_fast"] > 0 and found["ours"]["share_of_matrix_rate"] > 0
        assert max(found["difference_loop"], found["difference_fast"]) < 1e-3
