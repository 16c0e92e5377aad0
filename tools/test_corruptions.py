"""Evaluate a checkpoint on clean and on corrupted test images: noise, blur, weather, digital artefacts.

Prints the metric under each corruption of `imagecorruptions` (pip install imagecorruptions-imaug), the mean
of all, and what part of the clean one that is. A file is corrupted the same way every time.
"""

import copy
import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.cli import (
    base_parser,
    check_writable,
    entries_checked,
    expanded,
    load_config,
    refuse_earlier_results,
)
from mmsgformer.data.corrupt import corruption_names

METRICS = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU', 'accuracy/top1')
SEVERITIES = (1, 2, 3, 4, 5)


def every_nth(cfg: Config, step: int) -> list[int]:
    """The indices of every `step`th image of a config's test data.

    Raises:
        ValueError: The metric would count the others as missed.
    """
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if any(metric.get('ann_file') for metric in metrics):
        raise ValueError(
            '--every: the metric reads the truth of all images from its ann_file, and would count those that '
            'are left out as missed'
        )
    init_default_scope(cfg.default_scope)
    indices = cfg.test_dataloader.dataset.get('indices')
    if not isinstance(indices, Sequence):
        indices = range(len(DATASETS.build(cfg.test_dataloader.dataset)))
    return list(indices[::step])


def corrupted(loader: ConfigDict, corruption: str, severity: int) -> ConfigDict:
    """A data loader's config whose images are corrupted after they are loaded.

    Raises:
        ValueError: No step of the pipeline loads an image.
    """
    loader = copy.deepcopy(loader)
    loader.persistent_workers = False
    pipeline = loader.dataset.get('pipeline', [])
    steps = [i for i, step in enumerate(pipeline) if step.type.rpartition('.')[2].startswith('LoadImage')]
    if not steps:
        raise ValueError('test_dataloader.dataset.pipeline has no step LoadImageFromFile to corrupt after')
    pipeline.insert(steps[0] + 1, dict(type='CorruptImage', corruption=corruption, severity=severity))
    return loader


def to_table(results: Mapping[str, Mapping[str, float]], metric: str) -> str:
    """The results as a table: a row for each corruption, a column for each severity."""
    groups: dict[str, dict[str, float]] = {}
    for condition, values in results.items():
        name, _, severity = condition.partition('/')
        groups.setdefault(name, {})[severity] = values[metric]
    clean = groups.pop('clean')['']
    severities = list(next(iter(groups.values())))
    lines = [
        f'| {metric} | {" | ".join(severities)} | mean | of clean |',
        '|---|' + '---:|' * (len(severities) + 2),
        f'| clean |{" |" * len(severities)} {clean:.4g} | |',
    ]
    for name, values in groups.items():
        mean = fmean(values.values())
        cells = ' | '.join(f'{value:.4g}' for value in values.values())
        lines.append(f'| {name} | {cells} | {mean:.4g} | {relative(mean, clean)} |')
    columns = [fmean(values[severity] for values in groups.values()) for severity in severities]
    cells = ' | '.join(f'{value:.4g}' for value in columns)
    lines.append(f'| mean | {cells} | {fmean(columns):.4g} | {relative(fmean(columns), clean)} |')
    return '\n'.join(lines)


def relative(value: float, clean: float) -> str:
    """A part of the clean result, in per cent; empty where that is 0."""
    return f'{100 * value / clean:.0f} %' if clean else ''


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, test under every condition, write and print what came out."""
    parser = base_parser(__doc__)
    parser.add_argument('checkpoint', type=expanded, help='checkpoint file')
    parser.add_argument(
        '--out', type=expanded, help='write every metric under every condition to this JSON file'
    )
    parser.add_argument(
        '--corruptions', nargs='+', metavar='NAME', help="which ones (default: the benchmark's fifteen)"
    )
    parser.add_argument('--severities', nargs='+', type=int, choices=SEVERITIES, default=SEVERITIES)
    parser.add_argument('--every', type=int, default=1, metavar='N', help='use every Nth image only')
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error(f'--every must be 1 or more, got {args.every}')
    try:
        names, known = args.corruptions or corruption_names(), corruption_names('all')
    except ImportError as error:
        raise SystemExit(f'error: {error}') from error
    if unknown := [name for name in names if name not in known]:
        parser.error(f'--corruptions: unknown: {", ".join(unknown)}; there are {", ".join(known)}')
    cfg = load_config(args, splits=('test',), checkpoint=args.checkpoint)
    if args.out:
        out = Path(args.out)
        refuse_earlier_results(out.parent, (glob.escape(out.name),), 'give another file with --out')
        check_writable(Path(args.out).parent, '--out')
    cfg.load_from = args.checkpoint
    try:
        if args.every > 1:
            cfg.test_dataloader.dataset.indices = every_nth(cfg, args.every)
        loaders = {
            f'{name}/{severity}': corrupted(cfg.test_dataloader, name, severity)
            for name in names
            for severity in args.severities
        }
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error
    try:
        with entries_checked():
            runner = Runner.from_cfg(cfg)
            results = {'clean': runner.test()}
            for condition, loader in loaders.items():
                loop = dict(type='TestLoop', dataloader=loader, evaluator=cfg.test_evaluator)
                results[condition] = runner.build_test_loop(loop).run()
                if args.out and is_main_process():
                    Path(args.out).write_text(json.dumps(results, indent=1, default=float))
    except CheckpointError as error:
        raise SystemExit(f'error: {error}') from error
    if is_main_process():
        found = results['clean']
        metric = next((name for name in METRICS if name in found), next(iter(found)))
        print(to_table(results, metric))


if __name__ == '__main__':
    main()
