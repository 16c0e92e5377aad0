"""What tools/train.py and tools/test.py share: arguments, and the config they describe."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import CheckpointLoader

from mmsgformer.checkpoint import read_checkpoint
from mmsgformer.dataset_paths import check_dataset_paths, set_data_root
from mmsgformer.distributed import prepare_cpu_distributed

# MMEngine's own reader of local files falls back to unpickling whatever a file holds.
CheckpointLoader.register_scheme(prefixes='', loader=read_checkpoint, force=True)


def base_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every tool takes which runs a config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument('--data-root', help="folder of the data set, instead of the config's data_root")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override entries of the config: key=value pairs, nested keys with dots, lists as key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes the first, MMEngine reads the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def load_config(args: argparse.Namespace, splits: tuple[str, ...], checkpoint: str | None = None) -> Config:
    """The config that the arguments describe, its paths checked, ready for a Runner.

    Args:
        args: Parsed arguments of `base_parser`.
        splits: The splits that will be used, of 'train', 'val', 'test'.
        checkpoint: A checkpoint that will be read, None for none.

    Exits with a message that names the path and the option if the config, its data or the checkpoint does
    not exist.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        cfg = Config.fromfile(args.config)
        if args.data_root:
            set_data_root(cfg, args.data_root)
        cfg.merge_from_dict(args.cfg_options)
        check_dataset_paths(cfg, splits)
        if checkpoint and '://' not in checkpoint and not Path(checkpoint).is_file():
            raise FileNotFoundError(f'the checkpoint {checkpoint} does not exist')
        cfg.launcher = args.launcher
        prepare_cpu_distributed(cfg)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    return cfg
