"""The official parameter names and ours: complete, pure, and the same values both ways."""

import json
from pathlib import Path

import pytest
import torch

from mmsgformer import SGFormer
from mmsgformer.checkpoint.names import official_to_ours, ours_to_official

GOLDEN = Path(__file__).parents[1] / 'golden'
ARCHS = ['tiny', 's', 'm', 'b']


def official_shapes(arch: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / f'official_keys_{arch}.json').read_text())


@pytest.mark.parametrize('arch', ARCHS)
def test_official_names_cover_the_backbone_exactly(arch, tiny):
    official = {name: torch.empty(shape) for name, shape in official_shapes(arch).items()}
    ours = SGFormer(tiny if arch == 'tiny' else arch).state_dict()
    mapped = official_to_ours(official)
    assert {k: v.shape for k, v in mapped.items()} == {k: v.shape for k, v in ours.items()}


@pytest.mark.parametrize('arch', ARCHS)
def test_there_and_back_is_bit_identical(arch):
    generator = torch.Generator().manual_seed(0)
    official = {
        name: torch.randn(shape, generator=generator)
        for name, shape in official_shapes(arch).items()
        if not name.startswith('head.')
    }
    ours = official_to_ours(official)
    back = ours_to_official(ours)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], value) for name, value in official.items())
    again = official_to_ours(back)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], value) for name, value in ours.items())


def test_mapping_is_pure_and_keeps_every_value(draw_golden):
    official = {name: draw_golden(name, shape) for name, shape in official_shapes('tiny').items()}
    before = {name: value.clone() for name, value in official.items()}
    mapped = official_to_ours(official)
    assert all(torch.equal(before[name], value) for name, value in official.items())
    values = torch.cat([v.flatten() for k, v in official.items() if not k.startswith('head.')])
    assert torch.equal(torch.cat([v.flatten() for v in mapped.values()]).sort().values, values.sort().values)


@pytest.mark.parametrize(
    'name', ['block1.0.attn.q2.bias', 'block1.1.attn.kv2.weight', 'block4.0.attn.q.weight']
)
@pytest.mark.parametrize('fault', ['missing', 'too short', 'no dimensions'])
def test_parts_of_a_stacked_layer_that_do_not_fit_are_an_error(name, fault):
    official = {key: torch.zeros(shape) for key, shape in official_shapes('tiny').items()}
    part = official.pop(name)
    if fault != 'missing':
        official[name] = part[:-1] if fault == 'too short' else torch.tensor(0.0)
    stage, block = int(name[5]) - 1, name[7]
    with pytest.raises(ValueError, match=rf'stages\.{stage}\.blocks\.{block}\.attn'):
        official_to_ours(official)


def test_what_is_no_parameter_of_ours_has_no_official_name(tiny):
    with pytest.raises(KeyError, match=r'neck\.conv\.weight'):
        ours_to_official({**SGFormer(tiny).state_dict(), 'neck.conv.weight': torch.zeros(1)})
