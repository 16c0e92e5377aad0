#!/usr/bin/env bash
# Test with SLURM: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [tools/test.py arguments]
# GPUS (8), GPUS_PER_NODE (8) and CPUS_PER_TASK (5) size the job, GPUS_PER_NODE=0 with GPUS=n runs n
# processes on CPU; SRUN_ARGS goes to srun.
set -euo pipefail
if (($# < 4)); then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
partition=$1 job=$2 config=$3 checkpoint=$4
shift 4
exec "$(dirname "$0")/slurm_run.sh" "$partition" "$job" \
  "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
