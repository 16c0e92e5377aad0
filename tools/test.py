"""Evaluate a checkpoint with the test data and the metrics of a config."""

import glob
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict
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


def check_outputs(out: str | None, show_dir: str | None) -> None:
    """Exit with a message where results of an earlier test are, or nothing can be written."""
    if out:
        folder, name = Path(out).parent, Path(out).name
        prefix = glob.escape(name.removesuffix('.json'))
        names = [f'{prefix}.{kind}.json' for kind in ('bbox', 'segm')] if name.endswith('.json') else [prefix]
        refuse_earlier_results(folder, names, 'give another file with --out')
        check_writable(folder, '--out')
    if show_dir:
        refuse_earlier_results(show_dir, ('**/*.png',), 'give another folder with --show-dir')
        check_writable(show_dir, '--show-dir')


def coco_metric(cfg: Config) -> ConfigDict | None:
    """The metric of a config that writes predictions in COCO's format."""
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    return next((metric for metric in metrics if metric.type == 'CocoMetric'), None)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, build the Runner, test."""
    parser = base_parser(__doc__)
    parser.add_argument('checkpoint', type=expanded, help='checkpoint file')
    parser.add_argument(
        '--out',
        type=expanded,
        help='write the predictions to this .pkl file; of a detector to NAME.json: NAME.bbox.json and '
        "NAME.segm.json, in the format of COCO's results",
    )
    parser.add_argument(
        '--show-dir',
        type=expanded,
        help="save pictures of ground truth and predictions to this folder, under the images' names",
    )
    parser.add_argument(
        '--tta', action='store_true', help="average over the config's sizes and mirror images"
    )
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle', '.json')):
        parser.error(f'--out must end in .pkl, .pickle or .json, got {args.out}')
    cfg = load_config(args, splits=('test',), checkpoint=args.checkpoint)
    check_outputs(args.out, args.show_dir)
    cfg.load_from = args.checkpoint
    if args.tta:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            parser.error(f'--tta: {args.config} has no tta_model and tta_pipeline')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    if args.show_dir:
        if 'visualizer' not in cfg:
            parser.error(f'--show-dir: {args.config} has no visualizer')
        drawing = dict(type='PicturesHook', out_dir=args.show_dir)
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), drawing]
    if args.out and args.out.endswith('.json'):
        metric = coco_metric(cfg)
        if metric is None:
            parser.error(f'--out: {args.config} has no CocoMetric in test_evaluator; give a .pkl file')
        metric.outfile_prefix = args.out.removesuffix('.json')
    elif args.out:
        dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        cfg.test_evaluator = [*metrics, dict(type=dump, out_file_path=args.out)]
    try:
        with entries_checked():
            Runner.from_cfg(cfg).test()
    except CheckpointError as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
