#!/usr/bin/env bash
# Trains on the GPUs of this host, or on some of them.
#
#   launch/single_host.sh [--dry-run] [--gpus=0,1] --config=configs/ade20k.py [--workdir=DIR] [--config.FIELD=VALUE ...]
#
# The flags may begin with isnet_jax.evaluate, to evaluate.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

words=()
for word in "$@"; do
  case "$word" in
    --dry-run) dry_run=true ;;
    --gpus=*) export CUDA_VISIBLE_DEVICES="${word#--gpus=}" ;;
    *) words+=("$word") ;;
  esac
done
[ "$#" -gt 0 ] || usage
set_module_words ${words[@]+"${words[@]}"}
command=("$python" -m "${module_words[@]}")

if "$dry_run"; then
  [ -z "${CUDA_VISIBLE_DEVICES:-}" ] || printf 'CUDA_VISIBLE_DEVICES=%q ' "$CUDA_VISIBLE_DEVICES"
  show "${command[@]}"
  exit 0
fi
exec "${command[@]}"
