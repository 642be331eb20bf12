#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one slice, on all its hosts.
#
#   launch/tpu_vm.sh create  TPU --accelerator-type=v5litepod-16 [--spot] [--service-account=EMAIL]
#   launch/tpu_vm.sh install TPU
#   launch/tpu_vm.sh run     TPU --accelerator-type=v5litepod-16 [--spot] [--service-account=EMAIL]
#                            --bucket=BUCKET --config=configs/ade20k.py [--config.FIELD=VALUE ...]
#   launch/tpu_vm.sh logs | stop | delete  TPU
#
# TPU stands for --name=NAME --zone=ZONE [--project=PROJECT]. The environment variables TPU_NAME, ZONE, PROJECT_ID,
# ACCELERATOR_TYPE and BUCKET are the defaults of these flags. --dry-run prints the commands. To evaluate, put
# isnet_jax.evaluate before the training flags.
#
# `run` creates the TPU if it does not exist, installs the code on a new one, mounts BUCKET as runs/ on every host and
# follows the command until it ends. It starts over when the TPU is preempted or the command stops with exit code 75.
# Ctrl-C only detaches: `run` attaches again, `logs` shows the output, `stop` ends the command after a checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

PAUSE_SECONDS=30
COPIED_PATHS=(isnet_jax configs launch requirements.txt pyproject.toml)
WORKER=isnet_jax/launch/tpu_vm_worker.sh

[ "$#" -gt 0 ] || usage
action="$1" && shift
case "$action" in
  create | install | run | logs | stop | delete) ;;
  *) usage_error "unknown action $action: choose create, install, run, logs, stop or delete." ;;
esac

name="${TPU_NAME:-}" zone="${ZONE:-}" project="${PROJECT_ID:-}" accelerator_type="${ACCELERATOR_TYPE:-}"
bucket="${BUCKET:-}" options=() args=()
for arg in "$@"; do
  case "$arg" in
    --dry-run) dry_run=true ;;
    --name=*) name="${arg#*=}" ;;
    --zone=*) zone="${arg#*=}" ;;
    --project=*) project="${arg#*=}" ;;
    --accelerator-type=*) accelerator_type="${arg#*=}" ;;
    --bucket=*) bucket="${arg#*=}" && bucket="${bucket#gs://}" ;;
    --spot | --service-account=*) options+=("$arg") ;;
    *) args+=("$arg") ;;
  esac
done
[ -n "$name" ] || usage_error "the name of the TPU is missing: give one, as in --name=isnet."
[ -n "$zone" ] || usage_error "the zone is missing: give one that offers such TPUs, as in --zone=us-west4-a."
case "$action" in
  create | run) [ -n "$accelerator_type" ] || usage_error "the accelerator type, which sets the TPU's generation and" \
    "size, is missing: give one, as in --accelerator-type=v5litepod-16." ;;
esac
if [ "$action" = run ]; then
  [ -n "$bucket" ] || usage_error "the bucket is missing: a TPU's disks do not outlive the TPU, so runs/ must be in a" \
    "bucket, as in --bucket=my-runs."
  set_module_args ${args[@]+"${args[@]}"}
  require_copied_config
elif [ "${#args[@]}" -gt 0 ]; then
  usage_error "$action takes no ${args[0]}."
fi
"$dry_run" || [ -n "$(command -v gcloud)" ] ||
  usage_error "gcloud is not installed: see https://cloud.google.com/sdk/docs/install."

location=("--zone=$zone")
[ -z "$project" ] || location+=("--project=$project")
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

# Sets `answer` to the output of a gcloud command; empty if the resource does not exist. Only the first query may fail.
num_queries=0
query() {
  num_queries=$((num_queries + 1))
  if "$dry_run"; then
    print_command "$@"
    case "$num_queries" in 1) answer='' ;; 2) answer=ACTIVE ;; *) answer=READY ;; esac
    return
  fi
  until answer="$("$@" 2> "$errors")"; do
    answer=''
    if grep -q NOT_FOUND "$errors"; then return; fi
    cat "$errors" >&2
    if [ "$num_queries" -eq 1 ]; then exit 1; fi  # later failures are the network's, which a run of days must survive
    pause
  done
}

# Sets `state` to absent, waiting, ready, failed or gone, and logs a change.
state=''
update_state() {
  local previous="$state" node=''
  query gcloud compute tpus queued-resources describe "$name" "${location[@]}" '--format=value(state.state)'
  local queue="$answer"
  if [ "$queue" = ACTIVE ]; then
    query gcloud compute tpus tpu-vm describe "$name" "${location[@]}" '--format=value(state)'
    node="$answer"
  fi
  case "$queue $node" in
    ' ') state=absent ;;
    'ACTIVE READY') state=ready ;;
    'FAILED ') state=failed ;;
    'SUSPENDED ' | 'ACTIVE PREEMPTED' | 'ACTIVE TERMINATED') state=gone ;;
    *) state=waiting ;;
  esac
  "$dry_run" || [ "$state" = "$previous" ] || echo "TPU $name: $state ${queue:+($queue${node:+, $node})}" >&2
}

# Waits until the TPU is ready, creating it if necessary. Sets `is_new`: whether it was created here.
is_new=false was_ready=false
ensure_ready() {
  is_new=false
  while update_state && [ "$state" != ready ]; do
    case "$state" in
      absent)
        execute gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${location[@]}" \
          "--accelerator-type=$accelerator_type" "--runtime-version=$runtime" ${options[@]+"${options[@]}"} ||
          "$was_ready" || exit 1
        is_new=true ;;
      failed)
        query gcloud compute tpus queued-resources describe "$name" "${location[@]}" '--format=value(state.failedData)'
        echo "TPU $name could not be allocated: $answer" >&2
        "$was_ready" || exit 1  # the user must `delete` it and request another type or zone
        delete_tpu || true ;;
      gone) delete_tpu || true ;;
    esac
    pause
  done
  was_ready=true
}

delete_tpu() {
  execute gcloud compute tpus queued-resources delete "$name" "${location[@]}" --force --quiet
}

# Runs a command on every host. It must be idempotent: gcloud repeats it after a broken connection.
on_hosts() {
  execute gcloud compute tpus tpu-vm ssh "$name" "${location[@]}" --worker=all "--ssh-flag=-oServerAliveInterval=30" \
    "--ssh-flag=-oConnectTimeout=20" "--command=$(print_command "$@")"
}

install() {
  on_hosts mkdir -p isnet_jax &&
    execute gcloud compute tpus tpu-vm scp --recurse "${COPIED_PATHS[@]}" "$name:isnet_jax/" "${location[@]}" \
      --worker=all &&
    on_hosts "$WORKER" install
}

was_started=false
start_and_follow() {
  if "$is_new"; then install || return; fi
  on_hosts "$WORKER" start "$bucket" "${module_args[@]}" || return
  was_started=true
  on_hosts "$WORKER" follow && on_hosts "$WORKER" code
}

run() {
  local code
  trap 'echo "the command on TPU $name keeps running: launch/tpu_vm.sh run, logs, stop or delete" >&2; exit 130' INT
  while ensure_ready; do
    code=0
    start_and_follow || code=$?
    case "$code" in
      0) break ;;
      75) ;;
      127) install && continue ;;  # the TPU exists, but nothing is installed on it
      255) "$was_started" || exit 255 ;;  # connection lost
      *)
        pause  # a TPU that is being preempted may look ready for a moment
        update_state
        [ "$state" != ready ] || exit "$code" ;;
    esac
    echo "TPU $name: exit code $code; running the same command again" >&2
    pause
  done
  "$dry_run" || echo "finished; the TPU is billed until launch/tpu_vm.sh delete" >&2
}

case "$action" in
  create) ensure_ready ;;
  install) install ;;
  run) run ;;
  logs) on_hosts "$WORKER" follow ;;
  stop) on_hosts "$WORKER" stop ;;
  delete) delete_tpu ;;
esac
