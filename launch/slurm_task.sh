#!/usr/bin/env bash
# Runs one task of launch/slurm.sbatch. srun exits with the highest exit code of all tasks. Codes below 75 are raised
# by 100 here, so that a task that failed outranks the 75 of the tasks that lost it.
trap : TERM  # survive SIGTERM: the command receives it too and shuts down by itself
code=0
"$@" || code=$?
if [ "$code" -gt 0 ] && [ "$code" -lt 75 ]; then code=$((code + 100)); fi
exit "$code"
