"""Train and evaluate a tiny SG-Former detector and segmenter on synthetic shapes, in minutes on a CPU.

Everything lands in work_dirs/demo: the data set, checkpoints, logs, curves and pictures. It runs the same
tools that train on COCO and ADE20K: tools/train.py and tools/test.py.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo_pictures import draw_detections, draw_segmentations
from plot_logs import draw_curves, read_curves
from rich.console import Console
from rich.table import Table

from mmsgformer.checkpoint.files import TRUST_VARIABLE
from mmsgformer.report.logs import read_scalars

OUT = Path('work_dirs/demo')
DATA = OUT / 'data'
CONFIGS = {
    'detector': 'configs/demo/mask-rcnn_sgformer-tiny_fpn_shapes.py',
    'segmenter': 'configs/demo/sgformer-tiny_upernet_shapes.py',
}
# Metric in the logs -> its name, the target that held-out images should reach, what 1.0 is in the log.
METRICS = {
    'detector': {
        'coco/bbox_mAP': ('box AP', None, 1),
        'coco/bbox_mAP_50': ('box AP50', 0.30, 1),
        'coco/segm_mAP': ('mask AP', None, 1),
        'coco/segm_mAP_50': ('mask AP50', None, 1),
    },
    'segmenter': {'mIoU': ('mIoU', 0.60, 100)},
}
CURVES = ('loss', 'coco/bbox_mAP_50', 'mIoU')
WATCH = ('default_hooks.significance.type=SignificanceVisHook', 'default_hooks.significance.interval=50')
console = Console(highlight=False)


def run(title: str, *command: object, follow: Path | None = None) -> None:
    """Run a Python program with its output in a log file; repeat what it writes to its scalars meanwhile.

    Exits with the end of the log if the program fails.
    """
    console.print(f'[bold]{title}[/]: python {" ".join(map(str, command))}')
    log = OUT / f'{title.replace(" ", "_")}.log'
    shown = 0
    with log.open('w') as file:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=file, stderr=file)
        try:
            while process.poll() is None:
                time.sleep(1)
                shown = show_progress(follow, shown)
        finally:
            process.kill()
    show_progress(follow, shown)
    if process.returncode:
        console.print('\n'.join(log.read_text().splitlines()[-20:]), markup=False)
        raise SystemExit(f'{title} failed; the whole log is {log}')


def show_progress(work_dir: Path | None, shown: int) -> int:
    """Print a log's new entries, losses every 50 iterations; `shown` and the result count entries."""
    if work_dir is None:
        return 0
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    scalars = list(read_scalars(files[-1])) if files else []
    for entry in scalars[shown:]:
        if 'loss' in entry and entry['iter'] % 50 == 0:
            console.print(
                f'  iteration {entry["iter"]:4d}   loss {entry["loss"]:.3f}   {entry["time"]:.2f} s each'
            )
        elif 'loss' not in entry:
            values = [
                f'{name} {entry[key] / scale:.3f}'
                for key, (name, _, scale) in METRICS[work_dir.name].items()
                if key in entry
            ]
            console.print(f'  [cyan]held-out images   {"   ".join(values)}[/]')
    return len(scalars)


def train_and_test(task: str) -> dict[str, float]:
    """Train, test and dump predictions for one task; returns the metrics on held-out images."""
    work_dir = OUT / task
    common = ('--data-root', DATA, '--work-dir', work_dir)
    train = ('tools/train.py', CONFIGS[task], *common, '--cfg-options', *WATCH)
    run(f'train the {task}', *train, follow=work_dir)
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    predictions = work_dir / 'predictions.pkl'
    run(f'test the {task}', 'tools/test.py', CONFIGS[task], checkpoint, *common, '--out', predictions)
    # The Runner writes a test's metrics to WORK_DIR/TIME/TIME.json.
    newest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data, train, test, draw, and say how it went."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    os.environ.setdefault(TRUST_VARIABLE, '1')  # what it reads it has written
    start = time.time()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    run('make the data', 'tools/make_shapes.py', DATA)
    table = Table('task', 'metric', 'held-out images', 'expected')
    reached = True
    for task, metrics in METRICS.items():
        results = train_and_test(task)
        for key, (name, target, scale) in metrics.items():
            value = results[key] / scale
            reached &= target is None or value >= target
            table.add_row(task, name, f'{value:.3f}', '' if target is None else f'>= {target:.2f}')
    evolution = OUT / 'evolution.png'
    run('draw the evolution', 'tools/make_evolution.py', OUT / 'detector', evolution, '--rows', 5)
    pictures = [
        evolution,
        draw_detections(DATA, OUT / 'detector' / 'predictions.pkl', OUT / 'detections.png'),
        draw_segmentations(DATA, OUT / 'segmenter' / 'predictions.pkl', OUT / 'segmentations.png'),
        draw_curves({task: read_curves(OUT / task) for task in CONFIGS}, CURVES, OUT / 'curves.png'),
    ]
    console.print(table)
    console.print('Pictures: ' + ', '.join(map(str, pictures)))
    console.print(f'Done in {(time.time() - start) / 60:.1f} minutes.')
    if not reached:
        raise SystemExit('A metric is below what is expected: something is wrong with this set-up.')


if __name__ == '__main__':
    main()
