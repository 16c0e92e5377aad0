"""Put the results of finished runs beside the paper's: on screen, as Markdown and as a plot.

A run belongs to a released config if its work dir holds that config's dump (NAME.py, as the tools leave it).
It is finished if its last validation is of the released config's last epoch or iteration. "ms+flip" comes
from a test of the last checkpoint with `tools/test.py --tta`.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from mmengine.config import Config

from mmsgformer.cli import expanded_path
from mmsgformer.release.model_index import Model, read_models
from mmsgformer.report.logs import read_scalars

matplotlib.use('Agg')
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
# Metric in the metafiles -> its name in MMEngine's logs, and what makes it percent.
METRICS = {
    'Top 1 Accuracy': ('accuracy/top1', 1),
    'box AP': ('coco/bbox_mAP', 100),
    'mask AP': ('coco/segm_mAP', 100),
    'mIoU': ('mIoU', 1),
    'mIoU (ms+flip)': ('mIoU', 1),
}
MULTI_SCALE = 'mIoU (ms+flip)'
COLUMNS = ('config', 'metric', 'paper', 'ours', 'difference')
NOT_RUN = 'not run'


class Result(NamedTuple):
    """One metric of one config, in percent: the paper's value and ours, None where there is none."""

    config: str
    metric: str
    paper: float | None
    ours: float | None
    state: str


def metrics_of(cfg: Config) -> list[str]:
    """The metrics that a config's evaluator gives."""
    evaluator = cfg.val_evaluator
    if evaluator.type == 'Accuracy':
        return ['Top 1 Accuracy']
    if evaluator.type == 'IoUMetric':
        return ['mIoU', MULTI_SCALE]
    return ['box AP', 'mask AP'] if 'segm' in evaluator.metric else ['box AP']


def read_run(work_dir: Path, released: Config) -> tuple[str, dict[str, float]]:
    """How far a config's run came ('finished', 'epoch 3 of 12', ...), and its metrics if it is finished.

    A run that was told to be shorter than the released config is not finished either.
    """
    unit = 'epoch' if 'max_epochs' in released.train_cfg else 'iter'
    last = released.train_cfg[f'max_{unit}s']
    values, state = {}, 'not validated yet'
    for folder in sorted(path.parents[1] for path in work_dir.glob('*/vis_data/config.py')):
        cfg = Config.fromfile(folder / 'vis_data' / 'config.py', import_custom_modules=False)
        if unit == 'iter' and 'accumulative_counts' in cfg.optim_wrapper:  # not in a test's dump
            last = released.train_cfg.max_iters * cfg.optim_wrapper.accumulative_counts
        for entry in _validations(folder / 'vis_data' / 'scalars.json'):
            state = 'finished' if entry['step'] == last else f'{unit} {entry["step"]} of {last}'
            values |= {metric: entry[key] * scale for metric, (key, scale) in METRICS.items() if key in entry}
            values.pop(MULTI_SCALE, None)  # validation has one scale
        tested = folder / f'{folder.name}.json'
        of_last = Path(cfg.get('load_from') or '').stem == f'{unit}_{last}'
        if tested.exists() and of_last and cfg.model.type == 'SegTTAModel':
            values[MULTI_SCALE] = json.loads(tested.read_text())['mIoU']
    return state, values if state == 'finished' else {}


def _validations(scalars: Path) -> list[dict]:
    """The entries of a log that validation wrote, oldest first."""
    entries = read_scalars(scalars) if scalars.exists() else ()
    return [entry for entry in entries if 'lr' not in entry and 'step' in entry]


def _trains(work_dir: Path) -> bool:
    """Whether a work dir has a log of a training run, not of a test alone."""
    return any('"lr"' in file.read_text() for file in work_dir.glob('*/vis_data/scalars.json'))


def compare(models: list[Model], work_dirs: Path) -> Iterator[Result]:
    """Every config's results, those of the newest run where there are several."""
    for model in models:
        dumps = sorted(
            work_dirs.rglob(f'{model.name}.py'), key=lambda path: (_trains(path.parent), path.stat().st_mtime)
        )
        released = Config.fromfile(ROOT / model.config, import_custom_modules=False)
        state, ours = read_run(dumps[-1].parent, released) if dumps else (NOT_RUN, {})
        for metric in metrics_of(released):
            if state == 'finished' and metric not in ours:
                missing = 'not tested with --tta' if metric == MULTI_SCALE else 'not logged'
            else:
                missing = state
            yield Result(model.name, metric, model.paper.get(metric), ours.get(metric), missing)


def cells(result: Result) -> tuple[str, str, str, str, str]:
    """A table's row: config, metric, the paper's value, ours, the difference."""
    paper = '-' if result.paper is None else f'{result.paper:.1f}'
    ours = result.state if result.ours is None else f'{result.ours:.1f}'
    both = result.paper is not None and result.ours is not None
    return result.config, result.metric, paper, ours, f'{result.ours - result.paper:+.1f}' if both else ''


def to_markdown(results: list[Result]) -> str:
    """The results as a Markdown table."""
    rows = [COLUMNS, ('---', '---', '---:', '---:', '---:'), *map(cells, results)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows) + '\n'


def draw(results: list[Result], out: Path) -> None:
    """One panel per metric, one line per config that has a number: the paper's dot and ours."""
    shown = [result for result in results if result.paper is not None or result.ours is not None]
    panels = {metric: [result for result in shown if result.metric == metric] for metric in METRICS}
    panels = {metric: panel for metric, panel in panels.items() if panel}
    heights = [len(panel) + 1 for panel in panels.values()]
    fig, axes = plt.subplots(
        len(panels), figsize=(9, 0.5 * sum(heights)), height_ratios=heights, layout='constrained'
    )
    axes = np.atleast_1d(axes)
    for ax, (metric, panel) in zip(axes, panels.items(), strict=True):
        configs = [result.config for result in panel]
        ax.plot([result.paper for result in panel], configs, 'o', color='#999999', mfc='white', label='paper')
        ax.plot([result.ours for result in panel], configs, 'o', color='#0072B2', label='ours')
        ax.set(title=f'{metric}, %', ylim=(len(panel) - 0.4, -0.6))
        ax.grid(alpha=0.3)
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside upper right', ncols=2)
    fig.savefig(out, dpi=110)
    plt.close(fig)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, read the runs, print and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'work_dirs', nargs='?', default='work_dirs', type=expanded_path, help='default: work_dirs'
    )
    work_dirs = parser.parse_args(argv).work_dirs
    if not work_dirs.is_dir():
        parser.error(f'{work_dirs} is not a folder')
    results = list(compare(read_models(ROOT), work_dirs))
    if all(result.state == NOT_RUN for result in results):
        parser.error(f"{work_dirs} has no run of a released config: no folder with a config's dump, NAME.py")
    table = to_markdown(results)
    (work_dirs / 'compare_results.md').write_text(table)
    draw(results, work_dirs / 'compare_results.png')
    print(f'{table}\nWritten: {work_dirs}/compare_results.md, {work_dirs}/compare_results.png')


if __name__ == '__main__':
    main()
