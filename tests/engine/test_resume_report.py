"""What a resumed run says about the settings that its checkpoint brings, in real runs of a Runner."""

import re

import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmsgformer.engine.resume_report import ResumeReportHook

COSINE = dict(type='CosineAnnealingLR', by_epoch=False, T_max=4, end=4)


class Model(BaseModel):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, *_: object, **__: object) -> dict:
        return {'loss': self.weight.sum()}


@pytest.fixture
def train(tmp_path):
    """A function that trains for some epochs of two iterations; returns what is logged, and the last rate."""

    def run(epochs: int, optimizer: dict, schedules: list | None, resume: bool) -> tuple[str, list[float]]:
        data = [0, 1]
        work_dir = tmp_path / f'{len(list(tmp_path.iterdir()))}'
        runner = Runner(
            Model(),
            str(work_dir),
            train_dataloader=DataLoader(data, sampler=DefaultSampler(data), collate_fn=pseudo_collate),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer={'type': 'SGD', **optimizer}),
            param_scheduler=schedules,
            load_from=str(tmp_path / '0' / 'epoch_2.pth') if resume else None,
            resume=resume,
            experiment_name=f'{tmp_path.name}-{work_dir.name}',
        )
        runner.register_hook(ResumeReportHook())
        runner.train()
        (log,) = work_dir.glob('*/*.log')
        return log.read_text(), runner.optim_wrapper.get_lr()['lr']

    return run


FIRST = (2, dict(lr=0.1, momentum=0.9), [COSINE])


@pytest.mark.parametrize(
    ('second', 'kept', 'rest'),
    [
        ((3, dict(lr=0.1, momentum=0.9), [COSINE]), None, False),
        ((2, dict(lr=0.1, momentum=0.9), [COSINE]), None, True),
        (
            (4, dict(lr=0.1, momentum=0.9), [{**COSINE, 'T_max': 8, 'end': 8}]),
            'CosineAnnealingLR.T_max 4 (config: 8), CosineAnnealingLR.end 4 (config: 8)',
            False,
        ),
        (
            (3, dict(lr=0.2, momentum=0.9, weight_decay=0.5), [COSINE]),
            'lr 0.1 (config: 0.2), weight_decay 0 (config: 0.5)',
            False,
        ),
        (
            (3, dict(lr=0.1, momentum=0.9), [COSINE, dict(type='ConstantLR', by_epoch=False)]),
            'the first of 1 schedules (config: 2)',
            False,
        ),
        ((1, dict(lr=0.1, momentum=0.8), [COSINE]), 'momentum 0.9 (config: 0.8)', True),
    ],
    ids=['the same', 'nothing left', 'longer schedule', 'other rate', 'one more schedule', 'both'],
)
def test_what_a_checkpoint_overrides_is_said(train, second, kept, rest):
    """And what is left of the training; the settings are in fact those of the checkpoint."""
    _, ended = train(*FIRST, resume=False)
    log, rates = train(*second, resume=True)
    found = re.search(r"epoch_2\.pth, not the config's: (.*?)\. To train", log)
    assert (found and found[1]) == kept
    assert ('Nothing is left to train: ' in log) == rest
    if kept and 'schedules' not in kept:
        assert rates == ended  # it stays at the end of the first run's schedule
        assert 'load_from=' in log


def test_a_new_run_says_nothing(train):
    log, _ = train(*FIRST, resume=False)
    assert 'config: ' not in log
    assert 'Nothing is left' not in log
