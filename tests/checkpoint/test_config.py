"""The config in a checkpoint: that of the run, and nothing in it is run."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmsgformer.checkpoint.config import stored_config
from mmsgformer.checkpoint.files import CheckpointError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_comes_back_as_it_was(path):
    cfg = Config.fromfile(path)
    found = stored_config({'meta': {'cfg': cfg.pretty_text}}, 'a.pth')
    expected = cfg.to_dict()
    assert expected.pop('custom_imports')
    assert found.to_dict() == expected


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('a = dict(b=-1.5, c=None)', {'a': {'b': -1.5, 'c': None}}),
        ("a = dict({'x.y': 1, 2: ()})", {'a': {'x.y': 1, 2: ()}}),
        ("a = {'type': 'mmdet.ResNet'}", {'a': {'type': 'mmdet.ResNet'}}),
        ("a = [dict(type='torchvision/Resize'), (1,)]", {'a': [{'type': 'torchvision/Resize'}, (1,)]}),
        ("a = dict(mode='os.system')", {'a': {'mode': 'os.system'}}),
    ],
)
def test_plain_values_are_read(text, value):
    assert stored_config({'meta': {'cfg': text}}, 'a.pth').to_dict() == value


@pytest.mark.parametrize(
    'text',
    [
        'import os',
        'a = print(1)',
        'a = dict.fromkeys([1])',
        'a = [x for x in (1, 2)]',
        'a.b = 1',
        'a = f"{1}"',
        'a = dict(1, 2)',
        "a = dict(type='os.system', command='true')",
        "a = [dict(b=({'type': 'subprocess.Popen'},))]",
        "a = dict(type='mmengine.utils.path.os.system')",
        "a = dict(type='mmcv.imwrite')",
        'a = (',
    ],
)
def test_anything_else_is_refused(text):
    """MMEngine would import a type by its dotted name and call it."""
    with pytest.raises(CheckpointError, match=r'a\.pth is not used.*give the config file'):
        stored_config({'meta': {'cfg': text}}, 'a.pth')


@pytest.mark.parametrize('content', [{}, {'meta': None}, {'meta': {}}, {'meta': {'cfg': {}}}])
def test_a_checkpoint_without_one_says_so(content):
    with pytest.raises(CheckpointError, match=r'a\.pth has no config in it'):
        stored_config(content, 'a.pth')
