#!/usr/bin/env bash
# Trains on the GPUs of this host, or on some of them.
#
#   launch/single_host.sh [--dry-run] [--gpus=0,1] --config=configs/ade20k.py [--workdir=DIR] [--config.FIELD=VALUE ...]
set -euo pipefail

dry_run=false
arguments=()
for word in "$@"; do
  case "$word" in
    --dry-run) dry_run=true ;;
    --gpus=*) export CUDA_VISIBLE_DEVICES="${word#--gpus=}" ;;
    *) arguments+=("$word") ;;
  esac
done
if [ "${#arguments[@]}" -eq 0 ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

cd "$(dirname "$0")/.."
python=python3
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
command=("$python" -m isnet_jax.main "${arguments[@]}")

if "$dry_run"; then
  [ -z "${CUDA_VISIBLE_DEVICES:-}" ] || printf 'CUDA_VISIBLE_DEVICES=%q ' "$CUDA_VISIBLE_DEVICES"
  printf '%q ' "${command[@]}"
  printf '\n'
  exit 0
fi
exec "${command[@]}"
