"""Evaluate a checkpoint with the test data and the metrics of a config."""

from mmengine.runner import Runner

from mmsgformer.cli import base_parser, load_config


def main() -> None:
    """Parse the arguments, build the Runner, test."""
    parser = base_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='dump the predictions to this .pkl file')
    parser.add_argument('--show-dir', help='save pictures of ground truth and predictions to this folder')
    args = parser.parse_args()
    cfg = load_config(args, splits=('test',))
    cfg.load_from = args.checkpoint
    if args.show_dir:
        cfg.default_hooks.visualization.draw = True
        cfg.visualizer.save_dir = args.show_dir
    if args.out:
        if not args.out.endswith(('.pkl', '.pickle')):
            parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
        dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        cfg.test_evaluator = [cfg.test_evaluator, dict(type=dump, out_file_path=args.out)]
    Runner.from_cfg(cfg).test()


if __name__ == '__main__':
    main()
