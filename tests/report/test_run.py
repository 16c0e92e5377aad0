"""Which config and checkpoint of a work dir a report is about."""

import os

import pytest
import torch
from mmengine.config import Config

from mmsgformer.report.run import Run, describe_training, read_run


@pytest.mark.parametrize(
    ('checkpoints', 'expected'),
    [
        (['iter_2.pth', 'iter_10.pth'], 'iter_10.pth'),
        (['iter_2.pth', 'iter_10.pth', 'best_mIoU_iter_2.pth'], 'best_mIoU_iter_2.pth'),
    ],
)
def test_the_best_checkpoint_is_taken_or_else_the_last(checkpoints, expected, tmp_path):
    (tmp_path / 'config.py').write_text('')
    for name in checkpoints:
        iteration = int(name.removesuffix('.pth').rpartition('_')[2])
        torch.save({'state_dict': {}, 'meta': {'iter': iteration}}, tmp_path / name)
    assert read_run(tmp_path).checkpoint.name == expected


def test_the_newest_config_is_taken(tmp_path):
    """A run may be resumed with another one."""
    torch.save({'state_dict': {}, 'meta': {'iter': 1}}, tmp_path / 'iter_1.pth')
    for time, name in enumerate(['new.py', 'a_old.py'][::-1]):
        (tmp_path / name).write_text('')
        os.utime(tmp_path / name, (time, time))
    assert read_run(tmp_path).config.name == 'new.py'


def test_what_was_trained_is_described(tmp_path):
    """The batch is that of an optimizer step, over all processes; a commit is told where one is logged."""
    torch.save({'state_dict': {}, 'meta': {'iter': 7}}, tmp_path / 'iter_7.pth')
    cfg = Config(
        dict(
            model=dict(type='MaskRCNN', backbone=dict(type='SGFormer')),
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1), accumulative_counts=4),
            train_cfg=dict(max_iters=100),
            param_scheduler=[dict(type='LinearLR', begin=0, end=10)],
        )
    )
    environment = {'GPU number': '3', 'seed': '5', 'MMEngine': '0.10.12', 'MMDetection': '3.3.0+44ebd17'}
    run = Run(tmp_path, tmp_path / 'a.py', tmp_path / 'iter_7.pth', {}, set(), environment)
    facts = dict(describe_training(run, cfg, 1234567))
    assert facts['batch size'] == '24 (2 a process, 3 processes, accumulated over 4 iterations)'
    assert facts['checkpoint'] == 'iter_7.pth, iteration 7'
    assert facts['schedule'] == '100 iterations; LinearLR(begin=0, end=10)'
    assert (facts['parameters'], facts['seed'], facts['started from']) == ('1,234,567', '5', 'scratch')
    assert facts['commit'] == 'MMDetection 3.3.0+44ebd17'
    assert 'GPUs' not in facts
