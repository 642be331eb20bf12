#!/usr/bin/env bash
# Runs on every host of a TPU, called by launch/tpu_vm.sh. Every action is idempotent.
#
#   launch/tpu_vm_worker.sh install                     installs Python, the requirements and gcsfuse
#   launch/tpu_vm_worker.sh start BUCKET MODULE FLAGS   mounts BUCKET as runs/ and starts python -m MODULE FLAGS
#   launch/tpu_vm_worker.sh follow                      shows its output until it ends; exits with its code, 0 for 75
#   launch/tpu_vm_worker.sh code                        exits with its code, 75 if it was cut off
#   launch/tpu_vm_worker.sh stop                        sends it SIGTERM
set -euo pipefail
cd "$(dirname "$0")/.."

JOB=.job  # on this host's disk: all hosts share runs/
mkdir -p "$JOB" runs

# The supervisor of the command holds this lock.
is_running() {
  ! flock --nonblock "$JOB/lock" true
}

code() {
  cat "$JOB/code" 2>/dev/null || echo 75
}

case "${1:-}" in
  install)
    if [ -z "$(command -v gcsfuse)" ]; then
      echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt" \
        "gcsfuse-$(lsb_release --codename --short) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
      curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
      sudo apt-get -o DPkg::Lock::Timeout=600 update --quiet
      sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet --yes gcsfuse
    fi
    # The system's Python may be too old.
    curl --fail --silent --show-error --location https://astral.sh/uv/install.sh | sh
    "$HOME/.local/bin/uv" venv --quiet --clear --python=3.12 .venv
    "$HOME/.local/bin/uv" pip install --quiet --python=.venv/bin/python --requirement=requirements.txt 'jax[tpu]'
    touch .venv/installed
    ;;
  start)
    bucket="$2" && shift 2
    if [ ! -e .venv/installed ]; then exit 127; fi  # tells tpu_vm.sh to install
    mountpoint --quiet runs ||
      gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 "$bucket" runs > /dev/null
    command="$(printf '%q ' "$@")"
    exec 9> "$JOB/lock"
    if ! flock --nonblock 9; then
      if [ "$command" = "$(cat "$JOB/command")" ]; then exit 0; fi
      echo "error: another command is already running on this TPU; launch/tpu_vm.sh stop ends it. The command is" \
        "$(cat "$JOB/command")" >&2
      exit 1
    fi
    rm -f "$JOB/code" "$JOB/pid"
    printf '%s\n' "$command" > "$JOB/command"
    # The supervisor inherits the lock. In a session of its own it survives the end of the connection.
    setsid "launch/${0##*/}" supervise .venv/bin/python -m "$@" > "$JOB/log" 2>&1 < /dev/null &
    ;;
  supervise)
    shift
    "$@" &
    echo "$!" > "$JOB/pid"
    code=0
    wait "$!" || code=$?
    echo "$code" > "$JOB/code"
    ;;
  follow)
    tail --lines=100 --follow --sleep-interval=0.2 --pid="$$" "$JOB/log" &
    flock --shared "$JOB/lock" true
    code="$(code)"
    if [ "$code" -ne 75 ]; then exit "$code"; fi
    ;;
  code) exit "$(code)" ;;
  stop) if is_running; then kill -TERM "$(cat "$JOB/pid")"; fi ;;
  *) echo "error: run launch/tpu_vm.sh, which calls this script" >&2 && exit 2 ;;
esac
