#!/usr/bin/env bash
# One task of launch/slurm.sbatch. srun exits with the highest code of all tasks; here that of a task that failed
# outranks the 75 of those that lost it.
trap : TERM  # it is for the command, which then ends by itself
code=0
"$@" || code=$?
if [ "$code" -gt 0 ] && [ "$code" -lt 75 ]; then code=$((code + 100)); fi
exit "$code"
