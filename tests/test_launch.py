"""What launch/ would run."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "launch" / "single_host.sh"
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_dry_run_prints_the_command_quoted():
    done = run("--dry-run", "--gpus=0,1", "--config=configs/ade20k.py:resnet101", "--workdir=my runs/a")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("CUDA_VISIBLE_DEVICES=0\\,1 ")
    assert done.stdout.split("python", 1)[1].strip().removeprefix("3").strip() == (
        "-m isnet_jax.main --config=configs/ade20k.py:resnet101 --workdir=my\\ runs/a")
    assert "CUDA" not in run("--dry-run", "--config=x.py").stdout


def test_without_arguments_it_shows_its_usage():
    done = run()
    assert done.returncode == 2 and "launch/single_host.sh [--dry-run]" in done.stderr and done.stdout == ""


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck():
    done = subprocess.run([SHELLCHECK, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
