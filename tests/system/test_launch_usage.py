"""Usage, command-line mistakes and shellcheck of all launch scripts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch_sandbox import CONFIG, GKE_APPLY, GKE_SLICE, LAUNCH, TPU
from paths import ROOT

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    result = subprocess.run(
        [SHELLCHECK, *SCRIPTS, ROOT / "tests/wheel.sh"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "script, title",
    [
        ("single_host.sh", "Trains on the GPUs of this host"),
        ("local_processes.sh", "Runs one command as several"),
        ("slurm.sbatch", "Trains under Slurm"),
        ("tpu_vm.sh", "Trains on Cloud TPU VMs"),
        ("gke_jobset.sh", "Trains on Google Kubernetes Engine"),
    ],
)
def test_launch_without_arguments_prints_usage(sandbox, script, title):
    result = sandbox.run(script)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.startswith(title)
    assert f"launch/{script}" in result.stderr and "--dry-run" in result.stderr and "set -euo" not in result.stderr


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("single_host.sh", ["--gpus=0"], "--config=FILE is missing"),
        ("single_host.sh", [CONFIG, "--gpu=0"], "unknown flag --gpu=0"),
        ("single_host.sh", ["--config=configs/none.py"], "configs/none.py does not exist"),
        ("local_processes.sh", [CONFIG], "the number of processes is missing"),
        ("local_processes.sh", ["--processes=two", CONFIG], "--processes=two must be a positive integer"),
        ("local_processes.sh", ["--processes=2", "--gpus=0,1", CONFIG], "leave out --processes"),
        ("slurm.sbatch", [CONFIG, "--nodes=2"], "unknown flag --nodes=2"),
        ("tpu_vm.sh", ["destroy", *TPU], "unknown action destroy"),
        ("tpu_vm.sh", ["create", "--zone=us-west4-a"], "the name of the TPU is missing"),
        (
            "tpu_vm.sh",
            ["create", *TPU[:2]],
            "the accelerator type, which sets the TPU's generation and size, is missing",
        ),
        ("tpu_vm.sh", ["run", *TPU[:3], CONFIG], "the bucket is missing"),
        ("tpu_vm.sh", ["run", *TPU, "--config=elsewhere.py"], "the config must be in configs/"),
        ("tpu_vm.sh", ["run", *TPU, CONFIG, "--sopt"], "unknown flag --sopt"),
        ("tpu_vm.sh", ["delete", *TPU, CONFIG], "delete takes no --config"),
        ("gke_jobset.sh", ["apply", "--name=ISNet"], "lower-case"),
        ("gke_jobset.sh", [*GKE_APPLY, CONFIG], "give the hardware"),
        ("gke_jobset.sh", [*GKE_APPLY, CONFIG, *GKE_SLICE, "--hosts=4"], "give the hardware"),
        ("gke_jobset.sh", [*GKE_APPLY, CONFIG, GKE_SLICE[0], "--topology=16"], "--topology=16 must give"),
        ("gke_jobset.sh", [*GKE_APPLY, CONFIG, *GKE_SLICE, "--chips-per-host=3"], "the 16 chips"),
        ("gke_jobset.sh", [*GKE_APPLY, *GKE_SLICE, CONFIG, "--workdir=a\nb"], "a line break"),
    ],
)
def test_launch_reports_mistakes_before_running_anything(sandbox, script, arguments, message):
    result = sandbox.run(script, *arguments)
    assert result.returncode == 2 and result.stdout == "" and sandbox.calls() == sandbox.commands() == []
    paragraph, usage = result.stderr.split("\n\n", 1)
    assert message in " ".join(paragraph.split()) and usage.startswith(("Trains", "Runs"))
    assert max(map(len, paragraph.splitlines())) <= 110
