"""launch/tpu_vm.sh and launch/tpu_vm_worker.sh, on a TPU of two hosts."""

import shlex

import pytest
from launch_sandbox import CONFIG, RECORD_CALL, TPU, TRICKY_FLAG, parse_commands, write_script

SET_UP = ["create", "ssh", "scp", "install"]  # ssh: mkdir
RUN = ["start", "follow", "code"]


def actions(sandbox):
    """The calls of gcloud in short (`create`, `start`, ...), without those that only describe."""
    names = []
    for call in sandbox.calls():
        if call[0] == "gcloud" and "describe" not in call:
            remote = [arg for arg in call if arg.startswith("--command=")]
            names.append(shlex.split(remote[0])[1].split()[0] if remote and "worker" in remote[0] else call[4])
    return names


def test_tpu_run_creates_installs_and_runs_on_all_hosts(sandbox):
    sandbox.skip_pauses()
    arguments = "run", *TPU, "--project=mine", "--spot", "--service-account=a@b", CONFIG, TRICKY_FLAG
    dry_run = sandbox.run("tpu_vm.sh", *arguments, "--dry-run")
    assert dry_run.returncode == 0 and dry_run.stderr == "" and sandbox.calls() == []
    sandbox.set_answers(queue=["absent", "ACTIVE"])
    result = sandbox.run("tpu_vm.sh", *arguments)
    assert result.returncode == 0, result.stderr
    calls = [call for call in sandbox.calls() if call[0] == "gcloud"]
    assert calls == parse_commands(dry_run.stdout) and actions(sandbox) == SET_UP + RUN
    assert calls[1] == [
        "gcloud",
        "compute",
        "tpus",
        "queued-resources",
        "create",
        "isnet",
        "--node-id=isnet",
        "--zone=us-west4-a",
        "--project=mine",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
        "--service-account=a@b",
    ]
    assert all("--worker=all" in call for call in calls[4:])
    assert sandbox.commands() == [["python", "-m", "isnet_jax.main", CONFIG, TRICKY_FLAG]] * 2
    assert "this is 0" in result.stdout and "this is 1" in result.stdout
    assert [call[-2:] for call in sandbox.calls() if call[0] == "gcsfuse"] == [["my-runs", "runs"]] * 2
    for host in (sandbox.folder / "hosts").iterdir():
        assert sorted(path.name for path in (host / "isnet_jax").iterdir() if path.name[0] != ".") == [
            "configs",
            "isnet_jax",
            "launch",
            "pyproject.toml",
            "requirements.txt",
            "runs",
        ]


@pytest.mark.parametrize(
    "queue, node",
    [
        (["absent", "ACTIVE", "ACTIVE", "absent", "WAITING_FOR_RESOURCES", "ACTIVE"], ["READY", "PREEMPTED", "READY"]),
        (["absent", "ACTIVE", "SUSPENDING", "SUSPENDED", "absent", "ACTIVE"], ["READY"]),
        (
            ["absent", "ACTIVE", "broken", "ACTIVE", "FAILED", "quota", "absent", "ACTIVE"],
            ["READY", "REPAIRING", "READY"],
        ),
    ],
)
def test_tpu_run_resumes_on_a_new_tpu_after_preemption(sandbox, queue, node):
    sandbox.skip_pauses()
    sandbox.set_answers(queue=queue, node=node, process_0=["75", "0"], process_1=["75", "0"])
    result = sandbox.run("tpu_vm.sh", "run", *TPU, CONFIG)
    assert result.returncode == 0, result.stderr
    assert actions(sandbox) == SET_UP + RUN + ["delete"] + SET_UP + RUN
    assert sandbox.commands() == [["python", "-m", "isnet_jax.main", CONFIG]] * 4


def test_tpu_run_resumes_on_the_same_tpu(sandbox):
    sandbox.skip_pauses()
    sandbox.set_answers(queue=["absent", "ACTIVE"], process_0=["75", "0"], process_1=["75", "0"])
    assert sandbox.run("tpu_vm.sh", "run", *TPU, CONFIG).returncode == 0
    assert actions(sandbox) == SET_UP + RUN + RUN


def test_tpu_run_exits_when_the_command_fails(sandbox):
    sandbox.skip_pauses()
    sandbox.set_answers(queue=["absent", "ACTIVE"], process_0=["75"], process_1=["1"])  # process 0 has lost its peer
    result = sandbox.run("tpu_vm.sh", "run", *TPU, CONFIG)
    assert result.returncode == 1 and actions(sandbox) == SET_UP + ["start", "follow"]


def test_tpu_run_attaches_to_a_running_command(sandbox):
    sandbox.skip_pauses()
    sandbox.set_answers(
        queue=["absent", "ACTIVE"], process_0=["wait"], process_1=["wait"], connection=["255", "130", "0"]
    )
    result = sandbox.run("tpu_vm.sh", "run", *TPU, CONFIG)  # the second `follow` is interrupted
    assert result.returncode == 130 and actions(sandbox) == SET_UP + ["start", "follow"] * 2
    other = sandbox.run("tpu_vm.sh", "run", *TPU, CONFIG, "--workdir=runs/b")
    assert other.returncode == 1 and "another command is already running on this TPU" in other.stderr
    assert CONFIG in other.stderr
    assert len(sandbox.commands()) == 2
    process = sandbox.start("tpu_vm.sh", "logs", *TPU)
    assert process.stdout.readline() == "this is 0:  \n"
    assert sandbox.run("tpu_vm.sh", "stop", *TPU).returncode == 0
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_tpu_run_installs_on_a_tpu_created_earlier(sandbox):
    sandbox.skip_pauses()
    assert sandbox.run("tpu_vm.sh", "create", *TPU).returncode == 0 and actions(sandbox) == []
    for host in "01":
        (sandbox.folder / "hosts" / host).mkdir(parents=True)
    result = sandbox.run("tpu_vm.sh", "run", *TPU, CONFIG)
    assert result.returncode == 0 and actions(sandbox) == ["start", *SET_UP[1:], *RUN]


def test_tpu_run_reports_a_failed_allocation(sandbox):
    sandbox.skip_pauses()
    sandbox.set_answers(queue=["absent", "WAITING_FOR_RESOURCES", "FAILED", "no quota"])
    result = sandbox.run("tpu_vm.sh", "run", *TPU, CONFIG)
    assert result.returncode == 1 and "TPU isnet could not be allocated: no quota" in result.stderr
    assert actions(sandbox) == ["create"]


def test_tpu_flags_default_to_the_environment_and_gcloud_errors_are_shown(sandbox):
    sandbox.set_answers(queue=["broken"])
    variables = {"TPU_NAME": "isnet", "ZONE": "z", "PROJECT_ID": "p", "ACCELERATOR_TYPE": "v6e-8"}
    result = sandbox.run("tpu_vm.sh", "create", **variables)
    assert result.returncode == 1 and "PERMISSION_DENIED" in result.stderr and actions(sandbox) == []
    dry_run = sandbox.run("tpu_vm.sh", "create", "--dry-run", **variables)
    assert (
        "isnet --node-id=isnet --zone=z --project=p --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e"
        in dry_run.stdout
    )
    sandbox.run("tpu_vm.sh", "delete", "--name=other", TPU_NAME="isnet", ZONE="z")
    assert sandbox.calls()[-1][4:] == ["delete", "other", "--zone=z", "--force", "--quiet"]


def test_tpu_worker_installs_python_requirements_and_gcsfuse(sandbox):
    home = sandbox.folder / "home"
    (sandbox.bin / "gcsfuse").unlink()
    write_script(sandbox.bin / "sudo", RECORD_CALL + "cat > /dev/null\n")
    write_script(sandbox.bin / "lsb_release", "#!/bin/sh\necho jammy\n")
    write_script(sandbox.bin / "uv", RECORD_CALL)
    write_script(
        sandbox.bin / "curl",
        """#!/bin/sh
echo 'mkdir -p "$HOME/.local/bin"; cp "$(command -v uv)" "$HOME/.local/bin"'
""",
    )
    result = sandbox.run("tpu_vm_worker.sh", "install", HOME=str(home), PATH=f"{sandbox.bin}:/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    assert (sandbox.root / ".venv" / "installed").exists()
    assert [call[1] for call in sandbox.calls() if call[0] == "uv"] == ["venv", "pip"]
    assert ["--requirement=requirements.txt", "jax[tpu]"] in [call[-2:] for call in sandbox.calls()]
    assert any(call[-1] == "gcsfuse" for call in sandbox.calls())
