"""launch/single_host.sh and launch/local_processes.sh."""

import signal
import time

import pytest
from launch_sandbox import CONFIG, TRICKY_FLAG, parse_commands


def test_single_host_runs_the_command(sandbox):
    dry_run = sandbox.run("single_host.sh", "--dry-run", "--gpus=0,1", CONFIG, "--workdir=my runs/a")
    assert dry_run.stdout == (
        f"CUDA_VISIBLE_DEVICES=0\\,1 .venv/bin/python -m isnet_jax.main {CONFIG} --workdir=my\\ runs/a\n"
    )
    assert "CUDA" not in sandbox.run("single_host.sh", "--dry-run", CONFIG).stdout and sandbox.commands() == []
    sandbox.set_answers(process_single=["75"])
    result = sandbox.run("single_host.sh", "isnet_jax.evaluate", CONFIG, "--checkpoint=a b", TRICKY_FLAG)
    assert sandbox.commands() == [["python", "-m", "isnet_jax.evaluate", CONFIG, "--checkpoint=a b", TRICKY_FLAG]]
    assert result.returncode == 75


def test_local_processes_share_a_coordinator(sandbox):
    arguments = "--processes=3", "--devices-per-process=2", CONFIG, TRICKY_FLAG
    result = sandbox.run("local_processes.sh", *arguments)
    assert result.returncode == 0, result.stderr
    commands = sorted(call for call in sandbox.commands() if call[1] != "-c")
    address = commands[0][5]
    assert address.startswith("--coordinator=localhost:") and int(address.rpartition(":")[2]) > 0
    assert commands == [
        ["python", "-m", "isnet_jax.main", CONFIG, TRICKY_FLAG, address, "--num_processes=3", f"--process_id={i}"]
        for i in range(3)
    ]
    assert result.stdout == "this is 0: 2 \n"
    logs = sandbox.root / "runs" / "local_processes"
    assert [(logs / f"{i}.log").read_text() for i in (1, 2)] == ["this is 1: 2 \n", "this is 2: 2 \n"]
    dry_run = parse_commands(sandbox.run("local_processes.sh", "--dry-run", *arguments).stdout)
    assert dry_run[0] == ["mkdir", "-p", "runs/local_processes"]
    assert dry_run[1][-4:] == [">", "runs/local_processes/2.log", "2>&1", "&"]
    for i, line in zip((2, 1, 0), dry_run[1:]):
        assert line[:5] == ["env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=2", ".venv/bin/python", "-m"]
        assert line[5:8] + line[9:11] == [*commands[i][2:5], *commands[i][6:]]


def test_local_processes_use_one_gpu_each(sandbox):
    result = sandbox.run("local_processes.sh", "--gpus=3,1", CONFIG)
    assert result.stdout == "this is 0:  3\n"
    assert (sandbox.root / "runs/local_processes/1.log").read_text() == "this is 1:  1\n"


@pytest.mark.parametrize(
    "behaviours, code",
    [(("0", "1", "wait"), 1), (("75", "75", "75"), 75), (("75", "3", "75"), 3), (("0", "2", "stubborn"), 2)],
)
def test_local_processes_stop_when_one_fails(sandbox, behaviours, code):
    path = sandbox.root / "launch" / "local_processes.sh"
    path.write_text(path.read_text().replace("GRACE_SECONDS=5", "GRACE_SECONDS=1"))
    sandbox.set_answers(process_0=[behaviours[0]], process_1=[behaviours[1]], process_2=[behaviours[2]])
    begin = time.monotonic()
    result = sandbox.run("local_processes.sh", "--processes=3", CONFIG)
    assert result.returncode == code and time.monotonic() - begin < 5
    if code != 75:
        assert f"process 1 failed with exit code {code}" in result.stderr
        assert "runs/local_processes/1.log:\nthis is 1" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_processes_stop_on_a_signal(sandbox, number):
    sandbox.set_answers(process_0=["wait"], process_1=["wait"])
    process = sandbox.start("local_processes.sh", "--processes=2", CONFIG)
    sandbox.wait_for("ready-0", "ready-1")
    time.sleep(0.2)  # until they have set their traps
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 75


def test_local_processes_are_killed_by_a_second_signal(sandbox):
    sandbox.set_answers(process_0=["stubborn"], process_1=["stubborn"])
    process = sandbox.start("local_processes.sh", "--processes=2", CONFIG)
    sandbox.wait_for("ready-0", "ready-1")
    time.sleep(0.2)
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGKILL
