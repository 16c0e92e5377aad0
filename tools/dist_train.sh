#!/usr/bin/env bash
# Train with several processes: tools/dist_train.sh CONFIG PROCESSES_PER_NODE [tools/train.py arguments]
# One process per GPU; without GPUs they run on CPU with gloo.
# Several nodes: run it on each with NNODES, NODE_RANK and MASTER_ADDR set (and PORT, if 29500 is taken).
set -euo pipefail
if (($# < 2)); then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
config=$1 processes=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
