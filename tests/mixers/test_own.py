"""A mixer of one's own, as docs/mixers.md has it, word for word."""

import re
from pathlib import Path

import pytest
import torch

from mmsgformer import SGFormer
from mmsgformer.mixers import MIXERS

PAGE = Path(__file__).parents[2] / 'docs' / 'mixers.md'


@pytest.fixture
def own_mixer():
    """The page's class, registered for the time of a test."""
    (code,) = re.findall(r'```python\n# my_mixer.py.*?\n(.*?)```', PAGE.read_text(), flags=re.S)
    exec(compile(code, str(PAGE), 'exec'), {'__name__': 'my_mixer'})
    yield
    del MIXERS.module_dict['Pooling']


def test_a_mixer_of_ones_own_trains(own_mixer):
    """Of any size, and its argument arrives."""
    torch.manual_seed(0)
    model = SGFormer('t', mixer=dict(type='Pooling', size=5), drop_path_rate=0.0)
    assert model.stages[0].blocks[0].attn.pool.kernel_size == 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    image, losses = torch.randn(2, 3, 70, 101), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = sum((out - 1).square().mean() for out in model(image))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_the_page_has_every_mixer_and_its_picture():
    text = PAGE.read_text()
    for name in MIXERS.module_dict:
        assert f'\n### {name}\n' in text
        assert f'| `{name}` |' in text
        assert f'(images/mixers/{name}.png)' in text
        assert (PAGE.parent / 'images' / 'mixers' / f'{name}.png').is_file()
