"""Time and memory of backbones, side by side.

    python tools/benchmark.py swin-t sgformer-s --inputs 224:8 896:1 --modes infer train
    python tools/benchmark.py sgformer-t sgformer-t-{swin,agent,hornet}    # one network, other mixers

All backbones run in one process and take turns (A B A B), so that a change of the machine's pace meets all of
them; the medians are printed with their ratios to the first backbone. On a CPU memory is measured in a fresh
process for each case. Writes benchmark.md, benchmark.json and benchmark.png.
"""

import argparse
import ast
import importlib
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.ticker import LogFormatter, NullLocator
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import mmsgformer.study.timm_backbone  # noqa: F401  registers it, and SGFormer
from mmsgformer.archs import ARCHS
from mmsgformer.mixers import MIXERS
from mmsgformer.release.flops import count_macs

matplotlib.use('Agg')
import matplotlib.pyplot as plt

ALL = (0, 1, 2, 3)
PRESETS = {
    **{f'sgformer-{arch}': {'type': 'SGFormer', 'arch': arch} for arch in ARCHS},
    **{
        f'sgformer-{arch}-{mixer}': {'type': 'SGFormer', 'arch': arch, 'mixer': mixer}
        for arch, mixer in itertools.product(ARCHS, sorted(MIXERS.module_dict))
    },
    'swin-t': {'type': 'mmdet.SwinTransformer', 'depths': (2, 2, 6, 2)},
    'swin-s': {'type': 'mmdet.SwinTransformer', 'depths': (2, 2, 18, 2)},
    'convnext-t': {
        'type': 'mmpretrain.ConvNeXt',
        'arch': 'tiny',
        'out_indices': ALL,
        'gap_before_final_norm': False,
    },
    'pvtv2-b2': {
        'type': 'mmdet.PyramidVisionTransformerV2',
        'embed_dims': 64,
        'num_layers': (3, 4, 6, 3),
    },
    'davit-t': {'type': 'mmpretrain.DaViT', 'arch': 'tiny', 'out_indices': ALL, 'pad_small_map': True},
    'hornet-t': {
        'type': 'mmpretrain.HorNet',
        'arch': 'tiny',
        'out_indices': ALL,
        'gap_before_final_norm': False,
    },
    # Of one size, 224 by default.
    'maxvit-t': {'type': 'TimmBackbone', 'name': 'maxvit_tiny_tf_224'},
    'gcvit-t': {'type': 'TimmBackbone', 'name': 'gcvit_tiny'},
}
NAMES = 'sgformer-ARCH, sgformer-ARCH-MIXER, ' + ', '.join(n for n in PRESETS if not n.startswith('sgformer'))
# What backbones raise that do not take an image of this size.
SIZE_ERRORS = (ValueError, AssertionError)
MODES = ('infer', 'train')
AMP_DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
MIB = 2**20


class Case(NamedTuple):
    """What is run: forward only or a training step, and the input's shape."""

    mode: str
    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.mode} {self.height}x{self.width}, batch {self.batch}'


def parse_backbone(text: str) -> tuple[str, dict]:
    """A preset's name, or NAME={'type': ..., ...} for any backbone of the registry -> name and config."""
    name, _, config = text.partition('=')
    if not config and name in PRESETS:
        return name, PRESETS[name]
    try:
        config = ast.literal_eval(config)
        return name, {'type': config['type'], **config}
    except (SyntaxError, ValueError, TypeError, KeyError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither one of {NAMES} nor NAME={{'type': ..., ...}}"
        ) from None


def parse_input(text: str) -> tuple[int, int, int]:
    """'224', '224:8' or '800x1333:2' -> batch, height, width."""
    size, _, batch = text.partition(':')
    height, _, width = size.partition('x')
    try:
        return int(batch or 1), int(height), int(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not SIZE[:BATCH] or HEIGHTxWIDTH[:BATCH]') from None


@MODELS.register_module(force=True)  # tests load this file more than once
class ExportedBackbone(nn.Module):
    """What `tools/export.py --what backbone` wrote, run on the CPU by as many threads as torch has.

    NAME={'type': 'ExportedBackbone', 'path': FILE, 'backend': 'openvino'}; the other is 'onnxruntime'.
    """

    def __init__(self, path: str, backend: str = 'onnxruntime') -> None:
        super().__init__()
        from mmsgformer_runtime import Model  # its backends are optional

        self.exported = Model(path, backend, torch.get_num_threads())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) -> the maps."""
        return tuple(torch.from_numpy(m) for m in self.exported.run(images.numpy()).values())


def import_framework(config: dict) -> None:
    """Import what the `mmdet.` or the like in front of a config's type names."""
    scope, _, _ = config['type'].rpartition('.')
    if scope:
        importlib.import_module(f'{scope}.models')


def build(config: dict, mode: str) -> nn.Module:
    """A backbone of the registry."""
    import_framework(config)
    torch.manual_seed(0)
    backbone = MODELS.build(dict(config))
    backbone.train(mode == 'train')  # mmdet's Swin returns None from it
    return backbone


def make_step(backbone: Callable, case: Case, device: str, amp: str | None) -> Callable[[], None]:
    """A function that runs the case once: the forward pass, in training the backward pass too.

    The loss is the sum of the maps' mean squares; there is no optimizer.
    """
    image = torch.randn(case.batch, 3, case.height, case.width, device=device)
    autocast = torch.autocast(device, AMP_DTYPES[amp]) if amp else nullcontext()

    def forward() -> tuple[Tensor, ...]:
        with autocast:
            return backbone(image)

    def train() -> None:
        sum(out.float().square().mean() for out in forward()).backward()
        for parameter in backbone.parameters():
            parameter.grad = None

    return train if case.mode == 'train' else torch.no_grad()(forward)


def seconds(step: Callable[[], None], device: str) -> float:
    """How long one step takes."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def warm_up(steps: dict[str, Callable], device: str, warmup: int) -> dict[str, str]:
    """Run every step; those that do not compile, fit or take the size are taken out, with the reason."""
    failures = {}
    for name, step in list(steps.items()):
        try:
            for _ in range(warmup):
                seconds(step, device)
        except (torch._dynamo.exc.TorchDynamoException, torch.cuda.OutOfMemoryError, *SIZE_ERRORS) as error:
            failures[name] = f'{type(error).__name__}: {error}'
            del steps[name]
    return failures


def time_in_turns(steps: dict[str, Callable], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in each round."""
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    return times


def resident_memory(field: str) -> float:
    """A process's memory in MiB, now (VmRSS) or at its peak (VmHWM), from Linux's /proc."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f'/proc/self/status has no {field}')


def peak_memory(config: dict, case: Case, amp: str | None, threads: int) -> float:
    """Peak memory of two steps on the CPU in MiB, weights and images included: the resident memory above
    that of the process before the backbone was built.
    """
    torch.set_num_threads(threads)
    import_framework(config)
    idle = resident_memory('VmRSS')
    step = make_step(build(config, case.mode), case, 'cpu', amp)
    step()
    step()
    return resident_memory('VmHWM') - idle


def peak_gpu_memory(step: Callable[[], None], backbone: nn.Module, case: Case) -> float:
    """What torch allocates on the GPU at most in two steps, in MiB, weights and images included."""
    own = 4 * case.batch * 3 * case.height * case.width  # bytes of images in float32
    own += sum(t.nbytes for t in (*backbone.parameters(), *backbone.buffers()))
    torch.cuda.reset_peak_memory_stats()
    others = torch.cuda.memory_allocated() - own
    step()
    step()
    return (torch.cuda.max_memory_allocated() - others) / MIB


def peak_memory_in_a_fresh_process(*arguments: object) -> float:
    """`peak_memory` where nothing else has run."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(peak_memory, arguments)


def count_gmacs(config: dict, height: int, width: int) -> float:
    """Multiply-accumulates of one image's forward pass, in 10^9."""
    return count_macs(build(config, 'infer'), torch.empty(1, 3, height, width))[''] / 1e9


def measure(arguments: argparse.Namespace) -> Iterator[list[dict]]:
    """One case after the other: a dict for every backbone, times in seconds and memory in MiB."""
    device, amp = arguments.device, arguments.amp
    configs = dict(arguments.backbones)
    gmacs = {}  # of one image, by backbone and size
    for mode in arguments.modes:
        backbones = {name: build(config, mode).to(device) for name, config in configs.items()}
        if arguments.compile:
            backbones |= {f'{name} compiled': torch.compile(b) for name, b in backbones.items()}
        for shape in arguments.inputs:
            case = Case(mode, *shape)
            torch._dynamo.reset()  # every input is compiled for its own shape
            steps = {name: make_step(backbone, case, device, amp) for name, backbone in backbones.items()}
            results = {name: {'backbone': name, **case._asdict()} for name in steps}
            for name, reason in warm_up(steps, device, arguments.warmup).items():
                results[name]['failure'] = reason
            for name, t in time_in_turns(steps, device, arguments.rounds).items():
                results[name] |= {'seconds': statistics.median(t), 'all_seconds': t}
            for name, config in configs.items():
                key = name, case.height, case.width
                with suppress(*SIZE_ERRORS):
                    if config['type'] != 'ExportedBackbone':  # whose operators torch does not see
                        gmacs[key] = gmacs.get(key) or count_gmacs(config, case.height, case.width)
                        results[name]['gmacs'] = gmacs[key] * case.batch
                if name not in steps or arguments.no_memory:
                    continue
                if device == 'cuda':
                    results[name]['peak_mib'] = peak_gpu_memory(steps[name], backbones[name], case)
                else:
                    results[name]['peak_mib'] = peak_memory_in_a_fresh_process(
                        config, case, amp, arguments.threads
                    )
            yield list(results.values())


def rows(results: list[dict]) -> list[list[str]]:
    """One case as text: a row per backbone, with ratios to the first."""

    def cell(result: dict, key: str, form: str, scale: float = 1) -> str:
        if key not in result:
            return 'failed' if key == 'seconds' else ''
        ratio = f' ({result[key] / results[0][key]:.2f})' if key in results[0] else ''
        return f'{result[key] * scale:{form}}{ratio}'

    return [
        [
            str(Case(*(result[field] for field in Case._fields))),
            result['backbone'],
            cell(result, 'seconds', '.1f', 1e3),
            cell(result, 'peak_mib', '.0f'),
            cell(result, 'gmacs', '.1f'),
        ]
        for result in results
    ]


HEADER = ['case', 'backbone', 'ms', 'peak MiB', 'forward GMACs']


def markdown(table: list[list[str]], title: str) -> str:
    """The table in Markdown under one line that says how it was measured."""
    lines = [HEADER, ['---'] * len(HEADER), *table]
    return f'{title}\n\n' + '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def plot(results: list[dict], path: Path) -> None:
    """Time and, where it was measured, memory per image against its size: a line per backbone and mode."""
    names = list(dict.fromkeys(result['backbone'] for result in results))
    lines = len({(result['backbone'], result['mode']) for result in results})
    labels = {'seconds': 'seconds per image', 'peak_mib': 'peak memory, MiB per image'}
    if not any('peak_mib' in result for result in results):
        del labels['peak_mib']
    size = (3 + 5 * len(labels), max(4.5, 0.22 * lines))
    figure, axes = plt.subplots(1, len(labels), figsize=size, layout='constrained', squeeze=False)
    sides = sorted({math.sqrt(result['height'] * result['width']) for result in results})
    for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
        for mode, (i, name) in itertools.product(MODES, enumerate(names)):
            points = sorted(
                (math.sqrt(r['height'] * r['width']), r[key] / r['batch'])
                for r in results
                if (r['backbone'], r['mode']) == (name, mode) and key in r
            )
            if points:
                style = {'linestyle': '-' if mode == 'infer' else '--', 'marker': 'o', 'color': f'C{i}'}
                axis.plot(*zip(*points, strict=True), **style, label=f'{name}, {mode}')
        axis.set(xscale='log', yscale='log', xlabel='side of the (square) image, pixels', ylabel=label)
        axis.set_xticks(sides, [f'{side:.0f}' for side in sides])
        axis.xaxis.set_minor_locator(NullLocator())
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axis.grid(which='both', alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right center', frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'backbones',
        nargs='+',
        type=parse_backbone,
        help=f"{NAMES}, or NAME={{'type': ..., ...}}; ratios are to the first",
    )
    parser.add_argument(
        '--inputs',
        nargs='+',
        type=parse_input,
        default=[parse_input('224:8')],
        help='SIZE[:BATCH], HEIGHTxWIDTH[:BATCH] (default: 224:8)',
    )
    parser.add_argument('--modes', nargs='+', choices=MODES, default=['infer'], help='train: and backward')
    parser.add_argument('--amp', choices=AMP_DTYPES, help='autocast to this type (default: float32)')
    parser.add_argument('--compile', action='store_true', help='torch.compile as further columns')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', choices=['cpu', 'cuda'], default=device, help=f'(default: {device})')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--warmup', type=int, default=2, help='steps before measuring')
    parser.add_argument('--rounds', type=int, default=7, help='measured steps of each backbone')
    parser.add_argument('--no-memory', action='store_true', help='leave the memory out: much quicker')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/benchmark'), help='folder for the results'
    )
    arguments = parser.parse_args(argv)
    if arguments.warmup < 1 or arguments.rounds < 1:
        parser.error('--warmup and --rounds must be at least 1')

    torch.set_num_threads(arguments.threads)
    device = (
        torch.cuda.get_device_name() if arguments.device == 'cuda' else f'{arguments.threads} CPU threads'
    )
    title = f'{device}, torch {torch.__version__}, {arguments.amp or "float32"}, median of {arguments.rounds}'
    console = Console(highlight=False)
    console.print(f'{title}; in brackets: the ratio to {arguments.backbones[0][0]}')
    arguments.out.mkdir(parents=True, exist_ok=True)
    results, table = [], []
    for case in measure(arguments):
        results += case
        table += rows(case)
        # After every case: a run that is stopped leaves what it has measured.
        record = {'setting': title, 'command': sys.argv, 'results': results}
        (arguments.out / 'benchmark.json').write_text(json.dumps(record, indent=1))
        (arguments.out / 'benchmark.md').write_text(markdown(table, title))
        plot(results, arguments.out / 'benchmark.png')
        printed = Table(*HEADER)
        for row in rows(case):
            printed.add_row(*row)
        console.print(printed)
        for failed in (result for result in case if 'failure' in result):
            console.print(
                f'{failed["backbone"]} failed: {failed["failure"].splitlines()[0]} (more in benchmark.json)'
            )
    console.print(f'Written: {arguments.out}/benchmark.md, .json, .png')


if __name__ == '__main__':
    main()
