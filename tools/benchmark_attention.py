"""The operator alone: attention with its column means, beside torch's, which makes none, as a Markdown table.

    python tools/benchmark_attention.py --inputs 224:8 896 800x1333 --arch s

The shapes are those of an architecture's hybrid-scale blocks: all tokens to the reduced map, and windows.
Both take turns; times are medians. Memory is the peak of a forward and a backward pass above that of their
inputs, in a fresh process.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from benchmark import AMP_DTYPES, MIB, parse_input, resident_memory, seconds, time_in_turns
from torch import Tensor

from mmsgformer.archs import ARCHS, NUM_STAGES, resolve_arch
from mmsgformer.attention import WINDOW_SIZE, multiples
from mmsgformer.mixers.sgformer import REDUCTIONS
from mmsgformer.ops import attention_with_column_means
from mmsgformer.sgformer import STRIDES


class Case(NamedTuple):
    """Attention of q (batch, heads, queries, channels) to as many keys and values."""

    batch: int
    heads: int
    queries: int
    keys: int
    channels: int


def with_means(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output of the operator; the means are computed too."""
    return attention_with_column_means(q, k, v)[0]


WAYS = {'with means': with_means, 'torch, without': F.scaled_dot_product_attention}
TYPES = {'fp32': torch.float32, **AMP_DTYPES}


def cases(arch: str, batch: int, height: int, width: int) -> list[Case]:
    """Every shape in which a hybrid-scale block of an architecture attends, for a batch of images."""
    dims, _, all_heads = resolve_arch(arch)
    found = []
    for stage in range(NUM_STAGES - 1):
        rows, columns = (multiples(side, STRIDES[stage]) for side in (height, width))
        keys = multiples(rows, REDUCTIONS[stage]) * multiples(columns, REDUCTIONS[stage])
        windows = multiples(rows, WINDOW_SIZE) * multiples(columns, WINDOW_SIZE)
        heads, channels = all_heads[stage] // 2, dims[stage] // all_heads[stage]
        found.append(Case(batch, heads, rows * columns, keys, channels))
        found.append(Case(batch * windows, heads, WINDOW_SIZE**2, WINDOW_SIZE**2, channels))
    return found


def make_inputs(case: Case, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Queries, keys, values and a gradient of the output, as split off channels."""
    torch.manual_seed(0)
    lengths = (case.queries, case.keys, case.keys, case.queries)
    return [
        torch.randn(case.batch, n, case.heads, case.channels, device=device).to(dtype).transpose(1, 2)
        for n in lengths
    ]


def make_steps(way: Callable, case: Case, dtype: torch.dtype, device: str) -> tuple[Callable, Callable]:
    """Functions that run the forward pass, and the backward pass of a forward pass that was run here."""
    *qkv, grad = make_inputs(case, dtype, device)
    leaves = [x.requires_grad_() for x in qkv]
    out = way(*leaves)
    return lambda: way(*leaves), lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def peak_memory(name: str, case: Case, dtype: torch.dtype, device: str, threads: int) -> float:
    """MiB of a forward and a backward pass, above those of their inputs."""
    torch.set_num_threads(threads)
    *qkv, grad = make_inputs(case, dtype, device)
    leaves = [x.requires_grad_() for x in qkv]
    with_means(*(x[:1, :, :1] for x in leaves))  # loads or compiles the operator
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated() / MIB
    else:
        idle = resident_memory('VmRSS')
    torch.autograd.grad(WAYS[name](*leaves), leaves, grad)
    peak = torch.cuda.max_memory_allocated() / MIB if device == 'cuda' else resident_memory('VmHWM')
    return peak - idle


def measure(
    case: Case, dtype: torch.dtype, device: str, threads: int, rounds: int, memory: bool
) -> list[str]:
    """A row of the table."""
    steps = {name: make_steps(way, case, dtype, device) for name, way in WAYS.items()}
    row = [', '.join(map(str, case))]
    for passes in zip(*steps.values(), strict=True):
        turns = dict(zip(steps, passes, strict=True))
        for step in turns.values():
            seconds(step, device)  # to warm up
        ours, theirs = (1e3 * median(times) for times in time_in_turns(turns, device, rounds).values())
        row.append(f'{ours:.1f} / {theirs:.1f} ({ours / theirs:.2f})')
    if memory:
        with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
            ours, theirs = (pool.apply(peak_memory, (name, case, dtype, device, threads)) for name in WAYS)
        row.append(f'{ours:.0f} / {theirs:.0f}')
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, print a table for each type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arch', choices=ARCHS, default='s', help='architecture (default: s)')
    parser.add_argument(
        '--inputs',
        nargs='+',
        type=parse_input,
        default=[parse_input('224:8')],
        help='SIZE[:BATCH] or HEIGHTxWIDTH[:BATCH] of the images (default: 224:8)',
    )
    parser.add_argument('--types', nargs='+', choices=TYPES, default=['fp32'], help='(default: fp32)')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', choices=['cpu', 'cuda'], default=device, help=f'(default: {device})')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--rounds', type=int, default=7, help='measured passes of each (default: 7)')
    parser.add_argument('--no-memory', action='store_true', help='leave the memory out: quicker')
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error('--rounds must be at least 1')
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if args.device == 'cuda' else f'{args.threads} CPU threads'
    found = dict.fromkeys(case for shape in args.inputs for case in cases(args.arch, *shape))
    columns = ['images or windows, heads, queries, keys, channels', 'forward, ms', 'backward, ms']
    columns += [] if args.no_memory else ['peak MiB']
    for name in args.types:
        print(f'{where}, torch {torch.__version__}, {name}, median of {args.rounds}: {" / ".join(WAYS)}\n')
        print('\n'.join(f'| {" | ".join(line)} |' for line in (columns, ['---'] * len(columns))))
        for case in found:
            row = measure(case, TYPES[name], args.device, args.threads, args.rounds, not args.no_memory)
            print(f'| {" | ".join(row)} |', flush=True)
        print()


if __name__ == '__main__':
    main()
