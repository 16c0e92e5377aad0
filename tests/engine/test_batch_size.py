"""Accumulation: the same images per optimizer step on any number of GPUs, and the same schedule in steps."""

import logging
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.hooks import EMAHook

from mmsgformer.engine.batch_size import accumulate_to_base, check_auto_scale_lr, report_batch_size

ROOT = Path(__file__).parents[2]
ADE20K = 'ade20k/sgformer-s_upernet_8xb2-160k_ade20k-512x512.py'
COCO = 'coco/mask-rcnn_sgformer-s_fpn_1x_coco.py'
IMAGENET = 'imagenet/sgformer-s_8xb128_in1k.py'


def load(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / name)


@pytest.mark.parametrize('processes', [1, 2, 4, 8])
@pytest.mark.parametrize('name', [ADE20K, COCO, IMAGENET])
def test_every_number_of_processes_gets_the_recipes_batch(name, processes):
    plain, cfg = load(name), load(name)
    accumulate_to_base(cfg, processes)
    factor = 8 // processes
    assert cfg.optim_wrapper.accumulative_counts == factor
    assert cfg.train_cfg.get('max_iters', 0) == factor * plain.train_cfg.get('max_iters', 0)
    assert cfg.train_cfg.get('max_epochs') == plain.train_cfg.get('max_epochs')
    for scheduler, before in zip(cfg.param_scheduler, plain.param_scheduler, strict=True):
        assert scheduler.end == before.end * (1 if before.by_epoch else factor)
    in_iterations = not plain.default_hooks.checkpoint.get('by_epoch', True)
    assert cfg.default_hooks.checkpoint.interval == plain.default_hooks.checkpoint.interval * (
        factor if in_iterations else 1
    )
    if name == IMAGENET:
        assert cfg.custom_hooks[0].get('interval', 1) == factor


def test_a_batch_that_does_not_divide_the_recipes_is_refused():
    with pytest.raises(ValueError, match='3 x 2 images at once do not divide the 16'):
        accumulate_to_base(load(COCO), processes=3)
    with pytest.raises(ValueError, match='base_batch_size'):
        accumulate_to_base(Config({'train_dataloader': {'batch_size': 2}}), processes=1)


def test_what_accumulates_already_is_not_multiplied_again(tmp_path):
    """As the config that an earlier run wrote."""
    cfg = load(ADE20K)
    accumulate_to_base(cfg, processes=2)
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    accumulate_to_base(dumped, processes=2)
    assert dumped.to_dict() == cfg.to_dict()
    for processes in (1, 8):
        with pytest.raises(ValueError, match=r'accumulative_counts=4, and [81] are needed'):
            accumulate_to_base(dumped, processes)


COUNTS = {
    'train_cfg': dict(max_iters=100, val_begin=10, val_interval=5, dynamic_intervals=[(50, 2)]),
    'scheduler': dict(begin=1, end=9, T_max=8, step_size=3, milestones=[4, 6], total_steps=8, periods=[2, 6]),
    'CheckpointHook': dict(interval=5, save_begin=50),
    'EMAHook': dict(interval=2, begin_iter=10),
    'MeanTeacherHook': dict(interval=3),
    'SignificanceVisHook': dict(interval=5),
    'LoggerHook': dict(interval=50),
}
HOOKS = [name for name in COUNTS if name.endswith('Hook')]


@pytest.mark.parametrize('place', ['default_hooks', 'custom_hooks'])
@pytest.mark.parametrize('by_epoch', [False, True])
def test_all_that_is_counted_in_iterations_grows(by_epoch, place):
    """In hooks too, whichever list they stand in. What is counted in epochs stays, and what is logged."""
    train = dict(max_epochs=3, val_begin=2, val_interval=1) if by_epoch else COUNTS['train_cfg']
    hooks = [dict(COUNTS[name], type=name) for name in HOOKS]
    hooks[0]['by_epoch'] = by_epoch
    if place == 'default_hooks':
        hooks = {'timer': None, **{f'hook_{i}': hook for i, hook in enumerate(hooks)}}
    cfg = Config(
        dict(
            train_cfg=dict(train),
            train_dataloader=dict(batch_size=2),
            auto_scale_lr=dict(base_batch_size=8),
            optim_wrapper=dict(),
            param_scheduler=[dict(COUNTS['scheduler'], by_epoch=by_epoch)],
            **{place: hooks},
        )
    )
    accumulate_to_base(cfg, processes=2)
    hooks = [hook for hook in (cfg[place] if isinstance(cfg[place], list) else cfg[place].values()) if hook]
    found = {
        'train_cfg': (train, cfg.train_cfg),
        'scheduler': (COUNTS['scheduler'], cfg.param_scheduler[0]),
        **{hook.type: (COUNTS[hook.type], hook) for hook in hooks},
    }
    by_epochs = ('train_cfg', 'scheduler', 'CheckpointHook') if by_epoch else ()
    for name, (before, after) in found.items():
        factor = 1 if name in (*by_epochs, 'LoggerHook') else 2
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], np.multiply(value, factor), err_msg=key)


@pytest.mark.parametrize('kind', ['EMAHook', 'mmengine.EMAHook', EMAHook])
def test_an_average_over_every_iteration_becomes_one_over_every_step(kind):
    """Its interval of 1 need not be written down; a hook's type may be a class, or a name with its scope."""
    cfg = load(COCO)
    cfg.default_hooks.ema = dict(type=kind)
    accumulate_to_base(cfg, processes=4)
    assert cfg.default_hooks.ema.interval == 2


@pytest.mark.parametrize('hooks', [None, {}, {'checkpoint': None}])
def test_a_config_without_hooks_accumulates(hooks):
    cfg = load(COCO)
    cfg.default_hooks, cfg.custom_hooks = hooks, None
    accumulate_to_base(cfg, processes=4)
    assert cfg.optim_wrapper.accumulative_counts == 2


@pytest.mark.parametrize(('enable', 'counts'), [(False, 2), (True, 1), (True, 2)])
def test_a_scaled_rate_of_accumulated_gradients_is_refused(enable, counts):
    """MMEngine would scale it to the images of one iteration."""
    cfg = load(COCO)
    cfg.auto_scale_lr.enable = enable
    cfg.optim_wrapper.accumulative_counts = counts
    if enable and counts == 2:
        with pytest.raises(ValueError, match='1/2 of what it should be'):
            check_auto_scale_lr(cfg)
    else:
        check_auto_scale_lr(cfg)


@pytest.mark.parametrize(
    ('processes', 'accumulate', 'scale_lr', 'level', 'text'),
    [
        (8, False, False, logging.INFO, '8 process(es) x 2 images x 1 accumulated = 16'),
        (2, True, False, logging.INFO, '2 process(es) x 2 images x 4 accumulated = 16'),
        (1, False, False, logging.WARNING, 'add --accumulate or --auto-scale-lr'),
        (4, False, True, logging.INFO, 'scaled by 0.5'),
    ],
)
def test_the_report_warns_of_a_mismatch(monkeypatch, processes, accumulate, scale_lr, level, text):
    said = []
    monkeypatch.setattr('mmsgformer.engine.batch_size.print_log', lambda *arguments: said.append(arguments))
    cfg = load(COCO)
    cfg.auto_scale_lr.enable = scale_lr
    if accumulate:
        accumulate_to_base(cfg, processes)
    report_batch_size(cfg, processes)
    ((message, _, actual_level),) = said
    assert text in message
    assert actual_level == level
