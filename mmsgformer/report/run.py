"""A work dir -> the run: its config, its checkpoint, and what is known of how it was trained."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.utils import is_installed

from mmsgformer.checkpoint.files import latest_checkpoint, stored_iteration
from mmsgformer.report.logs import Curves, read_curves, read_environment, validated_keys
from mmsgformer.version import __version__

_LOGGED = ('Python', 'PyTorch', 'TorchVision', 'OpenCV', 'MMEngine')


class Run(NamedTuple):
    """What a work dir holds."""

    work_dir: Path
    config: Path
    checkpoint: Path
    curves: Curves
    metrics: set[str]
    """Those of the curves that validations logged."""
    environment: dict[str, str]


def read_run(work_dir: Path) -> Run:
    """Find the parts of a training run: the best checkpoint if one was kept as such, or else the last.

    Raises:
        FileNotFoundError: There is no such folder, or no config or checkpoint in it.
    """
    if not work_dir.is_dir():
        raise FileNotFoundError(f'{work_dir} is no folder; give the work dir of a training run')
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise FileNotFoundError(
            f'{work_dir} has no config (*.py), which training writes; give the work dir of a run'
        )
    best = sorted(work_dir.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    checkpoint = str(best[-1]) if best else latest_checkpoint(work_dir)
    if checkpoint is None:
        raise FileNotFoundError(
            f'{work_dir} has no checkpoint (best_*.pth, epoch_*.pth, iter_*.pth); train until one is saved'
        )
    try:
        curves = read_curves(work_dir)
    except FileNotFoundError:
        curves = {}
    metrics, environment = validated_keys(work_dir), read_environment(work_dir)
    return Run(work_dir, configs[-1], Path(checkpoint), curves, metrics, environment)


def describe_training(run: Run, cfg: Config, parameters: int) -> list[tuple[str, str]]:
    """(what, value) of the model and how it was trained, as far as it is known."""
    environment = run.environment
    facts = {
        'config': run.config.name,
        'model': f'{cfg.model.type}, backbone {cfg.model.get("backbone", {}).get("type", "none of its own")}',
        'parameters': f'{parameters:,}',
        'checkpoint': f'{run.checkpoint.name}, iteration {stored_iteration(run.checkpoint)}',
        'started from': cfg.get('load_from') or _pretrained(cfg) or 'scratch',
        'batch size': _batch_size(cfg, int(environment.get('GPU number', 1))),
        'optimizer': _call(cfg.get('optim_wrapper', {}).get('optimizer') or {}, ('lr', 'weight_decay')),
        'schedule': _schedule(cfg),
        'seed': environment.get('seed') or str(cfg.get('randomness', {}).get('seed', '')),
        'GPUs': ', '.join(value for name, value in environment.items() if name.startswith('GPU 0')),
        'trained with': ', '.join(
            f'{name} {environment[name].partition(" ")[0]}' for name in _LOGGED if name in environment
        ),
        'commit': ', '.join(_commits(environment)),
        'report made with': ', '.join(_installed()),
        'work dir': str(run.work_dir),
    }
    return [(name, value) for name, value in facts.items() if value]


def _batch_size(cfg: Config, processes: int) -> str:
    """Images an optimizer step."""
    if not cfg.get('train_dataloader'):
        return ''
    size = cfg.train_dataloader.get('batch_size') or cfg.train_dataloader.batch_sampler.batch_size
    steps = cfg.get('optim_wrapper', {}).get('accumulative_counts', 1)
    parts = [f'{size} a process', f'{processes} process{"es" if processes > 1 else ""}']
    parts += [f'accumulated over {steps} iterations'] if steps > 1 else []
    return f'{size * processes * steps} ({", ".join(parts)})'


def _schedule(cfg: Config) -> str:
    """How long, and how the learning rate changes."""
    loop = cfg.get('train_cfg') or {}
    length = [
        f'{loop[key]} {unit}'
        for key, unit in (('max_epochs', 'epochs'), ('max_iters', 'iterations'))
        if loop.get(key)
    ]
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]
    return '; '.join(
        [*length, *(_call(one, ('begin', 'end', 'milestones', 'by_epoch')) for one in schedulers)]
    )


def _call(entry: dict, names: Iterable[str]) -> str:
    """A type of a config with some of its arguments."""
    given = ', '.join(f'{name}={entry[name]}' for name in names if name in entry)
    return f'{entry["type"]}({given})' if entry else ''


def _pretrained(cfg: Config) -> str | None:
    init = (cfg.model.get('backbone') or {}).get('init_cfg') or {}
    return f'{init["checkpoint"]} (backbone)' if init.get('checkpoint') else None


def _commits(environment: dict[str, str]) -> list[str]:
    """OpenMMLab's tools log a version as 3.3.0+44ebd17."""
    return [
        f'{name} {value}' for name, value in environment.items() if '+' in value and name.startswith('MM')
    ]


def _installed() -> list[str]:
    """Versions that are here now."""
    names = ['mmengine', *(name for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain') if is_installed(name))]
    versions = [f'{name} {import_module(name).__version__}' for name in names]
    return [f'mmsgformer {__version__}', f'torch {torch.__version__}', *versions]
