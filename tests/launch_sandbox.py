"""A sandbox for the launch scripts: a copy of them, and stubs of gcloud, kubectl, srun and python that record calls.

The stub of gcloud runs the commands for the hosts of a TPU in one folder per host. Arguments thus pass through two
shells, as they do in reality.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from paths import ROOT

LAUNCH = ROOT / "launch"
CONFIG = "--config=configs/ade20k.py:resnet101"
TRICKY_FLAG = '--config.data.source=it\'s a "dir"  of $HOME, $(date), $$, `id`; & * @NAME@ \\n \\'
TPU = "--name=isnet", "--zone=us-west4-a", "--accelerator-type=v5litepod-16", "--bucket=gs://my-runs"
GKE_APPLY = "apply", "--name=isnet", "--image=here/isnet:1", "--bucket=my-runs"
GKE_SLICE = "--tpu=tpu-v5-lite-podslice", "--topology=4x4"
SECRETS = {"HF_TOKEN": "hf_hunter2", "WANDB_API_KEY": "wandb-hunter2", "REGISTRY_PASSWORD": "registry-hunter2"}
UNSET = (
    "CUDA_VISIBLE_DEVICES",
    "JAX_NUM_CPU_DEVICES",
    "TPU_NAME",
    "ZONE",
    "PROJECT_ID",
    "ACCELERATOR_TYPE",
    "BUCKET",
)  # variables of this environment that would change what the scripts do

RECORD_CALL = """#!/usr/bin/env bash
printf '%s\\0' "$#" "${0##*/}" "$@" >> "$SANDBOX/calls"
# pops the first line of a file of answers; the last line stays
next() {
  [ -e "$SANDBOX/$1" ] || { echo "$2"; return; }
  { read -r line; rest=$(cat); } < "$SANDBOX/$1"
  [ -z "$rest" ] || printf '%s\\n' "$rest" > "$SANDBOX/$1"
  echo "$line"
}
"""

GCLOUD = (
    RECORD_CALL
    + """
on_all_hosts() {
  first=0
  for host in "$SANDBOX"/hosts/*; do
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
  *"queued-resources create"*) mkdir -p "$SANDBOX/hosts/0" "$SANDBOX/hosts/1" ;;
  *"queued-resources delete"*) rm -rf "$SANDBOX/hosts" ;;
  *"tpu-vm scp"*) for host in "$SANDBOX"/hosts/*; do cp -r "${@:6:5}" "$host/isnet_jax/"; done ;;
  *"worker.sh install"*)
    on_all_hosts 'cd isnet_jax && mkdir -p .venv/bin && cp "$SANDBOX/python" .venv/bin/ && touch .venv/installed' ;;
  *"tpu-vm ssh"*)
    for arg in "$@"; do case "$arg" in --command=*) command="${arg#--command=}" ;; esac; done
    case "$command" in *follow) code=$(next connection 0); [ "$code" = 0 ] || exit "$code" ;; esac
    on_all_hosts "$command" ;;
esac
"""
)

PYTHON = (
    RECORD_CALL.replace("calls", "commands")
    + """
[ "$1" != -c ] || exec PYTHON "$@"
id="${SLURM_PROCID:-single}"
case "$PWD" in */hosts/*) id="${PWD##*/hosts/}" && id="${id%%/*}" ;; esac
for arg in "$@"; do case "$arg" in --process_id=*) id="${arg#*=}" ;; esac; done
echo "this is $id: ${JAX_NUM_CPU_DEVICES:-} ${CUDA_VISIBLE_DEVICES:-}"
behaviour="$(next "process-$id" 0)"
echo $$ > "$SANDBOX/ready-$id"
case "$behaviour" in
  wait) trap 'exit 75' TERM; while :; do sleep 0.02; done ;;
  stubborn) trap '' TERM; while :; do sleep 0.02; done ;;
  *) exit "$behaviour" ;;
esac
""".replace("PYTHON", shlex.quote(sys.executable))
)

SRUN = (
    RECORD_CALL
    + """
while [[ "$1" == --* ]]; do shift; done
highest=0
for ((i = 0; i < ${SLURM_NTASKS:-1}; i++)); do
  code=0
  SLURM_PROCID=$i "$@" || code=$?
  [ $code -le $highest ] || highest=$code
done
exit $highest
"""
)

STUBS = {
    "gcloud": GCLOUD,
    "kubectl": RECORD_CALL + '[ "$1" != apply ] || cat > "$SANDBOX/applied"\n',
    "scontrol": RECORD_CALL,
    "srun": SRUN,
    "mountpoint": "#!/bin/sh\n[ -e runs/mounted ]\n",
    "gcsfuse": RECORD_CALL + 'touch "${@: -1}/mounted"\n[ ! -e /proc/$$/fd/9 ]  # must not inherit the lock\n',
}


def write_script(path: Path, text: str) -> None:
    """Writes an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def parse_calls(path: Path) -> list[list[str]]:
    """The calls that a stub has recorded: the name of the program, then its arguments."""
    fields = path.read_bytes().decode().split("\0")[:-1] if path.exists() else []
    calls = []
    while fields:
        end = int(fields[0]) + 2
        calls.append(fields[1:end])
        fields = fields[end:]
    return calls


def parse_commands(output: str) -> list[list[str]]:
    """The commands that --dry-run has printed, as the shell they are pasted into would split them."""
    return [shlex.split(line) for line in output.splitlines()]


class Sandbox:
    """A copy of the launch scripts at `root`, stubs in `bin`, and `folder` with their answers and records."""

    def __init__(self, tmp_path: Path):
        self.root, self.folder, self.bin = tmp_path / "repository root", tmp_path / "sandbox", tmp_path / "bin"
        shutil.copytree(LAUNCH, self.root / "launch")
        for name in ("isnet_jax/main.py", "configs/ade20k.py", "elsewhere.py", "requirements.txt", "pyproject.toml"):
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).touch()
        self.folder.mkdir()
        for name, text in STUBS.items():
            write_script(self.bin / name, text)
        write_script(self.root / ".venv/bin/python", PYTHON)
        write_script(self.folder / "python", PYTHON)
        inherited = {
            name: value for name, value in os.environ.items() if name not in UNSET and not name.startswith("SLURM_")
        }
        path = f"{self.bin}:{os.environ['PATH']}"
        self.environment = inherited | {"PATH": path, "SANDBOX": str(self.folder), **SECRETS}

    def start(self, script: str, *arguments: str | Path, **variables: str) -> subprocess.Popen:
        """Starts a launch script outside the repository, with `variables` in its environment."""
        return subprocess.Popen(
            [self.root / "launch" / script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment | variables,
            cwd=self.root.parent,
        )

    def run(self, script: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess:
        """Runs a launch script to its end, and checks that no secret has reached its output or a stub."""
        process = self.start(script, *arguments, **variables)
        stdout, stderr = process.communicate(timeout=30)
        for secret in SECRETS.values():
            texts = [stdout, stderr, *(path.read_text() for path in self.folder.iterdir() if path.is_file())]
            assert not any(secret in text for text in texts)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def set_answers(self, **files: list[str]) -> None:
        """Sets the successive answers of stubs; the last one repeats.

        `queue` and `node` are states of the TPU, `connection` and `process_I` exit codes of gcloud and python.
        """
        for name, lines in files.items():
            (self.folder / name.replace("_", "-")).write_text("\n".join(lines) + "\n")

    def skip_pauses(self) -> None:
        """Makes `sleep` return at once for 30 seconds or more."""
        write_script(self.bin / "sleep", '#!/bin/sh\n[ "$1" -ge 30 ] 2>/dev/null || exec /bin/sleep "$1"\n')

    def wait_for(self, *names: str) -> None:
        """Waits until the stubs have created files of these names."""
        deadline = time.monotonic() + 10
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def calls(self) -> list[list[str]]:
        """Calls of all stubs but python."""
        return parse_calls(self.folder / "calls")

    def commands(self) -> list[list[str]]:
        """Calls of python."""
        return parse_calls(self.folder / "commands")
