"""launch/slurm.sbatch and launch/slurm_task.sh."""

import os
import shutil
import signal
import time

import pytest
from launch_sandbox import CONFIG, LAUNCH, TRICKY_FLAG, parse_commands

TWO_TASKS = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "4"}


def submit(sandbox, *arguments, **variables):
    """Runs the script as Slurm does: a copy under another name, told the directory of the submission."""
    spool = sandbox.root / "launch" / "spool"
    spool.mkdir(exist_ok=True)
    shutil.copy(LAUNCH / "slurm.sbatch", spool / "slurm_script")
    slurm = {"SLURM_SUBMIT_DIR": str(sandbox.root), "SLURM_JOB_ID": "17"}
    return sandbox.run("spool/slurm_script", *arguments, **slurm, **variables)


@pytest.mark.parametrize(
    "codes, code, requeued",
    [
        ("0 0", 0, False),
        ("75 75", 75, True),
        ("75 1", 1, False),
        ("134 75", 134, True),
        ("137 75", 137, True),
        ("139 75", 139, False),
    ],
)
def test_slurm_requeues_stopped_and_killed_jobs(sandbox, codes, code, requeued):
    sandbox.set_answers(**{f"process_{i}": [task_code] for i, task_code in enumerate(codes.split())})
    dry_run = sandbox.run("slurm.sbatch", "--dry-run", CONFIG, TRICKY_FLAG, **TWO_TASKS)
    result = submit(sandbox, CONFIG, TRICKY_FLAG, **TWO_TASKS)
    assert result.returncode == code
    srun, *others = sandbox.calls()
    command = [".venv/bin/python", "-m", "isnet_jax.main", CONFIG, TRICKY_FLAG]
    assert srun == ["srun", "--kill-on-bad-exit=0", "--cpus-per-task=4", "launch/slurm_task.sh", *command]
    assert parse_commands(dry_run.stdout) == [srun]
    assert sandbox.commands() == [["python", *srun[5:]]] * 2
    assert others == ([["scontrol", "requeue", "17"]] if requeued else [])


def test_slurm_reports_wrong_submissions(sandbox):
    one_task = TWO_TASKS | {"SLURM_NTASKS_PER_NODE": "1"}
    result = submit(sandbox, CONFIG, **one_task)
    assert result.returncode == 2 and "each node has 2 GPUs and 1 tasks" in result.stderr
    assert "sbatch --nodes=2" in result.stderr
    result = sandbox.run("slurm.sbatch", CONFIG, SLURM_SUBMIT_DIR="/")
    assert result.returncode == 2 and "/ is not the repository's root" in result.stderr
    directives = [line for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@120", "#SBATCH --open-mode=append"} < set(directives)


def test_slurm_task_survives_the_signal_to_its_command(sandbox):
    sandbox.set_answers(process_0=["wait"])
    process = sandbox.start("slurm_task.sh", sandbox.root / ".venv/bin/python", SLURM_PROCID="0")
    sandbox.wait_for("ready-0")
    time.sleep(0.2)
    process.terminate()  # Slurm signals both
    time.sleep(0.2)
    assert process.poll() is None
    os.kill(int((sandbox.folder / "ready-0").read_text()), signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 75
