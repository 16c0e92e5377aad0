"""Images per optimizer step: what a recipe assumes, what a run does, and how to make them agree."""

import logging
import os

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

# What each of MMEngine's launchers calls the number of processes.
_WORLD_SIZE = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS', 'mpi': 'OMPI_COMM_WORLD_SIZE'}


# What schedulers count in iterations if they are not by_epoch.
_SCHEDULER_COUNTS = ('begin', 'end', 'T_max', 'step_size', 'milestones', 'total_steps', 'periods')

# What hooks count in iterations; not how often something is logged.
_HOOK_COUNTS = {
    'CheckpointHook': ('interval', 'save_begin'),
    'EMAHook': ('interval', 'begin_iter'),
    'MeanTeacherHook': ('interval',),  # mmdet's moving average in semi-supervised training
    'SignificanceVisHook': ('interval',),
}


def num_processes(launcher: str) -> int:
    """Processes that this launcher started, 1 without a launcher."""
    return int(os.environ.get(_WORLD_SIZE.get(launcher, ''), 1))


def accumulate_to_base(cfg: Config, processes: int) -> None:
    """Accumulate gradients until an optimizer step sees as many images as the recipe assumes, in place.

    MMEngine counts iterations, and now several make a step. So all that a config counts in iterations grows
    by the same factor: the length of training, warm-up and decay, validation, checkpoints, the EMA, and the
    pictures of the significance; not how often a line is logged. A config that accumulates by this factor
    already, as one that an earlier run wrote, stays as it is.

    Args:
        cfg: A training config with `auto_scale_lr.base_batch_size`.
        processes: Processes that train together.

    Raises:
        ValueError: The config does not say its batch size, or that is not a multiple of what the processes
            see at once, or the config accumulates by another factor already.
    """
    base = _base_batch_size(cfg)
    if base is None:
        raise ValueError(f'{cfg.filename} has no auto_scale_lr.base_batch_size')
    at_once = processes * cfg.train_dataloader.batch_size
    if base % at_once:
        raise ValueError(
            f'{processes} x {cfg.train_dataloader.batch_size} images at once do not divide the {base} of the '
            'recipe; choose another train_dataloader.batch_size'
        )
    factor, present = base // at_once, cfg.optim_wrapper.get('accumulative_counts', 1)
    if present not in (1, factor):
        raise ValueError(
            f'{cfg.filename} has optim_wrapper.accumulative_counts={present}, and {factor} are needed; take '
            'the config that it was made from, which accumulates nothing'
        )
    cfg.optim_wrapper.accumulative_counts = factor
    if present == factor:
        return
    if 'max_iters' in cfg.train_cfg:
        keys = ('max_iters', 'val_begin', 'val_interval', 'dynamic_intervals')
        _multiply(cfg.train_cfg, keys, factor)
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if not scheduler.get('by_epoch', True):
            _multiply(scheduler, _SCHEDULER_COUNTS, factor)
    for hook in [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]:
        if isinstance(hook, dict):  # None is one that is switched off
            _stretch_hook(hook, factor)


def check_auto_scale_lr(cfg: Config) -> None:
    """Check that MMEngine scales the learning rate, if it does, to the images of an optimizer step.

    Raises:
        ValueError: The config accumulates gradients, which MMEngine leaves out when it counts the images.
    """
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    if counts > 1 and (cfg.get('auto_scale_lr') or {}).get('enable'):
        raise ValueError(
            f'auto_scale_lr counts no accumulated images: with accumulative_counts={counts} the learning '
            f'rate would be 1/{counts} of what it should be; use one of the two'
        )


def report_batch_size(cfg: Config, processes: int) -> None:
    """Log the images per optimizer step; warn if they are not those of the recipe."""
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    batch_size = cfg.train_dataloader.batch_size
    actual, base = processes * batch_size * counts, _base_batch_size(cfg)
    text = (
        f'Batch size: {processes} process(es) x {batch_size} images x {counts} accumulated = {actual} per '
        f'optimizer step; the recipe assumes {base or "none"}.'
    )
    level = logging.INFO
    if base not in (None, actual):
        if cfg.auto_scale_lr.get('enable'):
            text += f' The learning rate is scaled by {actual / base:g}.'
        else:
            level = logging.WARNING
            text += ' The learning rate fits the latter: add --accumulate or --auto-scale-lr.'
    print_log(text, 'current', level)


def _base_batch_size(cfg: Config) -> int | None:
    return (cfg.get('auto_scale_lr') or {}).get('base_batch_size')


def _stretch_hook(hook: ConfigDict, factor: int) -> None:
    """Multiply what a hook counts in iterations; its type is a class or a name, perhaps with a scope."""
    kind = hook.get('type', '')
    name = getattr(kind, '__name__', kind).rpartition('.')[2]
    if name not in _HOOK_COUNTS or (name == 'CheckpointHook' and hook.get('by_epoch', True)):
        return
    if name in ('EMAHook', 'MeanTeacherHook'):
        hook.setdefault('interval', 1)
    _multiply(hook, _HOOK_COUNTS[name], factor)


def _multiply(node: ConfigDict, keys: tuple[str, ...], factor: int) -> None:
    """Multiply those entries, numbers or (nested) lists of numbers, that are there."""

    def multiplied(value: object) -> object:
        return [multiplied(v) for v in value] if isinstance(value, (list, tuple)) else value * factor

    for key in keys:
        if node.get(key) is not None:
            node[key] = multiplied(node[key])
