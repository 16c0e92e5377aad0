"""What a resumed run takes from its checkpoint instead of from its config."""

from collections.abc import Iterator, Mapping

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

_OPTIMIZER_SETTINGS = ('lr', 'momentum', 'betas', 'weight_decay')

# Of a schedule's state: how far it is, and what follows from other entries.
_NO_SETTINGS = (
    'last_step',
    'base_values',
    'total_iters',
    'verbose',
    'cooldown_counter',
    'best',
    'num_bad_epochs',
)


@HOOKS.register_module()
class ResumeReportHook(Hook):
    """Warns, when a run is resumed, of settings that MMEngine takes from the checkpoint, not from the config.

    Those are the optimizer's (learning rate, weight decay, ...) and the schedules'. The length of training is
    the config's; warns too if nothing of it is left.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare, before MMEngine restores them."""
        if not (runner._resume and isinstance(runner.optim_wrapper, OptimWrapper)):
            return
        path = runner._load_from or 'the checkpoint'
        kept = [*_optimizer_changes(runner, checkpoint), *_schedule_changes(runner, checkpoint)]
        if kept:
            runner.logger.warning(
                f"Resuming keeps these of {path}, not the config's: {', '.join(dict.fromkeys(kept))}. To "
                f"train with the config's, start a new run from its weights: --cfg-options load_from={path}, "
                'another --work-dir, no --resume'
            )
        unit = 'iter' if isinstance(runner.train_loop, IterBasedTrainLoop) else 'epoch'
        done, wanted = checkpoint['meta'].get(unit, 0), getattr(runner, f'max_{unit}s')
        if done >= wanted:
            runner.logger.warning(
                f'Nothing is left to train: {path} is of {unit} {done}, and train_cfg.max_{unit}s is {wanted}'
            )


def _optimizer_changes(runner: Runner, checkpoint: Mapping) -> Iterator[str]:
    """Settings of the parameter groups that differ, before any schedule; of runs with one optimizer."""
    stored_groups = checkpoint.get('optimizer', {}).get('param_groups', [])
    for own, stored in zip(runner.optim_wrapper.param_groups, stored_groups, strict=False):
        for key in _OPTIMIZER_SETTINGS:
            # A schedule of the momentum moves Adam's betas.
            if key in own and key in stored and not (key == 'betas' and 'initial_momentum' in stored):
                values = [group.get(f'initial_{key}', group[key]) for group in (stored, own)]
                if values[0] != values[1]:
                    yield f'{key} {values[0]} (config: {values[1]})'


def _schedule_changes(runner: Runner, checkpoint: Mapping) -> Iterator[str]:
    """Settings of the schedules that differ, and their number; of runs with one optimizer."""
    own, stored = runner.param_schedulers or [], checkpoint.get('param_schedulers') or []
    if isinstance(own, dict) or isinstance(stored, dict):
        return
    for scheduler, before in zip(own, stored, strict=False):
        for key, value in scheduler.state_dict().items():
            if key.startswith('_') or key in _NO_SETTINGS or callable(value) or key not in before:
                continue
            if before[key] != value:
                yield f'{type(scheduler).__name__}.{key} {before[key]} (config: {value})'
    if len(own) != len(stored):
        yield f'the first of {len(stored)} schedules (config: {len(own)})'
