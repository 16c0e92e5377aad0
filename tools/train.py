"""Train the model of a config: detection, segmentation or classification, whatever the config says."""

import argparse
import errno
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint

from mmsgformer.checkpoint.files import CheckpointError, latest_checkpoint, stored_iteration
from mmsgformer.cli import (
    base_parser,
    check_writable,
    entries_checked,
    expanded,
    load_config,
    refuse_earlier_results,
)
from mmsgformer.data import DataError
from mmsgformer.engine.batch_size import (
    accumulate_to_base,
    check_auto_scale_lr,
    num_processes,
    report_batch_size,
)
from mmsgformer.engine.exact_resume import disable_exact_resume, enable_exact_resume
from mmsgformer.engine.hooks import BadNumberError

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = base_parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision (GPU)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        type=expanded,
        help='resume from this checkpoint, or without a value from the latest one in the work dir',
    )
    parser.add_argument(
        '--no-exact-resume',
        action='store_true',
        help='leave seeding, the order of the data and resuming to MMEngine; a resumed run differs then',
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
    return parser


def config_from(args: argparse.Namespace) -> Config:
    """The config that the arguments of `make_parser` describe, ready for a Runner.

    Raises:
        ValueError: An argument does not fit the config, the machine or another argument.
    """
    resume_from = None if args.resume == 'auto' else args.resume
    cfg = load_config(args, splits=('train', 'val'), checkpoint=resume_from)
    if args.amp:
        if get_device() == 'cpu':
            raise ValueError('--amp needs a GPU: MMEngine has no mixed-precision training on CPU')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.with_cp:
        if 'backbone' not in cfg.model:
            raise ValueError(f'--with-cp: {args.config} has no model.backbone')
        cfg.model.backbone.with_cp = True
    if args.accumulate:
        try:
            accumulate_to_base(cfg, num_processes(args.launcher))
        except ValueError as error:
            raise ValueError(f'--accumulate: {error}') from error
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    check_auto_scale_lr(cfg)
    if args.no_exact_resume:
        if args.skip_bad_samples:
            raise ValueError('--skip-bad-samples is a part of exact resuming; leave out --no-exact-resume')
        disable_exact_resume(cfg)
    else:
        enable_exact_resume(cfg, skip_bad=args.skip_bad_samples)
    if not args.resume and not cfg.get('resume'):
        advice = '--resume goes on with it; for a new run give another folder with --work-dir'
        refuse_earlier_results(cfg.work_dir, ('epoch_*.pth', 'iter_*.pth'), advice)
    if args.resume:
        # A job that is always started with --resume has nothing to resume from the first time.
        why = 'as given'
        if not resume_from and (resume_from := latest_checkpoint(cfg.work_dir)):
            why = f'iteration {stored_iteration(resume_from)}, the last that is saved in {cfg.work_dir}'
        elif not resume_from and (resume_from := find_latest_checkpoint(cfg.work_dir)):
            why = f'named by {cfg.work_dir}/last_checkpoint'
        if resume_from:
            cfg.resume, cfg.load_from = True, resume_from
            print(f'resuming from {resume_from}: {why}')
        else:
            print(f'nothing to resume in {cfg.work_dir}: starting from {cfg.get("load_from") or "scratch"}')
    return cfg


def train(cfg: Config) -> None:
    """Train; exits with a message where a run cannot go on."""
    check_writable(cfg.work_dir, '--work-dir')
    try:
        with entries_checked():
            runner = Runner.from_cfg(cfg)
            report_batch_size(cfg, runner.world_size)
            runner.train()
    except (BadNumberError, CheckpointError, DataError) as error:
        raise SystemExit(f'error: {error}') from error
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise SystemExit(
            f'error: {cfg.work_dir} cannot be written to any more: {error}. The checkpoints in it are whole; '
            'make room and go on with --resume'
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, make the config, train."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        cfg = config_from(args)
    except ValueError as error:
        parser.error(str(error))
    train(cfg)


if __name__ == '__main__':
    main()
