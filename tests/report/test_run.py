"""Which config and checkpoint of a work dir a report is about."""

import os

import pytest
import torch

from mmsgformer.report.run import read_run


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
