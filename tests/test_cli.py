"""What the tools share: how they are called."""

from pathlib import Path

import pytest

from mmsgformer.cli import predictor_parser

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
