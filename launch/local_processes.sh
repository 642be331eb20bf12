#!/usr/bin/env bash
# Runs one command as several processes of this host: on CPU, to try what many hosts do, or one on each GPU.
#
#   launch/local_processes.sh [--dry-run] --processes=N [--devices-per-process=M] --config=configs/quickstart.py ...
#   launch/local_processes.sh [--dry-run] --gpus=0,1 --config=configs/ade20k.py ...
#
# The flags may begin with isnet_jax.evaluate, to evaluate. Process 0 writes here, process I to
# runs/local_processes/I.log. SIGTERM and Ctrl-C stop all after a checkpoint; once more, at once.
# Exit code: that of the first process to fail, the others are stopped then; 75 to run the same command again.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

GRACE_SECONDS=5  # for the others when one has failed
LOGS=runs/local_processes

processes='' devices='' gpus='' words=()
for word in "$@"; do
  case "$word" in
    --dry-run) dry_run=true ;;
    --processes=*) processes="${word#*=}" && require_count --processes "$processes" ;;
    --devices-per-process=*) devices="${word#*=}" && require_count --devices-per-process "$devices" ;;
    --gpus=*) gpus="${word#*=}" ;;
    *) words+=("$word") ;;
  esac
done
[ "$#" -gt 0 ] || usage
if [ -n "$gpus" ]; then
  [ -z "$processes$devices" ] || mistake "--gpus makes one process for each GPU: leave out --processes and" \
    "--devices-per-process."
  IFS=, read -ra gpu_list <<< "$gpus"
  processes="${#gpu_list[@]}"
fi
[ -n "$processes" ] || mistake "say how many processes: --processes=N on CPU, or --gpus=0,1,... for one on each GPU."
set_module_words ${words[@]+"${words[@]}"}

port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')"
pids=()
stops=0  # how often somebody asked to stop

signal() {
  kill "-$1" ${pids[@]+"${pids[@]}"} 2>/dev/null || true
}

# shellcheck disable=SC2329  # the trap does
stop() {
  stops=$((stops + 1))
  if [ "$stops" -eq 1 ]; then signal TERM; else signal KILL; fi
}

trap 'stop' INT TERM HUP
trap 'signal KILL' EXIT

execute mkdir -p "$LOGS"
for ((i = processes - 1; i >= 0; i--)); do
  if [ -n "$gpus" ]; then
    environment=("CUDA_VISIBLE_DEVICES=${gpu_list[i]}")
  else
    environment=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=${devices:-1}")
  fi
  process=(env "${environment[@]}" "$python" -m "${module_words[@]}"
           "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$i")
  if "$dry_run"; then
    printf '%s' "$(show "${process[@]}")"
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
    if [ "$stops" -gt 0 ] && [ "$status" -eq 143 ]; then status=75; fi  # it had not begun yet
    if "$failed" || [ "$status" -eq 0 ]; then continue; fi
    code="$status"
    if [ "$status" -eq 75 ]; then continue; fi
    failed=true
    deadline=$((SECONDS + GRACE_SECONDS))
    if [ "$stops" -eq 0 ]; then signal TERM; fi
    echo "process $i failed with exit code $status; the others are stopped" >&2
    if [ "$i" -gt 0 ]; then echo "the end of $LOGS/$i.log:" >&2 && tail -n 20 "$LOGS/$i.log" >&2; fi
  done
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then signal KILL; fi
  sleep 0.1 || true
done
exit "$code"
