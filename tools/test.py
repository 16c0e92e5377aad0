"""Evaluate a checkpoint with the test data and the metrics of a config."""

from collections.abc import Sequence

from mmengine.runner import Runner

from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.cli import base_parser, load_config


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, build the Runner, test."""
    parser = base_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='dump the predictions to this .pkl file')
    parser.add_argument('--show-dir', help='save pictures of ground truth and predictions to this folder')
    parser.add_argument(
        '--tta', action='store_true', help="average over the config's sizes and mirror images"
    )
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    cfg = load_config(args, splits=('test',), checkpoint=args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.tta:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            parser.error(f'--tta: {args.config} has no tta_model and tta_pipeline')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    if args.show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            parser.error(f'--show-dir: {args.config} has no default_hooks.visualization')
        # mmdet's and mmseg's hooks are switched on by `draw`, mmpretrain's by `enable`.
        switch = 'enable' if cfg.default_hooks.visualization.type == 'VisualizationHook' else 'draw'
        cfg.default_hooks.visualization[switch] = True
        cfg.visualizer.save_dir = args.show_dir
    if args.out:
        dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        cfg.test_evaluator = [*metrics, dict(type=dump, out_file_path=args.out)]
    try:
        Runner.from_cfg(cfg).test()
    except CheckpointError as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
