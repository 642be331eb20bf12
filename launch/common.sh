# shellcheck shell=bash
# What the scripts of this folder share. They source it from the repository's root.

# shellcheck disable=SC2034  # read by those scripts
dry_run=false
# shellcheck disable=SC2034
python=python3
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

# Shows the comment that a script begins with, and leaves.
usage() {
  awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "launch/${script:-${0##*/}}" >&2
  exit 2
}

# What is wrong and what to do about it, and the usage.
mistake() {
  printf 'error: %s\n\n' "$*" | fold -s -w 110 >&2
  usage
}

# Prints a command as it can be pasted.
show() {
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line:1}"
}

# Runs a command, or prints it.
execute() {
  if "$dry_run"; then show "$@"; else "$@"; fi
}

# Sets `module_words`, what comes after `python -m`: isnet_jax.main and the flags given, or the module they begin with.
set_module_words() {
  local word config=''
  case "${1:-}" in isnet_jax.*) ;; *) set -- isnet_jax.main "$@" ;; esac
  module_words=("$@")
  for word in "${@:2}"; do
    case "$word" in
      --config=*) config="${word#--config=}" ;;
      --config.* | --noconfig.* | --workdir=* | --coordinator=* | --num_processes=* | --process_id=*) ;;
      *) [ "$1" != isnet_jax.main ] || mistake "there is no flag $word, neither here nor of isnet_jax.main; flags are" \
        "written as in --config=configs/ade20k.py." ;;
    esac
  done
  [ -n "$config" ] || mistake "--config=FILE is missing: give the recipe to run, as in --config=configs/ade20k.py."
  [ -f "${config%%:*}" ] || mistake "the config file ${config%%:*} does not exist in $PWD; give one as in" \
    "--config=configs/ade20k.py."
}

# For machines that have a copy: a config they do not get cannot be run there.
require_copied_config() {
  local word
  for word in "${module_words[@]}"; do
    case "$word" in --config=configs/*) return ;; esac
  done
  mistake "the config must be in configs/, which is what the machines get a copy of: move it there."
}

# Whether $2 is a whole number from 1 on; $1 is its flag.
require_count() {
  case "$2" in '' | 0* | *[!0-9]*) mistake "$1=$2 must be a whole number, 1 or more." ;; esac
}
