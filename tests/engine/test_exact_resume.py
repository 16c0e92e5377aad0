"""A resumed run ends with the same bits as an uninterrupted one: detection, segmentation, classification."""

import copy
import inspect
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmsgformer.checkpoint.files import read_checkpoint
from mmsgformer.cli import base_parser, load_config
from mmsgformer.engine.exact_resume import (
    DataError,
    EndlessBatches,
    PlaceSeededDataset,
    ResumableBatchSampler,
    SeededIndex,
    enable_exact_resume,
    make_exact,
)

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'detector': 'configs/demo/mask-rcnn_sgformer-tiny_fpn_shapes.py',
    'segmenter': 'configs/demo/sgformer-tiny_upernet_shapes.py',
    'classifier': 'configs/demo/sgformer-tiny_shapes.py',
}
BY_ITERATION = {'default_hooks.checkpoint.by_epoch': False}
# Everything that draws random numbers, and an average that has to be saved.
OPTIONS = {
    'model.backbone.drop_path_rate': 0.3,
    'train_dataloader.batch_size': 2,
    'train_dataloader.dataset.indices': 6,
    'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
    'default_hooks.checkpoint.max_keep_ckpts': -1,
}


def train(kind: str, data: Path, work_dir: Path, workers: int, start: Path | None, **options: object):
    """Train as tools/train.py does, from a checkpoint or from scratch."""
    arguments = [str(ROOT / CONFIGS[kind]), '--data-root', str(data), '--work-dir', str(work_dir)]
    cfg = load_config(base_parser('').parse_args(arguments), splits=('train', 'val'))
    cfg.merge_from_dict(copy.deepcopy({**OPTIONS, **options}) | {'train_dataloader.num_workers': workers})
    cfg.train_dataloader.persistent_workers = workers > 0
    cfg.val_dataloader.num_workers, cfg.val_dataloader.persistent_workers = 0, False
    cfg.experiment_name = cfg.visualizer.name = str(work_dir)
    cfg.resume, cfg.load_from = start is not None, start and str(start)
    enable_exact_resume(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def state(runner: Runner) -> dict:
    """All that a run has computed, with one name for each tensor or number."""
    (ema,) = (hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))
    flat = {}

    def visit(name: str, node: object) -> None:
        if isinstance(node, (dict, list, tuple)):
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                visit(f'{name}.{key}', value)
        else:
            flat[name] = node

    visit('weights', runner.model.state_dict())
    visit('average', ema.state_dict())
    visit('optimizer', runner.optim_wrapper.state_dict())
    visit('schedulers', [scheduler.state_dict() for scheduler in runner.param_schedulers])
    return flat


def different(expected: dict, found: dict) -> list[str]:
    """Names under which two states do not hold the same bits."""
    return [
        name
        for name, value in expected.items()
        if not (torch.equal(value, found[name]) if torch.is_tensor(value) else value == found[name])
    ]


CASES = {
    'detector, epoch': ('detector', 'epoch_1', {'train_cfg.max_epochs': 2}),
    'detector, within an epoch, accumulating': (
        'detector',
        'iter_4',
        {
            'train_cfg.max_epochs': 2,
            'train_cfg.val_begin': 99,
            'train_dataloader.batch_sampler': dict(_delete_=True, type='AspectRatioBatchSampler'),
            'optim_wrapper.accumulative_counts': 3,
            **BY_ITERATION,
        },
    ),
    'segmenter, endless sampler': (
        'segmenter',
        'iter_4',
        {'train_cfg.max_iters': 6, 'train_cfg.val_interval': 5, 'model.decode_head.dropout_ratio': 0.5},
    ),
    'segmenter, sampler of epochs': (
        'segmenter',
        'iter_4',
        {
            'train_cfg.max_iters': 7,
            'train_cfg.val_begin': 99,
            'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
        },
    ),
    'classifier, repeated augmentation': (
        'classifier',
        'epoch_1',
        {
            'train_cfg.max_epochs': 2,
            'train_cfg.val_begin': 99,
            'train_dataloader.sampler.type': 'RepeatAugSampler',
            'model.train_cfg': dict(
                _delete_=True, augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
            ),
            'randomness.diff_rank_seed': True,
        },
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_a_resumed_run_ends_with_the_same_bits(case, shapes, tmp_path):
    """Weights, average, optimizer and schedulers, whatever number of workers loads the data."""
    kind, checkpoint, options = CASES[case]
    saving = {'interval': int(checkpoint.rpartition('_')[2]), 'save_last': False}  # once: it takes seconds
    options = {**options, **{f'default_hooks.checkpoint.{name}': value for name, value in saving.items()}}
    workers = 2 if case == 'segmenter, endless sampler' else 0
    whole = train(kind, shapes, tmp_path / 'whole', workers, None, **options)
    torch.manual_seed(1)  # the resumed run does not depend on what another process happened to draw
    np.random.seed(1)
    start = tmp_path / 'whole' / f'{checkpoint}.pth'
    resumed = train(kind, shapes, tmp_path / 'resumed', 0, start, **options)
    expected, found = state(whole), state(resumed)
    assert expected.keys() == found.keys()
    assert not different(expected, found)
    assert resumed.iter == whole.iter > read_checkpoint(start)['meta']['iter']


class Sum(BaseModel):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, number: list[torch.Tensor], **_: object) -> dict[str, torch.Tensor]:
        return {'loss': (self.weight * torch.stack(number)).mean()}


@DATASETS.register_module()
class Numbers(torch.utils.data.Dataset):
    """1000 numbers; notes which were loaded. The last ones are bad."""

    first_bad = 1000

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= self.first_bad:
            raise OSError('no picture')
        self.loaded.append(index)
        return {'number': torch.tensor(float(index))}

    def __len__(self) -> int:
        return 1000

    def get_data_info(self, index: int) -> dict[str, str]:
        return {'img_path': f'number_{index}.jpg'}


def train_numbers(work_dir: Path, iterations: int, start: Path | None = None, **loop: object) -> list[int]:
    """Train with two numbers per iteration; returns those that were loaded."""
    parts = ConfigDict(
        train_dataloader=dict(
            dataset=dict(type='Numbers'), sampler=dict(type='InfiniteSampler'), batch_size=2, num_workers=0
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations, **loop),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        randomness=dict(seed=3),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=iterations, by_epoch=False)),
        load_from=start and str(start),
        resume=start is not None,
    )
    enable_exact_resume(parts)
    del parts.custom_imports  # for who loads a config: Runner takes no such argument
    name = f'{work_dir.name}-{iterations}'
    runner = Runner(model=Sum(), work_dir=str(work_dir), experiment_name=name, **parts)
    runner.train()
    return runner.train_dataloader.dataset.loaded


@pytest.mark.parametrize('asks', ['at once', 'one by one', 'not at all'])
def test_nothing_is_loaded_for_what_is_trained_already(asks, tmp_path, monkeypatch):
    """After 100000 iterations, however MMEngine's loop asks for those; the order goes on as it was."""
    if asks == 'one by one':  # as in MMEngine before `skip_iter`
        monkeypatch.setattr(EndlessBatches, 'skip_iter', lambda self, n: [next(self) for _ in range(n)])
    train_numbers(tmp_path, 1)
    checkpoint = dict(read_checkpoint(tmp_path / 'iter_1.pth'))
    checkpoint['meta']['iter'] = 100_000
    torch.save(checkpoint, tmp_path / 'late.pth')
    jump = {'fast_forward_on_resume': True} if asks == 'not at all' else {}
    if jump and 'fast_forward_on_resume' not in inspect.signature(IterBasedTrainLoop).parameters:
        pytest.skip('this MMEngine has no fast_forward_on_resume')
    loaded = train_numbers(tmp_path, 100_003, tmp_path / 'late.pth', **jump)
    indices = InfiniteSampler(Numbers(), seed=3)
    assert loaded == list(itertools.islice(indices, 200_000, 200_006))


def test_the_config_that_a_run_wrote_can_be_trained_with():
    """It has the parts already."""
    cfg = ConfigDict(train_dataloader=dict(dataset=dict(type='Numbers'), batch_sampler=None, drop_last=True))
    enable_exact_resume(cfg)
    once = copy.deepcopy(cfg)
    enable_exact_resume(cfg)
    assert cfg == once
    assert cfg.train_dataloader.batch_sampler.drop_last


def test_a_bad_sample_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(Numbers, 'first_bad', 0)
    with pytest.raises(
        DataError, match=r'sample \d+ .*\(number_\d+\.jpg\) cannot .*no picture.*check_dataset'
    ):
        train_numbers(tmp_path, 1)


@pytest.mark.parametrize(
    ('samples', 'kind', 'drop_last', 'is_error'),
    [
        (3, DefaultSampler, True, True),
        (0, DefaultSampler, False, True),
        (0, InfiniteSampler, False, True),
        (3, DefaultSampler, False, False),
        (4, DefaultSampler, True, False),
        (3, InfiniteSampler, True, False),
    ],
)
def test_an_epoch_without_a_batch_is_an_error(samples, kind, drop_last, is_error):
    """It would be repeated for ever."""
    batches = ResumableBatchSampler(kind(range(samples), shuffle=False), batch_size=4, drop_last=drop_last)
    batches.start(seed=0, epoch=0, num_skipped=2)
    loader = DataLoader(PlaceSeededDataset(range(samples)), batch_sampler=batches)
    endless = EndlessBatches(loader, num_done=0)
    if is_error:
        with pytest.raises(
            DataError, match=f'{samples} samples for this process, not enough for one batch of 4'
        ):
            next(endless)
    else:
        assert len(next(endless)) == (4 if kind is InfiniteSampler else samples)


def test_data_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / 'broken.json').write_text('{')
    broken = dict(type='BaseDataset', ann_file=str(tmp_path / 'broken.json'))
    with pytest.raises(DataError, match=r'broken\.json\) cannot be listed: .*check_dataset'):
        PlaceSeededDataset(broken)


def test_bad_samples_are_skipped_and_counted(monkeypatch):
    """The sample that takes the place is the same every time."""
    monkeypatch.setattr(Numbers, 'first_bad', 998)
    dataset = PlaceSeededDataset(Numbers(), skip_bad=True)
    for bad in (998, 999, 999):
        taken = [dataset[SeededIndex(bad, (0, 0, 7))]['number'] for _ in range(2)]
        assert taken[0] == taken[1] < 998
    assert int(dataset.bad.sum()) == 2


def test_a_data_set_without_any_good_sample_is_an_error(monkeypatch):
    monkeypatch.setattr(Numbers, 'first_bad', 0)
    with pytest.raises(DataError, match='no picture'):
        PlaceSeededDataset(Numbers(), skip_bad=True)[SeededIndex(1, (0,))]


def test_the_first_name_still_works():
    """docs/robustness.md had it."""
    assert make_exact is enable_exact_resume
