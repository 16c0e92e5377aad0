"""The config that the arguments of tools/train.py describe, without training."""

import os
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / 'tools' / 'train.py'))
SEGMENTER = ROOT / 'configs' / 'demo' / 'sgformer-tiny_upernet_shapes.py'
OWN = """
model = dict(type='Model')
optim_wrapper = dict()
train_cfg = dict(by_epoch=True, max_epochs=1)
train_dataloader = dict(
    batch_size=2, drop_last=True, dataset=dict(type='Data'), batch_sampler=dict(type='Batches')
)
custom_hooks = [dict(type='EMAHook')]
"""


@pytest.fixture
def config_from(tmp_path, monkeypatch):
    """A function that makes the config of command-line arguments."""
    monkeypatch.chdir(tmp_path)

    def make(*argv: object) -> Config:
        return TOOL['config_from'](TOOL['make_parser']().parse_args([str(value) for value in argv]))

    return make


@pytest.fixture
def own(tmp_path) -> Path:
    """A user's config that inherits nothing."""
    (tmp_path / 'own.py').write_text(OWN)
    return tmp_path / 'own.py'


def test_making_a_config_writes_nothing(config_from, own):
    cfg = config_from(own, '--work-dir', 'run')
    assert cfg.work_dir == 'run'
    assert not cfg.get('resume')
    assert list(Path().iterdir()) == [Path('own.py')]


def test_resuming_is_exact_and_can_be_left_to_mmengine(config_from, own):
    """In the config that an earlier, exact run dumped too."""
    plain = Config.fromfile(own)
    exact = config_from(own, '--skip-bad-samples')
    assert exact.train_dataloader.dataset == dict(
        type='PlaceSeededDataset', dataset=plain.train_dataloader.dataset, skip_bad=True
    )
    assert [hook.type for hook in exact.custom_hooks] == ['EMAHook', 'ExactResumeHook']
    exact.dump('dumped.py')
    for config in (own, 'dumped.py'):
        cfg = config_from(config, '--no-exact-resume')
        assert cfg.train_dataloader == plain.train_dataloader
        assert cfg.custom_hooks == plain.custom_hooks


@pytest.mark.parametrize('name', [None, 'other/iter_4.pth'])
def test_a_checkpoint_to_resume_from(config_from, own, name):
    """The newest in the work dir, or the one that is named."""
    for path in (Path('run/epoch_1.pth'), Path('run/epoch_2.pth'), Path('other/iter_4.pth')):
        path.parent.mkdir(exist_ok=True)
        torch.save({}, path)
    cfg = config_from(own, '--work-dir', 'run', '--resume', *([name] if name else []))
    assert (cfg.resume, cfg.load_from) == (True, name or 'run/epoch_2.pth')


@pytest.mark.parametrize(
    ('names', 'given', 'expected'),
    [
        (['epoch_1.pth', 'epoch_2.pth'], [], 'run/epoch_2.pth: iteration 8, the last that is saved in run'),
        (['epoch_1.pth', 'epoch_2.pth'], ['run/epoch_1.pth'], 'run/epoch_1.pth: as given'),
        (['last.pth'], [], 'run/last.pth: named by run/last_checkpoint'),
    ],
)
def test_it_says_what_it_resumes_from_and_why(config_from, own, names, given, expected, capsys):
    """The files' times say the opposite."""
    Path('run').mkdir()
    for age, name in enumerate(reversed(names)):
        torch.save({'meta': {'iter': 8 - 4 * age}}, f'run/{name}')
        os.utime(f'run/{name}', (age, age))
    Path('run/last_checkpoint').write_text(f'run/{names[-1]}')
    config_from(own, '--work-dir', 'run', '--resume', *given)
    assert f'resuming from {expected}\n' in capsys.readouterr().out


def test_a_first_run_with_resume_starts_from_scratch(config_from, own, capsys):
    cfg = config_from(own, '--work-dir', 'run', '--resume')
    assert not cfg.get('resume')
    assert 'nothing to resume in run: starting from scratch' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['epoch_3.pth', 'iter_40.pth'])
def test_a_new_run_does_not_mix_with_an_old_one(config_from, own, name):
    """Its checkpoints would replace some of the old ones and stand beside the others."""
    Path('run').mkdir()
    Path('run/20240101.log').touch()
    Path('run/best_mIoU_iter_40.pth').touch()
    assert config_from(own, '--work-dir', 'run').work_dir == 'run'
    torch.save({}, f'run/{name}')
    with pytest.raises(SystemExit, match=rf'run/{name} is there already.*--resume goes on.*--work-dir'):
        config_from(own, '--work-dir', 'run')
    assert config_from(own, '--work-dir', 'run', '--resume').load_from == f'run/{name}'


def test_options_reach_the_model_and_the_optimizer(config_from, shapes, monkeypatch):
    monkeypatch.setitem(TOOL['config_from'].__globals__, 'get_device', lambda: 'cuda')
    cfg = config_from(SEGMENTER, '--data-root', shapes, '--amp', '--with-cp', '--auto-scale-lr')
    assert cfg.model.backbone.with_cp
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert cfg.auto_scale_lr.enable


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--with-cp'], '--with-cp: .*own.py has no model.backbone'),
        (['--accumulate'], '--accumulate: .*own.py has no auto_scale_lr.base_batch_size'),
        (['--auto-scale-lr'], '--auto-scale-lr: .*own.py has no auto_scale_lr.base_batch_size'),
        (['--no-exact-resume', '--skip-bad-samples'], 'leave out --no-exact-resume'),
        pytest.param(
            ['--amp'],
            '--amp needs a GPU',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='it is an error on CPU only'),
        ),
    ],
)
def test_what_does_not_fit_is_named(config_from, own, arguments, message):
    with pytest.raises(ValueError, match=message):
        config_from(own, *arguments)
