"""What launch/ runs, with stubs of gcloud, kubectl, srun and python that write down how they are called.

The stub of gcloud runs what is sent to the hosts of a TPU in a folder for each, so that words go through two shells.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
CONFIG = "--config=configs/ade20k.py:resnet101"
NASTY = '--config.data.source=it\'s a "dir"  of $HOME, $(date), $$, `id`; & * @NAME@ \\n \\'
SECRETS = {"HF_TOKEN": "hf_hunter2", "WANDB_API_KEY": "wandb-hunter2", "REGISTRY_PASSWORD": "registry-hunter2"}

WRITE_DOWN = """#!/usr/bin/env bash
printf '%s\\0' "$#" "${0##*/}" "$@" >> "$SCENE/calls"
# takes the next line of a file, and the last one again and again
next() {
  [ -e "$SCENE/$1" ] || { echo "$2"; return; }
  { read -r line; rest=$(cat); } < "$SCENE/$1"
  [ -z "$rest" ] || printf '%s\\n' "$rest" > "$SCENE/$1"
  echo "$line"
}
"""

GCLOUD = (
    WRITE_DOWN
    + """
on_all() {
  first=0
  for host in "$SCENE"/hosts/*; do
    code=0
    (cd "$host" && HOME="$host" bash -c "$1") || code=$?
    [ $first -ne 0 ] || first=$code
  done
  exit $first
}
answer() {
  case "$1" in
    absent) echo "ERROR: (gcloud) NOT_FOUND: Resource 'x' was not found" >&2; exit 1 ;;
    broken) echo "ERROR: (gcloud) PERMISSION_DENIED: no" >&2; exit 1 ;;
    *) echo "$1" ;;
  esac
}
case "$*" in
  *"queued-resources describe"*) answer "$(next queue ACTIVE)" ;;
  *"tpu-vm describe"*) answer "$(next node READY)" ;;
  *"queued-resources create"*) mkdir -p "$SCENE/hosts/0" "$SCENE/hosts/1" ;;
  *"queued-resources delete"*) rm -rf "$SCENE/hosts" ;;
  *"tpu-vm scp"*) for host in "$SCENE"/hosts/*; do cp -r "${@:6:5}" "$host/isnet_jax/"; done ;;
  *"worker.sh install"*)
    on_all 'cd isnet_jax && mkdir -p .venv/bin && cp "$SCENE/python" .venv/bin/ && touch .venv/installed' ;;
  *"tpu-vm ssh"*)
    for word in "$@"; do case "$word" in --command=*) command="${word#--command=}" ;; esac; done
    case "$command" in *follow) code=$(next connection 0); [ "$code" = 0 ] || exit "$code" ;; esac
    on_all "$command" ;;
esac
"""
)

PYTHON = (
    WRITE_DOWN.replace("calls", "commands")
    + """
[ "$1" != -c ] || exec PYTHON "$@"
me="${SLURM_PROCID:-alone}"
case "$PWD" in */hosts/*) me="${PWD##*/hosts/}" && me="${me%%/*}" ;; esac
for word in "$@"; do case "$word" in --process_id=*) me="${word#*=}" ;; esac; done
echo "this is $me: ${JAX_NUM_CPU_DEVICES:-} ${CUDA_VISIBLE_DEVICES:-}"
action="$(next "does-$me" 0)"
echo $$ > "$SCENE/ready-$me"
case "$action" in
  wait) trap 'exit 75' TERM; while :; do sleep 0.02; done ;;
  stubborn) trap '' TERM; while :; do sleep 0.02; done ;;
  *) exit "$action" ;;
esac
""".replace("PYTHON", shlex.quote(sys.executable))
)

STUBS = {
    "gcloud": GCLOUD,
    "kubectl": WRITE_DOWN + '[ "$1" != apply ] || cat > "$SCENE/applied"\n',
    "scontrol": WRITE_DOWN,
    "srun": WRITE_DOWN
    + """
while [[ "$1" == --* ]]; do shift; done
worst=0
for ((i = 0; i < ${SLURM_NTASKS:-1}; i++)); do
  code=0
  SLURM_PROCID=$i "$@" || code=$?
  [ $code -le $worst ] || worst=$code
done
exit $worst
""",
    "mountpoint": "#!/bin/sh\n[ -e runs/mounted ]\n",
    "gcsfuse": WRITE_DOWN + 'touch "${@: -1}/mounted"\n[ ! -e /proc/$$/fd/9 ]  # the lock of the command\n',
}


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def parse_calls(path):
    words = path.read_bytes().decode().split("\0")[:-1] if path.exists() else []
    calls = []
    while words:
        end = int(words[0]) + 2
        calls.append(words[1:end])
        words = words[end:]
    return calls


@pytest.fixture
def scene(tmp_path):
    """A copy of the repository's outside in a folder of its own, and the machines around it."""
    root, folder = tmp_path / "repository root", tmp_path / "scene"
    shutil.copytree(LAUNCH, root / "launch")
    for name in ("isnet_jax/main.py", "configs/ade20k.py", "elsewhere.py", "requirements.txt", "pyproject.toml"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    folder.mkdir()
    for name, text in STUBS.items():
        write_script(tmp_path / "bin" / name, text)
    write_script(root / ".venv/bin/python", PYTHON)
    write_script(folder / "python", PYTHON)
    hidden = {
        "CUDA_VISIBLE_DEVICES",
        "JAX_NUM_CPU_DEVICES",
        "TPU_NAME",
        "ZONE",
        "PROJECT_ID",
        "ACCELERATOR_TYPE",
        "BUCKET",
    }
    environment = {
        name: value for name, value in os.environ.items() if name not in hidden and not name.startswith("SLURM_")
    }
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SCENE": str(folder), **SECRETS}

    def start(script, *arguments, **variables):
        return subprocess.Popen(
            [root / "launch" / script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | variables,
            cwd=tmp_path,
        )

    def run(script, *arguments, **variables):
        process = start(script, *arguments, **variables)
        out, err = process.communicate(timeout=30)
        for secret in SECRETS.values():
            everything = [out, err, *(path.read_text() for path in folder.iterdir() if path.is_file())]
            assert not any(secret in text for text in everything)
        return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)

    def happens(**files):
        for name, lines in files.items():
            (folder / name.replace("_", "-")).write_text("\n".join(lines) + "\n")

    def no_pauses():
        write_script(tmp_path / "bin" / "sleep", '#!/bin/sh\n[ "$1" -ge 30 ] 2>/dev/null || exec /bin/sleep "$1"\n')

    def wait_for(*names):
        deadline = time.monotonic() + 10
        while not all((folder / name).exists() for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return SimpleNamespace(
        root=root,
        folder=folder,
        start=start,
        run=run,
        happens=happens,
        wait_for=wait_for,
        no_pauses=no_pauses,
        bin=tmp_path / "bin",
        calls=lambda: parse_calls(folder / "calls"),
        commands=lambda: parse_calls(folder / "commands"),
    )


def pasted(output):
    return [shlex.split(line) for line in output.splitlines()]


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck():
    done = subprocess.run([SHELLCHECK, *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


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
def test_without_arguments_it_shows_its_usage(scene, script, title):
    done = scene.run(script)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(title)
    assert f"launch/{script}" in done.stderr and "--dry-run" in done.stderr and "set -euo" not in done.stderr


TPU = "--name=isnet", "--zone=us-west4-a", "--accelerator-type=v5litepod-16", "--bucket=gs://my-runs"
GKE = "apply", "--name=isnet", "--image=here/isnet:1", "--bucket=my-runs"
SLICE = "--tpu=tpu-v5-lite-podslice", "--topology=4x4"


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("single_host.sh", ["--gpus=0"], "--config=FILE is missing"),
        ("single_host.sh", [CONFIG, "--gpu=0"], "there is no flag --gpu=0"),
        ("single_host.sh", ["--config=configs/none.py"], "configs/none.py does not exist"),
        ("local_processes.sh", [CONFIG], "say how many processes"),
        ("local_processes.sh", ["--processes=two", CONFIG], "--processes=two must be a whole number"),
        ("local_processes.sh", ["--processes=2", "--gpus=0,1", CONFIG], "leave out --processes"),
        ("slurm.sbatch", [CONFIG, "--nodes=2"], "there is no flag --nodes=2"),
        ("tpu_vm.sh", ["destroy", *TPU], "there is no action destroy"),
        ("tpu_vm.sh", ["create", "--zone=us-west4-a"], "the TPU has no name"),
        ("tpu_vm.sh", ["create", *TPU[:2]], "the kind and size of the TPU is missing"),
        ("tpu_vm.sh", ["run", *TPU[:3], CONFIG], "give a bucket"),
        ("tpu_vm.sh", ["run", *TPU, "--config=elsewhere.py"], "the config must be in configs/"),
        ("tpu_vm.sh", ["run", *TPU, CONFIG, "--sopt"], "there is no flag --sopt"),
        ("tpu_vm.sh", ["delete", *TPU, CONFIG], "delete takes no --config"),
        ("gke_jobset.sh", ["apply", "--name=ISNet"], "lower-case"),
        ("gke_jobset.sh", [*GKE, CONFIG], "say what to run on"),
        ("gke_jobset.sh", [*GKE, CONFIG, *SLICE, "--hosts=4"], "say what to run on"),
        ("gke_jobset.sh", [*GKE, CONFIG, SLICE[0], "--topology=16"], "--topology=16 must be"),
        ("gke_jobset.sh", [*GKE, CONFIG, *SLICE, "--chips-per-host=3"], "the 16 chips"),
        ("gke_jobset.sh", [*GKE, *SLICE, CONFIG, "--workdir=a\nb"], "a line break"),
    ],
)
def test_mistakes_are_told_before_anything_runs(scene, script, arguments, message):
    done = scene.run(script, *arguments)
    assert done.returncode == 2 and done.stdout == "" and scene.calls() == scene.commands() == []
    paragraph, usage = done.stderr.split("\n\n", 1)
    assert message in " ".join(paragraph.split()) and usage.startswith(("Trains", "Runs"))
    assert max(map(len, paragraph.splitlines())) <= 110


def test_single_host(scene):
    dry = scene.run("single_host.sh", "--dry-run", "--gpus=0,1", CONFIG, "--workdir=my runs/a")
    assert dry.stdout == (
        f"CUDA_VISIBLE_DEVICES=0\\,1 .venv/bin/python -m isnet_jax.main {CONFIG} --workdir=my\\ runs/a\n"
    )
    assert "CUDA" not in scene.run("single_host.sh", "--dry-run", CONFIG).stdout and scene.commands() == []
    scene.happens(does_alone=["75"])
    done = scene.run("single_host.sh", "isnet_jax.evaluate", CONFIG, "--checkpoint=a b", NASTY)
    assert scene.commands() == [["python", "-m", "isnet_jax.evaluate", CONFIG, "--checkpoint=a b", NASTY]]
    assert done.returncode == 75


def test_local_processes(scene):
    arguments = "--processes=3", "--devices-per-process=2", CONFIG, NASTY
    done = scene.run("local_processes.sh", *arguments)
    assert done.returncode == 0, done.stderr
    commands = sorted(call for call in scene.commands() if call[1] != "-c")
    address = commands[0][5]
    assert address.startswith("--coordinator=localhost:") and int(address.rpartition(":")[2]) > 0
    assert commands == [
        ["python", "-m", "isnet_jax.main", CONFIG, NASTY, address, "--num_processes=3", f"--process_id={i}"]
        for i in range(3)
    ]
    assert done.stdout == "this is 0: 2 \n"
    logs = scene.root / "runs" / "local_processes"
    assert [(logs / f"{i}.log").read_text() for i in (1, 2)] == ["this is 1: 2 \n", "this is 2: 2 \n"]
    dry = pasted(scene.run("local_processes.sh", "--dry-run", *arguments).stdout)
    assert dry[0] == ["mkdir", "-p", "runs/local_processes"]
    assert dry[1][-4:] == [">", "runs/local_processes/2.log", "2>&1", "&"]
    for i, line in zip((2, 1, 0), dry[1:]):
        assert line[:5] == ["env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=2", ".venv/bin/python", "-m"]
        assert line[5:8] + line[9:11] == [*commands[i][2:5], *commands[i][6:]]


def test_local_processes_one_on_each_gpu(scene):
    done = scene.run("local_processes.sh", "--gpus=3,1", CONFIG)
    assert done.stdout == "this is 0:  3\n"
    assert (scene.root / "runs/local_processes/1.log").read_text() == "this is 1:  1\n"


@pytest.mark.parametrize(
    "does, code",
    [(("0", "1", "wait"), 1), (("75", "75", "75"), 75), (("75", "3", "75"), 3), (("0", "2", "stubborn"), 2)],
)
def test_local_processes_end_together(scene, does, code):
    path = scene.root / "launch" / "local_processes.sh"
    path.write_text(path.read_text().replace("GRACE_SECONDS=5", "GRACE_SECONDS=1"))
    scene.happens(does_0=[does[0]], does_1=[does[1]], does_2=[does[2]])
    begin = time.monotonic()
    done = scene.run("local_processes.sh", "--processes=3", CONFIG)
    assert done.returncode == code and time.monotonic() - begin < 5
    if code != 75:
        assert f"process 1 failed with exit code {code}" in done.stderr
        assert "runs/local_processes/1.log:\nthis is 1" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_processes_are_stopped_together(scene, number):
    scene.happens(does_0=["wait"], does_1=["wait"])
    process = scene.start("local_processes.sh", "--processes=2", CONFIG)
    scene.wait_for("ready-0", "ready-1")
    time.sleep(0.2)  # until they have set their traps
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 75


def test_a_second_signal_kills_local_processes(scene):
    scene.happens(does_0=["stubborn"], does_1=["stubborn"])
    process = scene.start("local_processes.sh", "--processes=2", CONFIG)
    scene.wait_for("ready-0", "ready-1")
    time.sleep(0.2)
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGKILL


def submit(scene, *arguments, **variables):
    """Slurm runs a copy of the script, in the folder of the submission."""
    spool = scene.root / "launch" / "spool"
    spool.mkdir(exist_ok=True)
    shutil.copy(LAUNCH / "slurm.sbatch", spool / "slurm_script")
    return scene.run("spool/slurm_script", *arguments, SLURM_SUBMIT_DIR=str(scene.root), SLURM_JOB_ID="17", **variables)


TWO_TASKS = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "4"}


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
def test_slurm(scene, codes, code, requeued):
    scene.happens(**{f"does_{i}": [word] for i, word in enumerate(codes.split())})
    dry = scene.run("slurm.sbatch", "--dry-run", CONFIG, NASTY, **TWO_TASKS)
    done = submit(scene, CONFIG, NASTY, **TWO_TASKS)
    assert done.returncode == code
    srun, *others = scene.calls()
    assert (
        pasted(dry.stdout)
        == [srun]
        == [
            [
                "srun",
                "--kill-on-bad-exit=0",
                "--cpus-per-task=4",
                "launch/slurm_task.sh",
                ".venv/bin/python",
                "-m",
                "isnet_jax.main",
                CONFIG,
                NASTY,
            ]
        ]
    )
    assert scene.commands() == [["python", *srun[5:]]] * 2
    assert others == ([["scontrol", "requeue", "17"]] if requeued else [])


def test_slurm_mistakes(scene):
    one_task = TWO_TASKS | {"SLURM_NTASKS_PER_NODE": "1"}
    done = submit(scene, CONFIG, **one_task)
    assert done.returncode == 2 and "2 GPUs and 1 tasks on a node" in done.stderr and "sbatch --nodes=2" in done.stderr
    done = scene.run("slurm.sbatch", CONFIG, SLURM_SUBMIT_DIR="/")
    assert done.returncode == 2 and "/ is not the repository's root" in done.stderr
    directives = [line for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@120", "#SBATCH --open-mode=append"} < set(directives)


def test_a_slurm_task_outlives_the_signal_to_its_command(scene):
    scene.happens(does_0=["wait"])
    process = scene.start("slurm_task.sh", scene.root / ".venv/bin/python", SLURM_PROCID="0")
    scene.wait_for("ready-0")
    time.sleep(0.2)
    process.terminate()  # Slurm sends it to both
    time.sleep(0.2)
    assert process.poll() is None
    os.kill(int((scene.folder / "ready-0").read_text()), signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 75


def apply(scene, *arguments):
    dry = scene.run("gke_jobset.sh", *GKE, "--dry-run", *arguments)
    assert dry.returncode == 0 and scene.calls() == [], dry.stderr
    assert scene.run("gke_jobset.sh", *GKE, *arguments).returncode == 0
    text = (scene.folder / "applied").read_text()
    assert dry.stdout == f"kubectl apply --filename=- <<'END'\n{text}END\n"
    assert scene.calls() == [["kubectl", "apply", "--filename=-"]]
    jobset = yaml.safe_load(text)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    assert jobset["metadata"]["name"] == "isnet"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    return SimpleNamespace(jobset=jobset, job=job, pod=pod, container=pod["containers"][0])


def test_gke_tpu_slice(scene):
    made = apply(scene, *SLICE, "--service-account=trainer", CONFIG, NASTY)
    assert made.job["completions"] == made.job["parallelism"] == 4 and made.job["completionMode"] == "Indexed"
    assert made.pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert made.container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert made.container["image"] == "here/isnet:1" and made.pod["serviceAccountName"] == "trainer"
    command = [word.replace("$$", "$") for word in made.container["command"]]  # as Kubernetes does
    assert command == ["python", "-m", "isnet_jax.main", CONFIG, NASTY]
    assert made.container["command"][-1].count("$") == 2 * NASTY.count("$")
    assert made.jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    runs = made.pod["volumes"][0]["csi"]
    assert runs["volumeAttributes"]["bucketName"] == "my-runs" and runs["driver"] == "gcsfuse.csi.storage.gke.io"
    assert made.container["volumeMounts"][0] == {"name": "runs", "mountPath": "/isnet_jax/runs"}


def test_gke_starts_a_stopped_command_again_without_counting(scene):
    made = apply(scene, *SLICE, CONFIG)
    policy = made.jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    stopped, disrupted = made.job["podFailurePolicy"]["rules"]
    assert stopped == {
        "action": "FailJob",
        "onPodConditions": [],
        "onExitCodes": {"containerName": made.container["name"], "operator": "In", "values": [75]},
    }
    assert disrupted == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert made.job["backoffLimit"] == 0 and made.pod["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    "arguments, hosts, chips",
    [
        (["--topology=2x4"], 2, 4),
        (["--topology=2x4", "--chips-per-host=8"], 1, 8),
        (["--topology=1x1"], 1, 1),
        (["--topology=2x2x4"], 4, 4),
    ],
)
def test_gke_hosts_of_a_slice(scene, arguments, hosts, chips):
    made = apply(scene, SLICE[0], *arguments, CONFIG)
    assert made.job["completions"] == hosts and made.container["resources"]["limits"] == {"google.com/tpu": chips}
    assert ("--num_processes=1" in made.container["command"]) == (hosts == 1)


def test_gke_gpus(scene):
    made = apply(scene, "--gpu=nvidia-h100-80gb", "--hosts=2", "--gpus-per-host=8", CONFIG)
    assert made.job["completions"] == 2 and made.jobset["metadata"]["annotations"] == {}
    assert made.pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert made.container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert made.container["command"][3:] == [
        CONFIG,
        "--coordinator=isnet-hosts-0-0.isnet:8476",
        "--num_processes=2",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


@pytest.mark.parametrize("action", ["logs", "delete"])
def test_gke_logs_and_delete(scene, action):
    dry = scene.run("gke_jobset.sh", action, "--name=isnet", "--dry-run")
    assert scene.run("gke_jobset.sh", action, "--name=isnet").returncode == 0
    (call,) = scene.calls()
    assert [call] == pasted(dry.stdout)
    assert (
        "--selector=jobset.sigs.k8s.io/jobset-name=isnet,batch.kubernetes.io/job-completion-index=0" in call
        if action == "logs"
        else call == ["kubectl", "delete", "jobset/isnet"]
    )


def actions(scene):
    """The calls of gcloud in short: `create`, `start`, ..., without those that only look."""
    short = []
    for call in scene.calls():
        if call[0] == "gcloud" and "describe" not in call:
            sent = [word for word in call if word.startswith("--command=")]
            short.append(shlex.split(sent[0])[1].split()[0] if sent and "worker" in sent[0] else call[4])
    return short


BEGINNING = ["create", "ssh", "scp", "install"]  # ssh: mkdir
TURN = ["start", "follow", "code"]


def test_tpu_run_creates_installs_and_runs_on_all_hosts(scene):
    scene.no_pauses()
    arguments = "run", *TPU, "--project=mine", "--spot", "--service-account=a@b", CONFIG, NASTY
    dry = scene.run("tpu_vm.sh", *arguments, "--dry-run")
    assert dry.returncode == 0 and dry.stderr == "" and scene.calls() == []
    scene.happens(queue=["absent", "ACTIVE"])
    done = scene.run("tpu_vm.sh", *arguments)
    assert done.returncode == 0, done.stderr
    calls = [call for call in scene.calls() if call[0] == "gcloud"]
    assert calls == pasted(dry.stdout) and actions(scene) == BEGINNING + TURN
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
    assert scene.commands() == [["python", "-m", "isnet_jax.main", CONFIG, NASTY]] * 2
    assert "this is 0" in done.stdout and "this is 1" in done.stdout
    assert [call[-2:] for call in scene.calls() if call[0] == "gcsfuse"] == [["my-runs", "runs"]] * 2
    for host in (scene.folder / "hosts").iterdir():
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
def test_tpu_run_goes_on_after_a_preemption(scene, queue, node):
    scene.no_pauses()
    scene.happens(queue=queue, node=node, does_0=["75", "0"], does_1=["75", "0"])
    done = scene.run("tpu_vm.sh", "run", *TPU, CONFIG)
    assert done.returncode == 0, done.stderr
    assert actions(scene) == BEGINNING + TURN + ["delete"] + BEGINNING + TURN
    assert scene.commands() == [["python", "-m", "isnet_jax.main", CONFIG]] * 4


def test_tpu_run_goes_on_where_the_tpu_stays(scene):
    scene.no_pauses()
    scene.happens(queue=["absent", "ACTIVE"], does_0=["75", "0"], does_1=["75", "0"])
    assert scene.run("tpu_vm.sh", "run", *TPU, CONFIG).returncode == 0
    assert actions(scene) == BEGINNING + TURN + TURN


def test_tpu_run_ends_where_the_command_fails(scene):
    scene.no_pauses()
    scene.happens(queue=["absent", "ACTIVE"], does_0=["75"], does_1=["1"])  # 0 has lost 1
    done = scene.run("tpu_vm.sh", "run", *TPU, CONFIG)
    assert done.returncode == 1 and actions(scene) == BEGINNING + ["start", "follow"]


def test_tpu_run_takes_up_what_is_running(scene):
    scene.no_pauses()
    scene.happens(queue=["absent", "ACTIVE"], does_0=["wait"], does_1=["wait"], connection=["255", "130", "0"])
    done = scene.run("tpu_vm.sh", "run", *TPU, CONFIG)  # it is interrupted when it follows for the second time
    assert done.returncode == 130 and actions(scene) == BEGINNING + ["start", "follow"] * 2
    other = scene.run("tpu_vm.sh", "run", *TPU, CONFIG, "--workdir=runs/b")
    assert other.returncode == 1 and "another command is running here" in other.stderr and CONFIG in other.stderr
    assert len(scene.commands()) == 2
    process = scene.start("tpu_vm.sh", "logs", *TPU)
    assert process.stdout.readline() == "this is 0:  \n"
    assert scene.run("tpu_vm.sh", "stop", *TPU).returncode == 0
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_tpu_installed_later_or_never(scene):
    scene.no_pauses()
    assert scene.run("tpu_vm.sh", "create", *TPU).returncode == 0 and actions(scene) == []
    for host in "01":
        (scene.folder / "hosts" / host).mkdir(parents=True)
    done = scene.run("tpu_vm.sh", "run", *TPU, CONFIG)
    assert done.returncode == 0 and actions(scene) == ["start", *BEGINNING[1:], *TURN]


def test_tpu_that_cannot_be_had(scene):
    scene.no_pauses()
    scene.happens(queue=["absent", "WAITING_FOR_RESOURCES", "FAILED", "no quota"])
    done = scene.run("tpu_vm.sh", "run", *TPU, CONFIG)
    assert done.returncode == 1 and "TPU isnet cannot be had: no quota" in done.stderr and actions(scene) == ["create"]


def test_tpu_names_from_the_environment_and_errors_of_gcloud(scene):
    scene.happens(queue=["broken"])
    names = {"TPU_NAME": "isnet", "ZONE": "z", "PROJECT_ID": "p", "ACCELERATOR_TYPE": "v6e-8"}
    done = scene.run("tpu_vm.sh", "create", **names)
    assert done.returncode == 1 and "PERMISSION_DENIED" in done.stderr and actions(scene) == []
    dry = scene.run("tpu_vm.sh", "create", "--dry-run", **names)
    assert (
        "isnet --node-id=isnet --zone=z --project=p --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e"
        in dry.stdout
    )
    scene.run("tpu_vm.sh", "delete", "--name=other", TPU_NAME="isnet", ZONE="z")
    assert scene.calls()[-1][4:] == ["delete", "other", "--zone=z", "--force", "--quiet"]


def test_tpu_worker_installs(scene):
    home = scene.folder / "home"
    (scene.bin / "gcsfuse").unlink()
    write_script(scene.bin / "sudo", WRITE_DOWN + "cat > /dev/null\n")
    write_script(scene.bin / "lsb_release", "#!/bin/sh\necho jammy\n")
    write_script(scene.bin / "uv", WRITE_DOWN)
    write_script(
        scene.bin / "curl",
        """#!/bin/sh
echo 'mkdir -p "$HOME/.local/bin"; cp "$(command -v uv)" "$HOME/.local/bin"'
""",
    )
    done = scene.run("tpu_vm_worker.sh", "install", HOME=str(home), PATH=f"{scene.bin}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert (scene.root / ".venv" / "installed").exists()
    assert [call[1] for call in scene.calls() if call[0] == "uv"] == ["venv", "pip"]
    assert ["--requirement=requirements.txt", "jax[tpu]"] in [call[-2:] for call in scene.calls()]
    assert any(call[-1] == "gcsfuse" for call in scene.calls())
