"""Accumulation: the same images per optimizer step on any number of GPUs, and the same schedule in steps."""

import logging
from pathlib import Path

import pytest
from mmengine.config import Config

from mmsgformer.batch_size import accumulate_to_base, report_batch_size

ROOT = Path(__file__).parents[1]
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
    monkeypatch.setattr('mmsgformer.batch_size.print_log', lambda *arguments: said.append(arguments))
    cfg = load(COCO)
    cfg.auto_scale_lr.enable = scale_lr
    if accumulate:
        accumulate_to_base(cfg, processes)
    report_batch_size(cfg, processes)
    ((message, _, actual_level),) = said
    assert text in message
    assert actual_level == level
