"""Train the model of a config: detection, segmentation or classification, whatever the config says."""

from mmengine.device import get_device
from mmengine.runner import Runner

from mmsgformer.cli import base_parser, load_config


def main() -> None:
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
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's base batch size to the actual one",
    )
    args = parser.parse_args()
    resume_from = None if args.resume == 'auto' else args.resume
    cfg = load_config(args, splits=('train', 'val'), checkpoint=resume_from)
    if args.amp:
        if get_device() == 'cpu':
            parser.error('--amp needs a GPU: MMEngine has no mixed-precision training on CPU')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            parser.error(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = resume_from
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
