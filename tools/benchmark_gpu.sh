#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one run: usage tools/benchmark_gpu.sh [OUT_DIR]
# 1. The Triton kernels against the reference, all types. 2. The operator alone. 3. S and B against peers in
# bfloat16 and float32, forward and training step, one image and many, time and peak memory. 4. Compiled.
set -euo pipefail
if (($# > 1)) || [[ ${1:-} == -* ]]; then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${1:-work_dirs/benchmark_gpu}
device=${DEVICE:-cuda}
inputs=${INPUTS:-224:1 224:64 512:1 512:16 800x1333:1 800x1333:8 512x2048:1 512x2048:8}
peers='swin-t sgformer-s swin-s sgformer-b convnext-t davit-t pvtv2-b2 hornet-t'

MMSGFORMER_TEST_DEVICE=$device "$python" -m pytest tests/ops/test_attention.py
mkdir -p "$out"
# shellcheck disable=SC2086  lists of words
"$python" tools/benchmark_attention.py --inputs $inputs --types bf16 fp32 --device "$device" | tee "$out/attention.md"
for type in bf16 fp32; do
    amp=()
    if [[ $type != fp32 ]]; then amp=(--amp $type); fi
    # shellcheck disable=SC2086
    "$python" tools/benchmark.py $peers --inputs $inputs --modes infer train "${amp[@]}" --rounds 5 \
        --device "$device" --out "$out/$type"
done
# shellcheck disable=SC2086
"$python" tools/benchmark.py swin-t sgformer-s --inputs $inputs --modes infer train --amp bf16 --rounds 5 --compile \
    --no-memory --device "$device" --out "$out/compiled"
