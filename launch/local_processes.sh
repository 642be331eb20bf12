#!/usr/bin/env bash
# Runs one command as several processes on this host: on CPU, to simulate several hosts, or one per GPU.
#
#   launch/local_processes.sh [--dry-run] --processes=N [--devices-per-process=M] --config=configs/quickstart.py ...
#   launch/local_processes.sh [--dry-run] --gpus=0,1 --config=configs/ade20k.py ...
#
# To evaluate, put isnet_jax.evaluate before the training flags. Process 0 writes to this terminal, process I to
# runs/local_processes/I.log. SIGTERM or Ctrl-C stops all processes after a checkpoint; a second one kills them.
# Exit code: that of the first process to fail, after which the others are stopped; 75 means run the command again.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

GRACE_SECONDS=5  # between SIGTERM and SIGKILL for the other processes once one has failed
LOGS=runs/local_processes

processes='' devices='' gpus='' args=()
for arg in "$@"; do
  case "$arg" in
    --dry-run) dry_run=true ;;
    --processes=*) processes="${arg#*=}" && require_count --processes "$processes" ;;
    --devices-per-process=*) devices="${arg#*=}" && require_count --devices-per-process "$devices" ;;
    --gpus=*) gpus="${arg#*=}" ;;
    *) args+=("$arg") ;;
  esac
done
[ "$#" -gt 0 ] || usage
if [ -n "$gpus" ]; then
  [ -z "$processes$devices" ] || usage_error "--gpus starts one process per GPU: leave out --processes and" \
    "--devices-per-process."
  IFS=, read -ra gpu_list <<< "$gpus"
  processes="${#gpu_list[@]}"
fi
[ -n "$processes" ] || usage_error "the number of processes is missing: give --processes=N on CPU, or --gpus=0,1,..." \
  "for one per GPU."
set_module_args ${args[@]+"${args[@]}"}

port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')"
pids=()
stop_requests=0  # signals received

signal_all() {
  kill "-$1" ${pids[@]+"${pids[@]}"} 2>/dev/null || true
}

# shellcheck disable=SC2329  # called by the trap
stop() {
  stop_requests=$((stop_requests + 1))
  if [ "$stop_requests" -eq 1 ]; then signal_all TERM; else signal_all KILL; fi
}

trap 'stop' INT TERM HUP
trap 'signal_all KILL' EXIT

execute mkdir -p "$LOGS"
for ((i = processes - 1; i >= 0; i--)); do
  if [ -n "$gpus" ]; then
    environment=("CUDA_VISIBLE_DEVICES=${gpu_list[i]}")
  else
    environment=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=${devices:-1}")
  fi
  process=(env "${environment[@]}" "$python" -m "${module_args[@]}"
           "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$i")
  if "$dry_run"; then
    printf '%s' "$(print_command "${process[@]}")"
    if [ "$i" -gt 0 ]; then printf ' > %s 2>&1 &\n' "$LOGS/$i.log"; else printf '\n'; fi
  elif [ "$i" -gt 0 ]; then
    "${process[@]}" > "$LOGS/$i.log" 2>&1 &
    pids[i]=$!
  else
    "${process[@]}" &
    pids[i]=$!
  fi
done

code=0 failed=false deadline=''
while [ "${#pids[@]}" -gt 0 ]; do
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    status=0
    wait "${pids[i]}" 2>/dev/null || status=$?
    unset "pids[i]"
    # SIGTERM came before the process had installed its handler
    if [ "$stop_requests" -gt 0 ] && [ "$status" -eq 143 ]; then status=75; fi
    if "$failed" || [ "$status" -eq 0 ]; then continue; fi
    code="$status"
    if [ "$status" -eq 75 ]; then continue; fi
    failed=true
    deadline=$((SECONDS + GRACE_SECONDS))
    if [ "$stop_requests" -eq 0 ]; then signal_all TERM; fi
    echo "process $i failed with exit code $status; stopping the others" >&2
    if [ "$i" -gt 0 ]; then echo "last lines of $LOGS/$i.log:" >&2 && tail -n 20 "$LOGS/$i.log" >&2; fi
  done
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then signal_all KILL; fi
  sleep 0.1 || true
done
exit "$code"
