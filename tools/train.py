"""Train the model of a config: detection, segmentation or classification, whatever the config says."""

import errno
from collections.abc import Sequence

from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint

from mmsgformer.checkpoint.files import CheckpointError, latest_checkpoint
from mmsgformer.cli import base_parser, check_writable, load_config
from mmsgformer.engine.batch_size import (
    accumulate_to_base,
    check_auto_scale_lr,
    num_processes,
    report_batch_size,
)
from mmsgformer.engine.exact_resume import make_exact
from mmsgformer.engine.hooks import BadNumberError

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, build the Runner, train."""
    parser = base_parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision (GPU)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the latest one in the work dir',
    )
    parser.add_argument(
        '--with-cp',
        action='store_true',
        help='gradient checkpointing of the backbone: less memory, more time',
    )
    parser.add_argument(
        '--skip-bad-samples',
        action='store_true',
        help='train without the samples that cannot be loaded; each is logged, and their number',
    )
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument(
        '--accumulate',
        action='store_true',
        help="accumulate gradients to the config's base batch size, on however many GPUs",
    )
    batch.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's base batch size to the actual one",
    )
    args = parser.parse_args(argv)
    resume_from = None if args.resume == 'auto' else args.resume
    cfg = load_config(args, splits=('train', 'val'), checkpoint=resume_from)
    if args.amp:
        if get_device() == 'cpu':
            parser.error('--amp needs a GPU: MMEngine has no mixed-precision training on CPU')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.with_cp:
        if 'backbone' not in cfg.model:
            parser.error(f'--with-cp: {args.config} has no model.backbone')
        cfg.model.backbone.with_cp = True
    if args.accumulate:
        try:
            accumulate_to_base(cfg, num_processes(args.launcher))
        except ValueError as error:
            parser.error(f'--accumulate: {error}')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            parser.error(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    try:
        check_auto_scale_lr(cfg)
    except ValueError as error:
        parser.error(str(error))
    if args.resume:
        # A job that is always started with --resume has nothing to resume from the first time.
        found = resume_from or latest_checkpoint(cfg.work_dir) or find_latest_checkpoint(cfg.work_dir)
        if found:
            cfg.resume, cfg.load_from = True, found
        else:
            print(f'nothing to resume in {cfg.work_dir}: starting from {cfg.get("load_from") or "scratch"}')
    check_writable(cfg.work_dir)
    make_exact(cfg, skip_bad=args.skip_bad_samples)
    try:
        runner = Runner.from_cfg(cfg)
        report_batch_size(cfg, runner.world_size)
        runner.train()
    except (BadNumberError, CheckpointError) as error:
        raise SystemExit(f'error: {error}') from error
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise SystemExit(
            f'error: {cfg.work_dir} cannot be written to any more: {error}. The checkpoints in it are whole; '
            'make room and go on with --resume'
        ) from error


if __name__ == '__main__':
    main()
