#!/usr/bin/env bash
# Trains on the GPUs of this host: all of them, or those of --gpus.
#
#   launch/single_host.sh [--dry-run] [--gpus=0,1] --config=configs/ade20k.py [--workdir=DIR] [--config.FIELD=VALUE ...]
#
# To evaluate, put isnet_jax.evaluate before the training flags.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

args=()
for arg in "$@"; do
  case "$arg" in
    --dry-run) dry_run=true ;;
    --gpus=*) export CUDA_VISIBLE_DEVICES="${arg#--gpus=}" ;;
    *) args+=("$arg") ;;
  esac
done
[ "$#" -gt 0 ] || usage
set_module_args ${args[@]+"${args[@]}"}
command=("$python" -m "${module_args[@]}")

if "$dry_run"; then
  [ -z "${CUDA_VISIBLE_DEVICES:-}" ] || printf 'CUDA_VISIBLE_DEVICES=%q ' "$CUDA_VISIBLE_DEVICES"
  print_command "${command[@]}"
  exit 0
fi
exec "${command[@]}"
