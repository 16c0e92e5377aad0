"""What the tools share: how they are called."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from mmsgformer.cli import base_parser, entries_checked, load_config, predictor_parser, read_config

OUT = ['--out-dir', 'out']


@pytest.fixture
def parser():
    """That of tools/infer.py."""
    parser = predictor_parser('A tool.')
    parser.add_argument('input')
    return parser


@pytest.mark.parametrize(
    'argv',
    [
        ['a.py', 'b.pth', 'photo', *OUT],
        [*OUT, 'a.py', 'b.pth', 'photo'],
        ['a.py', 'b.pth', *OUT, 'photo'],
        ['photo', '--config', 'a.py', '--checkpoint', 'b.pth', *OUT],
        ['--config', 'a.py', '--checkpoint', 'b.pth', *OUT, 'photo'],
        ['--config=a.py', 'photo', *OUT, '--checkpoint=b.pth'],
    ],
)
def test_config_and_checkpoint_are_positional_as_in_the_frameworks(parser, argv):
    """Or options, as they were at first."""
    expected = dict(config='a.py', checkpoint='b.pth', input='photo', out_dir=Path('out'), device=None)
    assert vars(parser.parse_args(argv)) == expected


def test_a_checkpoint_alone_brings_its_config(parser):
    args = parser.parse_args(['photo', '--checkpoint', 'b.pth', *OUT])
    assert (args.config, args.checkpoint, args.input) == (None, 'b.pth', 'photo')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--config', 'a.py', 'b.pth', 'photo', *OUT], 'or both as options'),
        (['--config', 'a.py', '--checkpoint', 'b.pth', 'c.pth', 'photo', *OUT], 'unrecognized arguments'),
        (['photo', *OUT], 'required: checkpoint, input'),
        (['a.py', 'b.pth', 'photo', *OUT, '--device', 'gpu'], "--device: 'gpu' cannot be used"),
        (['a.py', 'b.pth', 'photo', *OUT, '--device', 'cuda:99'], "--device: 'cuda:99' cannot be used"),
    ],
)
def test_what_is_missing_or_too_much_is_named(parser, argv, message, capsys):
    with pytest.raises(SystemExit, match='2'):
        parser.parse_args(argv)
    assert message in capsys.readouterr().err


def test_the_help_shows_one_way(parser):
    assert 'config checkpoint input' in parser.format_help()
    assert '--config' not in parser.format_help()


def test_paths_are_expanded_where_they_enter(parser, monkeypatch):
    """The home folder and variables, which a shell leaves as they are after an equals sign."""
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setenv('DATA', '/data')
    args = base_parser('').parse_args(['~/a.py', '--data-root=$DATA/coco', '--work-dir=~/run'])
    assert (args.config, args.data_root, args.work_dir) == ('/home/me/a.py', '/data/coco', '/home/me/run')
    args = parser.parse_args(['--config=~/a.py', '--checkpoint=$DATA/b.pth', '--out-dir=~/out', 'photo'])
    assert (args.config, args.checkpoint) == ('/home/me/a.py', '/data/b.pth')
    assert args.out_dir == Path('/home/me/out')


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('train_cfg.max_epochs', "'train_cfg.max_epochs' is not of the form key=value"),
        ('=3', "'=3' is not of the form key=value"),
        ('model.stages=[1,2', 'Imbalanced brackets'),
        ('nothing.lr=1', 'nothing={.*} in child config'),
        ('number.lr=1', 'number={.*} in child config'),
        ('items.2.lr=1', 'Index 2 exceeds the length'),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(option, message, tmp_path, capsys):
    (tmp_path / 'a.py').write_text('nothing = None\nnumber = 1\nitems = [dict()]\nmodel = dict()\n')
    with pytest.raises(SystemExit) as end:
        load_config(base_parser('').parse_args([str(tmp_path / 'a.py'), '--cfg-options', option]), splits=())
    *_, line = [*capsys.readouterr().err.splitlines(), *([] if end.value.code == 2 else [end.value.code])]
    assert '--cfg-options: ' in line
    assert re.search(message, line)


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_no_workers_need_no_other_setting(split, tmp_path):
    """torch refuses persistent_workers and prefetch_factor then; with workers both stay."""
    loader = 'dict(num_workers=2, persistent_workers=True, prefetch_factor=4, dataset=dict())'
    (tmp_path / 'a.py').write_text(f'{split}_dataloader = {loader}\n')
    for workers, expected in ((0, (False, None)), (1, (True, 4))):
        cfg = read_config(tmp_path / 'a.py', (), options={f'{split}_dataloader.num_workers': workers})
        loader = cfg[f'{split}_dataloader']
        assert (loader.persistent_workers, loader.get('prefetch_factor')) == expected


def test_a_missing_part_of_validation_is_one_line():
    """As MMEngine says it; other errors are left as they are."""
    validation = dict(val_dataloader=None, val_cfg=dict(), val_evaluator=dict(type='CocoMetric'))
    message = r'error: val_dataloader, val_cfg, .*to go without, all to None'
    with pytest.raises(SystemExit, match=message), entries_checked():
        Runner(torch.nn.Linear(1, 1), 'unused', **validation)
    with pytest.raises(ValueError, match='another'), entries_checked():
        raise ValueError('another')
