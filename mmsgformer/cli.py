"""What the tools share: arguments, and the config they describe."""

import argparse
import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction

from mmsgformer.compat import READS_PTH_SAFELY
from mmsgformer.data.classes import require_agreement
from mmsgformer.data.convert import prepare
from mmsgformer.data.errors import DataError
from mmsgformer.data.folders import Found
from mmsgformer.data.formats import recognize
from mmsgformer.data.own import describe, use_data
from mmsgformer.data.paths import check_dataset_paths, expand_paths, expanded, set_data_root
from mmsgformer.engine.custom_imports import import_mmsgformer
from mmsgformer.engine.distributed import prepare_cpu_distributed

# torch's own switch: no library that a tool uses can read a file in a way that runs code from it.
os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
if READS_PTH_SAFELY:  # else the user says what is trusted
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def expanded_path(path: str) -> Path:
    """`expanded`, as a Path."""
    return Path(expanded(path))


class OptionsAction(DictAction):
    """MMEngine's KEY=VALUE arguments; what has another form is named."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: list[str], *rest: object
    ) -> None:
        for value in values:
            if not re.match('[^=]+=', value):
                raise argparse.ArgumentError(self, f'{value!r} is not of the form key=value')
        try:
            super().__call__(parser, namespace, values, *rest)
        except AssertionError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def base_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments of tools/train.py and tools/test.py."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', type=expanded, help='config file')
    parser.add_argument(
        '--work-dir', type=expanded, help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)'
    )
    add_data_options(parser)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        help='override entries of the config: key=value pairs, nested keys with dots, lists as key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes the first, MMEngine reads the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add what says where the data are, to a parser."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        '--data-root', type=expanded, help="folder of the data set, instead of the config's data_root"
    )
    where.add_argument(
        '--data',
        type=expanded,
        help='folder of your own data: format, splits and classes are recognised, and the config set to them',
    )


class _PredictorParser(argparse.ArgumentParser):
    """Takes `--config C --checkpoint K` instead of the first two positional arguments too, as before."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:
        options = argparse.ArgumentParser(self.prog, self.usage, add_help=False, allow_abbrev=False)
        options.add_argument('--config')
        options.add_argument('--checkpoint')
        given, rest = options.parse_known_args(args)
        if (given.config is None) != (given.checkpoint is None):
            self.error('give the config and the checkpoint as the first two arguments, or both as options')
        if given.config is not None:
            rest = [given.config, given.checkpoint, *rest]
        return super().parse_args(rest, namespace)


def predictor_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every tool takes which runs a trained model on a user's images."""
    parser = _PredictorParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=expanded, help='config file')
    parser.add_argument('checkpoint', type=expanded, help='checkpoint of the whole model')
    parser.add_argument(
        '--out-dir', type=expanded_path, required=True, help='folder to write to; made if needed'
    )
    parser.add_argument(
        '--device', type=_device, help='cpu, cuda:0, ... (default: the accelerator if there is one)'
    )
    return parser


def _device(name: str) -> str:
    """The name of a device that is there."""
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f'{name!r} cannot be used: {str(error).splitlines()[0]}') from error
    return name


def read_config(
    config: str,
    splits: tuple[str, ...],
    data_root: str | None = None,
    options: Mapping | None = None,
    data: str | None = None,
    work_dir: str | None = None,
) -> Config:
    """A config with another data root or somebody's own data, and options; the paths of these splits checked.

    Args:
        config: Its file.
        splits: The splits that will be used, of 'train', 'val', 'test'.
        data_root: Replaces the config's.
        options: Of --cfg-options; they win over what is found in `data`.
        data: A folder of somebody's own data, whose format is recognised.
        work_dir: In its folder `data` is what has to be written for that; the config's own by default.

    Exits with a message that names the path and the option if the config or its data does not exist.
    """
    options = options or {}
    try:
        cfg = Config.fromfile(config)
        if data_root:
            set_data_root(cfg, data_root)
        if data:
            out = work_dir or options.get('work_dir') or _work_dir(cfg, config)
            found = _set_data(cfg, splits, data, out)
        _merge(cfg, options)
        expand_paths(cfg)
        if data and os.environ.get('RANK', '0') == '0':
            print(describe(found, cfg))
        check_dataset_paths(cfg, splits)
    except (DataError, FileNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    for loader in filter(None, (cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test'))):
        if loader.get('num_workers') == 0:  # torch refuses what would be for workers
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
    return cfg


def _set_data(cfg: Config, splits: tuple[str, ...], data: str, work_dir: str) -> Found:
    """Set a config to the data in a folder, in place; returns what was found."""
    found = recognize(data)
    if 'train' in splits and 'train' not in found.splits:
        raise DataError(f'{data} has no training images, only {", ".join(found.splits)}; add a folder train')
    check_writable(work_dir, '--work-dir')
    found = prepare(found, Path(work_dir).absolute() / 'data')
    use_data(cfg, found)
    return found


def _work_dir(cfg: Config, config: str) -> str:
    """Where the outputs of a config go if nothing else is said."""
    return cfg.get('work_dir') or str(Path('work_dirs') / Path(config).stem)


def _merge(cfg: Config, options: Mapping) -> None:
    """Merge --cfg-options into a config, in place.

    Raises:
        ValueError: One does not fit what is there, as an entry of a number or of None.
    """
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f'--cfg-options: {" ".join(str(error).split())}') from error


def load_config(args: argparse.Namespace, splits: tuple[str, ...], checkpoint: str | None = None) -> Config:
    """The config that the arguments describe, its paths checked, ready for a Runner.

    Args:
        args: Parsed arguments of `base_parser`.
        splits: The splits that will be used, of 'train', 'val', 'test'.
        checkpoint: A checkpoint that will be read, None for none.

    Exits with a message that names the path and the option if the config, its data or the checkpoint does
    not exist, or if the classes that they name are not the same.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, splits, args.data_root, args.cfg_options, args.data, args.work_dir)
    if checkpoint and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise SystemExit(f'error: the checkpoint {checkpoint} does not exist')
    cfg.launcher = args.launcher
    try:
        prepare_cpu_distributed(cfg)
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error
    try:
        require_agreement(cfg)
    except DataError as error:
        raise SystemExit(f'error: {error}') from error
    _add_hooks(cfg)
    cfg.work_dir = args.work_dir or _work_dir(cfg, args.config)
    return cfg


@contextlib.contextmanager
def entries_checked() -> Iterator[None]:
    """Exit with a message where MMEngine does not take an entry of the config, or misses one."""
    try:
        yield
    except ValueError as error:
        if 'should be either all None or not None' not in str(error):
            raise
        names = str(error).partition(' should be ')[0]
        raise SystemExit(f'error: {names}: set all of them or, to go without, all to None') from error
    except TypeError as error:
        if '__init__() got an unexpected keyword argument' not in str(error):
            raise
        raise SystemExit(f'error: {error}. Correct this entry of the config or of --cfg-options') from error


def check_writable(folder: str | Path, option: str) -> None:
    """Make the folder that an option names, and exit with a message if it cannot be written to."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise SystemExit(
            f'error: {folder} cannot be written to: {error}. Give another place with {option}'
        ) from error


def refuse_earlier_results(folder: str | Path, patterns: Sequence[str], advice: str) -> None:
    """Exit with a message if files in the folder, named by glob patterns, are there from an earlier run."""
    for found in (path for pattern in patterns for path in sorted(Path(folder).glob(pattern))):
        raise SystemExit(f'error: {found} is there already, from an earlier run: {advice}')


def _add_hooks(cfg: Config) -> None:
    """Add to a config, in place, what ours have: strict and safe loading, and saving that loses nothing."""
    hooks = dict(cfg.get('default_hooks') or {})
    own = {
        'checkpoint_load': 'CheckpointLoadHook',
        'bad_number': 'BadNumberHook',
        'resume_report': 'ResumeReportHook',
    }
    for name, kind in own.items():
        if hooks.setdefault(name, {}) is None:  # switched off; MMEngine takes None for its own hooks only
            del hooks[name]
        else:
            hooks[name].setdefault('type', kind)
    saving = hooks.setdefault('checkpoint', dict(interval=1))
    if saving is not None:
        saving.setdefault('type', 'CheckpointHook')
        local = '://' not in str(saving.get('out_dir')) and not saving.get('file_client_args')
        if saving['type'] == 'CheckpointHook' and local:
            saving.setdefault('backend_args', dict(backend='checkpoints'))
    cfg.default_hooks = hooks
    import_mmsgformer(cfg)
