#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one run: usage tools/benchmark_gpu.sh [OUT_DIR]
# 1. The Triton kernels against the reference, all types. 2. The operator alone. 3. S and B against peers at the
# sizes of detection and segmentation, forward and training step, bfloat16, time and peak memory; then compiled.
set -euo pipefail
if (($# > 1)) || [[ ${1:-} == -* ]]; then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${1:-work_dirs/benchmark_gpu}
device=${DEVICE:-cuda}
inputs=${INPUTS:-512:2 512:8 800x1333:2 800x1333:8}
peers='swin-t sgformer-s swin-s sgformer-b convnext-t davit-t hornet-t'

MMSGFORMER_TEST_DEVICE=$device "$python" -m pytest tests/ops/test_attention.py
mkdir -p "$out"
# shellcheck disable=SC2086  lists of words
"$python" tools/benchmark_attention.py --inputs $inputs --types fp32 bf16 --device "$device" | tee "$out/attention.md"
# shellcheck disable=SC2086
"$python" tools/benchmark.py $peers --inputs $inputs --modes infer train --amp bf16 --device "$device" \
    --out "$out/eager"
# shellcheck disable=SC2086
"$python" tools/benchmark.py swin-t sgformer-s --inputs $inputs --modes infer train --amp bf16 --compile \
    --no-memory --device "$device" --out "$out/compiled"
