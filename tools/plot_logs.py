"""Plot what runs logged: losses, learning rate, memory, metrics; one panel each, one line per run.

    python tools/plot_logs.py work_dirs/RUN_A work_dirs/RUN_B --out curves.png
    python tools/plot_logs.py work_dirs/RUN --keys loss loss_mask coco/bbox_mAP_50

Reads MMEngine's scalars.json, those of all parts of a run that was resumed as one line. (The frameworks'
analyze_logs.py draw each part as a line of its own, and all keys into one panel.)
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from mmsgformer.report.logs import Curves, read_curves

plt.style.use('tableau-colorblind10')
DEFAULT_KEYS = ('loss', 'lr', 'memory', 'coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1')
PANELS_PER_ROW = 3


def draw_curves(runs: Mapping[str, Curves], keys: Sequence[str], out: Path) -> Path:
    """One panel per key with one line per run that logged it; returns `out`."""
    columns = min(PANELS_PER_ROW, len(keys))
    rows = -(-len(keys) // columns)
    fig, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(4.2 * columns, 3 * rows + 0.4), layout='constrained'
    )
    for ax in axes.flat[len(keys) :]:
        ax.set_axis_off()
    for ax, key in zip(axes.flat, keys, strict=False):
        for i, (name, curves) in enumerate(runs.items()):
            if key in curves:
                marker = 'o' if len(curves[key]) <= 20 else ''
                ax.plot(*zip(*curves[key], strict=True), color=f'C{i}', marker=marker, label=name)
        ax.set(title=f'{key}, MB' if key == 'memory' else key, xlabel='iteration')
        ax.axhline(0, color='black', linewidth=0.5)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    fig.savefig(out, dpi=110)
    plt.close(fig)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, read the logs, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dirs', nargs='+', type=Path, help='work dirs of runs')
    parser.add_argument('--keys', nargs='+', help=f'what to plot (default, where logged: {DEFAULT_KEYS})')
    parser.add_argument('--out', type=Path, default=Path('curves.png'), help='default: curves.png')
    args = parser.parse_args(argv)
    try:
        runs = {str(work_dir): read_curves(work_dir) for work_dir in args.work_dirs}
    except FileNotFoundError as error:
        parser.error(str(error))
    logged = {key for curves in runs.values() for key in curves}
    keys = args.keys or [key for key in DEFAULT_KEYS if key in logged] or sorted(logged)
    unknown = [key for key in keys if key not in logged]
    if unknown:
        parser.error(f'no run logged {", ".join(unknown)}; there are {", ".join(sorted(logged))}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_curves(runs, keys, args.out)
    print(f'Written: {args.out}')


if __name__ == '__main__':
    main()
