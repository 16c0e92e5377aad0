"""Whether attention without column means is quicker by ours in C++ or by torch's: measured once a machine."""

import contextlib
import functools
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsgformer.ops import attention_cpu
from mmsgformer.ops.attention_chunked import chunked_attention

_ROUNDS = 3
# (images, heads, queries, keys, channels of a head) to measure, for up to so many keys and for more.
_FEW_KEYS = 128
_SHAPES = {'few keys': (32, 1, 49, 49, 32), 'many keys': (1, 2, 4096, 784, 32)}


def ours_is_quicker(q: Tensor, k: Tensor) -> bool:
    """Whether attention of these queries and keys (B, heads, N, d) is left to the operator in C++.

    `MMSGFORMER_CPU_KERNEL=1` in the environment uses it wherever it can be built, `0` never: so the bits are
    the same on machines of different pace.
    """
    # Tensors without numbers, as torch's FLOP counter gets, cannot be timed, nor anything beside them.
    if type(q) is not Tensor or not attention_cpu.fits(q):
        return False
    if os.environ.get('MMSGFORMER_CPU_KERNEL') == '1':
        return True
    keys = 'few keys' if k.shape[2] <= _FEW_KEYS else 'many keys'
    return _choices()[_name(q.dtype, torch.is_grad_enabled() and q.requires_grad, keys)]


def _name(dtype: torch.dtype, training: bool, keys: str) -> str:
    exact = dtype == torch.float32
    return f'{"float32" if exact else "half"}, {"training" if training else "inference"}, {keys}'


@functools.cache
def _choices() -> dict[str, bool]:
    """Whether ours is quicker, in each case; kept beside the compiled operator, so that it stays the same."""
    file = attention_cpu.library_path().with_suffix('.json')
    if not file.exists():
        found = measure()
        try:
            _keep_first(json.dumps(found, indent=1), file)
        except OSError:  # read only, or without hard links: the next process measures again
            return found
    return json.loads(file.read_text())


def _keep_first(text: str, file: Path) -> None:
    """Write a file whole, unless another process was sooner."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        part = Path(folder, 'part')
        part.write_text(text)
        with contextlib.suppress(FileExistsError):
            os.link(part, file)


def measure() -> dict[str, bool]:
    """Time both ways in each case; takes about a second.

    In a thread of its own: there the caller's autocast, FLOP counter or default device are not on.
    """
    threads = torch.get_num_threads()

    def run() -> dict[str, bool]:
        torch.set_num_threads(threads)
        found = {}
        for dtype in (torch.float32, torch.bfloat16):
            for training in (False, True):
                for keys, shape in _SHAPES.items():
                    ours, theirs = _times(shape, dtype, training)
                    found[_name(dtype, training, keys)] = ours < theirs
        return found

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def _times(shape: tuple[int, ...], dtype: torch.dtype, training: bool) -> tuple[float, float]:
    """Median seconds of our attention and of torch's, which take turns."""
    batch, heads, queries, keys, dim = shape
    random = torch.Generator().manual_seed(0)  # not the caller's
    leaves = [
        torch.randn(batch, n, heads, dim, generator=random).to(dtype).transpose(1, 2).requires_grad_(training)
        for n in (queries, keys, keys)
    ]
    ways = (lambda *qkv: chunked_attention(*qkv, None)[0], F.scaled_dot_product_attention)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS + 1):  # the first is to warm up
        for way, times in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            out = way(*leaves)
            if training:
                torch.autograd.grad(out, leaves, torch.ones_like(out))
            times.append(time.perf_counter() - start)
    return median(seconds[0][1:]), median(seconds[1][1:])
