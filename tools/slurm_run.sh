#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh share: PARTITION JOB_NAME SCRIPT [arguments].
# Starts one task per process with srun and hands torch.distributed the variables that torchrun would set,
# so that a SLURM job is an ordinary distributed run.
set -euo pipefail
partition=$1 job=$2
shift 2
gpus=${GPUS:-8} gpus_per_node=${GPUS_PER_NODE:-8}
resources=(--ntasks="$gpus" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1)
if ((gpus_per_node > 0)); then
  per_node=$((gpus < gpus_per_node ? gpus : gpus_per_node))
  resources+=(--gres="gpu:$per_node" --ntasks-per-node="$per_node")
fi
# shellcheck disable=SC2016,SC2086  # expanded inside the task; SRUN_ARGS is a list of words
exec srun --partition="$partition" --job-name="$job" "${resources[@]}" ${SRUN_ARGS:-} bash -c '
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
  export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
  exec "${PYTHON:-python}" -u "$@"' task "$@"
