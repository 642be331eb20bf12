# shellcheck shell=bash
# Functions shared by the launch scripts, which source this file from the repository's root.

# shellcheck disable=SC2034  # used by the scripts
dry_run=false
# shellcheck disable=SC2034
python=python3
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

# Prints the header comment of the calling script as its usage and exits with code 2.
usage() {
  awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "launch/${script:-${0##*/}}" >&2
  exit 2
}

# Prints an error message and the usage, and exits with code 2.
usage_error() {
  printf 'error: %s\n\n' "$*" | fold -s -w 110 >&2
  usage
}

# Prints a command, quoted so that it can be pasted into a shell.
print_command() {
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line:1}"
}

# Runs a command; with --dry-run, prints it instead.
execute() {
  if "$dry_run"; then print_command "$@"; else "$@"; fi
}

# Sets `module_args`, the arguments of `python -m`: isnet_jax.main and the flags, unless these start with a module.
set_module_args() {
  local arg config=''
  case "${1:-}" in isnet_jax.*) ;; *) set -- isnet_jax.main "$@" ;; esac
  module_args=("$@")
  for arg in "${@:2}"; do
    case "$arg" in
      --config=*) config="${arg#--config=}" ;;
      --config.* | --noconfig.* | --workdir=* | --coordinator=* | --num_processes=* | --process_id=*) ;;
      *) [ "$1" != isnet_jax.main ] || usage_error "unknown flag $arg: neither this script nor isnet_jax.main has it;" \
        "write flags as in --config=configs/ade20k.py." ;;
    esac
  done
  [ -n "$config" ] || usage_error "--config=FILE is missing: give the recipe to run, as in --config=configs/ade20k.py."
  [ -f "${config%%:*}" ] || usage_error "the config file ${config%%:*} does not exist in $PWD; give one as in" \
    "--config=configs/ade20k.py."
}

# Exits unless the config is in configs/, the only directory of configs that remote machines receive.
require_copied_config() {
  local arg
  for arg in "${module_args[@]}"; do
    case "$arg" in --config=configs/*) return ;; esac
  done
  usage_error "the config must be in configs/, which is copied to the machines: move it there."
}

# Exits unless $2, the value of flag $1, is a positive integer.
require_count() {
  case "$2" in '' | 0* | *[!0-9]*) usage_error "$1=$2 must be a positive integer." ;; esac
}
