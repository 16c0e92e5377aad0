"""The Triton kernels, compiled ahead of time for GPUs that are not here, fit into those GPUs.

The interpreter, which the other tests use, takes what the compiler does not. Run as a script, this file is
the process that compiles: `TRITON_INTERPRET` is read when Triton is imported, and pytest sets it.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

import pytest
import torch

from mmsgformer.compat import HAS_TRITON

# A100, H100, B200.
CAPABILITIES = [80, 90, 100]
DTYPES = {torch.float32: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16', torch.uint8: 'u8'}
# Bytes of shared memory that a block may have on 8.6 and 8.9, which have least. 8.0 has 163 KiB, 9.0 and 10.0
# have 227.
MAX_SHARED = 99 * 1024
# Bytes that a thread may spill, where not 0: wide heads in float32. S, M and B have heads of 32 channels.
MAX_SPILLS = {('fp32', 64): 2 * 1024, ('fp32', 128): 32 * 1024}


class Recorder:
    """Stands in for a kernel: keeps what it would be launched with."""

    def __init__(self, kernel: Callable, launches: list) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable:
        def launch(*args: object, **constants: object) -> None:
            # The tensors are on a CPU here, where bfloat16 would be widened.
            self.launches.append((self.kernel, args, {**constants, 'widen': False}))

        return launch


def launches(dtype: torch.dtype, head_dim: int) -> list[tuple[Callable, tuple, dict]]:
    """Every launch's kernel, arguments and constants: a reduced map; windows with padding, by both ways."""
    from mmsgformer.ops import attention_triton, attention_triton_windows, attention_with_column_means

    recorded = []
    with contextlib.ExitStack() as patches:
        for module in (attention_triton, attention_triton_windows):
            for name in [name for name in vars(module) if name.endswith('_kernel')]:
                recorder = Recorder(getattr(module, name), recorded)
                patches.enter_context(mock.patch.object(module, name, recorder))
        # So that it takes tensors on a CPU.
        patches.enter_context(mock.patch.dict(os.environ, TRITON_INTERPRET='1'))
        for batch, queries, keys, dropout in ((2, 3136, 49, 0.0), (18, 49, 49, 0.0), (18, 49, 49, 0.1)):
            q, k, v = (
                torch.zeros(batch, n, 2, head_dim, dtype=dtype, requires_grad=True).transpose(1, 2)
                for n in (queries, keys, keys)
            )
            valid = torch.ones(batch, keys, dtype=torch.bool) if queries == keys else None
            out, _ = attention_with_column_means(q, k, v, valid, dropout, backend='triton')
            out.sum().backward()
    return recorded


def compile_for(capability: int, kernel: Callable, args: tuple, constants: dict) -> dict:
    """What ptxas says of the kernel, specialised as a launch with these arguments would be."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature |= dict.fromkeys(constants, 'constexpr')
    for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):  # the constants come last
        number = value.data_ptr() if torch.is_tensor(value) else value
        if number == 1:
            signature[name], constants[name] = 'constexpr', 1
        else:
            signature[name] = f'*{DTYPES[value.dtype]}' if torch.is_tensor(value) else 'i32'
        if number % 16 == 0:
            attributes[(i,)] = [['tt.divisibility', 16]]
    triton.knobs.nvidia.dump_ptxas_log = True
    with contextlib.redirect_stdout(io.StringIO()) as log:
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    stores, loads = re.search(r'(\d+) bytes spill stores, (\d+) bytes spill loads', log.getvalue()).groups()
    return {
        'kernel': kernel.__name__,
        'valid': constants['has_valid'],
        'registers': int(re.search(r'Used (\d+) registers', log.getvalue())[1]),
        'spills': int(stores) + int(loads),
        'shared': compiled.metadata.shared,
    }


def compile_all(capability: int, head_dims: list[int]) -> list[dict]:
    """Every kernel in every type, with heads of these sizes."""
    return [
        {'dtype': DTYPES[dtype], 'head_dim': head_dim, **compile_for(capability, *launch)}
        for head_dim in head_dims
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for launch in launches(dtype, head_dim)
    ]


@pytest.mark.skipif(not HAS_TRITON, reason='Triton 3.4 is not installed: torch 2.8 brought it')
@pytest.mark.parametrize(
    'head_dims',
    [[32], pytest.param([16, 64, 128], marks=pytest.mark.slow)],
    ids=['heads of S, M and B', 'other heads'],
)
@pytest.mark.parametrize('capability', CAPABILITIES)
def test_kernels_compile_and_fit(capability, head_dims, tmp_path):
    """Shared memory and registers are within their limits; with `-s` it prints the table."""
    environment = {**os.environ, 'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(tmp_path)}
    command = [sys.executable, __file__, str(capability), *map(str, head_dims)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    compiled = json.loads(result.stdout)
    assert len(compiled) == (2 + 2 + 2) * 3 * len(head_dims)
    for one in compiled:
        print(capability, *one.values())
        assert one['shared'] <= MAX_SHARED, one
        assert one['spills'] <= MAX_SPILLS.get((one['dtype'], one['head_dim']), 0), one


if __name__ == '__main__':
    capability, *head_dims = map(int, sys.argv[1:])
    print(json.dumps(compile_all(capability, head_dims)))
