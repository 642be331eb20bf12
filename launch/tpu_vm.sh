#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one slice, all its hosts.
#
#   launch/tpu_vm.sh create  NAMES --accelerator-type=v5litepod-16 [--spot] [--service-account=EMAIL]
#   launch/tpu_vm.sh install NAMES
#   launch/tpu_vm.sh run     NAMES --accelerator-type=v5litepod-16 [--spot] [--service-account=EMAIL]
#                            --bucket=BUCKET --config=configs/ade20k.py [--config.FIELD=VALUE ...]
#   launch/tpu_vm.sh logs | stop | delete  NAMES
#
# NAMES is --name=NAME --zone=ZONE [--project=PROJECT]. TPU_NAME, ZONE, PROJECT_ID, ACCELERATOR_TYPE and BUCKET in the
# environment do as well. --dry-run prints the commands. The training flags may begin with isnet_jax.evaluate.
#
# `run` creates and installs what is not there yet, mounts BUCKET as runs/ on every host and follows the command until
# it ends. Where the TPU is preempted or the command stops with exit code 75, the same is done again. Ctrl-C only stops
# watching: `run` takes it up again, `logs` shows what goes on, `stop` then ends the command after a checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

PAUSE_SECONDS=30
COPIED=(isnet_jax configs launch requirements.txt pyproject.toml)
WORKER=isnet_jax/launch/tpu_vm_worker.sh

[ "$#" -gt 0 ] || usage
action="$1" && shift
case "$action" in create | install | run | logs | stop | delete) ;; *) mistake "there is no action $action." ;; esac

name="${TPU_NAME:-}" zone="${ZONE:-}" project="${PROJECT_ID:-}" accelerator_type="${ACCELERATOR_TYPE:-}"
bucket="${BUCKET:-}" options=() words=()
for word in "$@"; do
  case "$word" in
    --dry-run) dry_run=true ;;
    --name=*) name="${word#*=}" ;;
    --zone=*) zone="${word#*=}" ;;
    --project=*) project="${word#*=}" ;;
    --accelerator-type=*) accelerator_type="${word#*=}" ;;
    --bucket=*) bucket="${word#*=}" && bucket="${bucket#gs://}" ;;
    --spot | --service-account=*) options+=("$word") ;;
    *) words+=("$word") ;;
  esac
done
[ -n "$name" ] || mistake "the TPU has no name: give one, as in --name=isnet."
[ -n "$zone" ] || mistake "the zone is missing: give one that has such TPUs, as in --zone=us-west4-a."
case "$action" in
  create | run) [ -n "$accelerator_type" ] || mistake "the kind and size of the TPU is missing: give it as in" \
    "--accelerator-type=v5litepod-16." ;;
esac
if [ "$action" = run ]; then
  [ -n "$bucket" ] || mistake "a TPU's disks are lost with it: give a bucket that holds runs/, as in --bucket=my-runs."
  set_module_words ${words[@]+"${words[@]}"}
  require_copied_config
elif [ "${#words[@]}" -gt 0 ]; then
  mistake "$action takes no ${words[0]}."
fi
"$dry_run" || [ -n "$(command -v gcloud)" ] ||
  mistake "gcloud is not installed: see https://cloud.google.com/sdk/docs/install."

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
case "$accelerator_type" in
  v5lite*) runtime=v2-alpha-tpuv5-lite ;;
  v5p*) runtime=v2-alpha-tpuv5 ;;
  v6e*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT

pause() {
  "$dry_run" || sleep "$PAUSE_SECONDS"
}

# Sets `answer` to what a command prints, and to nothing if what it asks for does not exist.
asked=0
ask() {
  asked=$((asked + 1))
  if "$dry_run"; then
    show "$@"
    case "$asked" in 1) answer='' ;; 2) answer=ACTIVE ;; *) answer=READY ;; esac
    return
  fi
  until answer="$("$@" 2> "$errors")"; do
    answer=''
    if grep -q NOT_FOUND "$errors"; then return; fi
    cat "$errors" >&2
    if [ "$asked" -eq 1 ]; then exit 1; fi  # later it is the network, and a run of days outlives that
    pause
  done
}

# Sets `state` to absent, waiting, ready, failed or gone, and tells when it changes.
state=''
look() {
  local before="$state" node=''
  ask gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
  local queue="$answer"
  if [ "$queue" = ACTIVE ]; then
    ask gcloud compute tpus tpu-vm describe "$name" "${where[@]}" '--format=value(state)'
    node="$answer"
  fi
  case "$queue $node" in
    ' ') state=absent ;;
    'ACTIVE READY') state=ready ;;
    'FAILED ') state=failed ;;
    'SUSPENDED ' | 'ACTIVE PREEMPTED' | 'ACTIVE TERMINATED') state=gone ;;
    *) state=waiting ;;
  esac
  "$dry_run" || [ "$state" = "$before" ] || echo "TPU $name: $state ${queue:+($queue${node:+, $node})}" >&2
}

# Returns when the TPU is ready; `fresh` tells whether it is a new one.
fresh=false was_ready=false
provide() {
  fresh=false
  while look && [ "$state" != ready ]; do
    case "$state" in
      absent)
        execute gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
          "--accelerator-type=$accelerator_type" "--runtime-version=$runtime" ${options[@]+"${options[@]}"} ||
          "$was_ready" || exit 1
        fresh=true ;;
      failed)
        ask gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.failedData)'
        echo "TPU $name cannot be had: $answer" >&2
        "$was_ready" || exit 1  # `delete` it, and ask for what can be had
        remove || true ;;
      gone) remove || true ;;
    esac
    pause
  done
  was_ready=true
}

remove() {
  execute gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# Runs a command on every host. gcloud connects again where a connection breaks, so it must bear being run twice.
on_hosts() {
  execute gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--ssh-flag=-oServerAliveInterval=30" \
    "--ssh-flag=-oConnectTimeout=20" "--command=$(show "$@")"
}

install() {
  on_hosts mkdir -p isnet_jax &&
    execute gcloud compute tpus tpu-vm scp --recurse "${COPIED[@]}" "$name:isnet_jax/" "${where[@]}" --worker=all &&
    on_hosts "$WORKER" install
}

was_started=false
attempt() {
  if "$fresh"; then install || return; fi
  on_hosts "$WORKER" start "$bucket" "${module_words[@]}" || return
  was_started=true
  on_hosts "$WORKER" follow && on_hosts "$WORKER" code
}

run() {
  local code
  trap 'echo "what runs on TPU $name goes on: launch/tpu_vm.sh run, logs, stop or delete" >&2; exit 130' INT
  while provide; do
    code=0
    attempt || code=$?
    case "$code" in
      0) break ;;
      75) ;;
      127) install && continue ;;  # it was made earlier, and never installed
      255) "$was_started" || exit 255 ;;  # the connection is lost
      *)
        pause  # a TPU that is being preempted may look ready for a moment
        look
        [ "$state" != ready ] || exit "$code" ;;
    esac
    echo "TPU $name: exit code $code, the same command is run again" >&2
    pause
  done
  "$dry_run" || echo "finished; to stop paying for the TPU: launch/tpu_vm.sh delete" >&2
}

case "$action" in
  create) provide ;;
  install) install ;;
  run) run ;;
  logs) on_hosts "$WORKER" follow ;;
  stop) on_hosts "$WORKER" stop ;;
  delete) remove ;;
esac
