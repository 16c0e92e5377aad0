"""docs/mixers.md: its example of a custom mixer trains as it stands there, and its costs are the code's."""

import re
import sys
from pathlib import Path

import pytest
import torch

from mmsgformer import SGFormer
from mmsgformer.checkpoint.files import read_checkpoint
from mmsgformer.mixers import MIXERS
from mmsgformer.release.flops import count_macs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'mixers.md').read_text()


def block(start: str) -> str:
    """The code block of the page that follows this text."""
    return re.search(r'```python\n(.*?)```', PAGE[PAGE.index(start) :], re.DOTALL)[1]


def test_a_mixer_of_ones_own_trains(shapes, tmp_path, run_tool, monkeypatch):
    """By the page's words alone; only the checkout lies elsewhere."""
    (tmp_path / 'my_mixer.py').write_text(block('`my_mixer.py`'))
    config = block('`my_config.py`').replace("'configs/", f"'{ROOT}/configs/")
    (tmp_path / 'my_config.py').write_text(config)
    monkeypatch.syspath_prepend(tmp_path)
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=8', 'train_dataloader.num_workers=0']
    options += ['val_dataloader.num_workers=0', 'default_hooks.logger.interval=1']
    try:
        result = run_tool(
            *('train.py', tmp_path / 'my_config.py', '--data-root', shapes, '--work-dir', tmp_path / 'run'),
            *('--cfg-options', *options),
        )
        assert result.returncode == 0, result.stderr
        weights = read_checkpoint(tmp_path / 'run' / 'epoch_1.pth')['state_dict']
        assert not any('.attn.' in name for name in weights)  # pooling has none
        assert MIXERS.module_dict['Pooling'].__module__ == 'my_mixer'
    finally:
        MIXERS.module_dict.pop('Pooling', None)
        sys.modules.pop('my_mixer', None)


def test_every_mixer_has_a_paragraph_and_a_picture():
    for name in MIXERS.module_dict:
        assert f'### {name}\n\n![{name}](images/mixers/{name}.png)' in PAGE
        assert (ROOT / 'docs' / 'images' / 'mixers' / f'{name}.png').is_file()


@pytest.mark.parametrize('name', sorted(MIXERS.module_dict))
@pytest.mark.parametrize('arch', ['t', pytest.param('s', marks=pytest.mark.slow)])
def test_the_costs_are_the_codes(name, arch):
    table = PAGE[PAGE.index('| mixer | cost beside') : PAGE.index('| mixer, ms |')]
    (row,) = re.findall(rf'^\| `{name}` \|.*$', table, re.MULTILINE)
    _, parameters, *macs = row.strip('| ').split(' | ')[1:]
    backbone = SGFormer(arch, mixer=name).eval()
    counted = sum(parameter.numel() for parameter in backbone.parameters())
    i = 'ts'.index(arch)
    assert parameters.split(' / ')[i] == f'{counted / 1e6:.2f}'
    counted = [count_macs(backbone, torch.zeros(1, 3, size, size))[''] / 1e9 for size in (224, 896)]
    assert macs[i] == ' / '.join(f'{number:.2f}' for number in counted)
