"""The mapping from official parameter names to ours."""

import json
from pathlib import Path

import pytest
import torch

from mmsgformer import SGFormer
from mmsgformer.checkpoint import official_to_ours

GOLDEN = Path(__file__).parent / 'golden'


@pytest.mark.parametrize('arch', ['tiny', 's', 'm', 'b'])
def test_official_names_cover_the_backbone_exactly(arch, tiny):
    keys = json.loads((GOLDEN / f'official_keys_{arch}.json').read_text())
    official = {key: torch.empty(shape) for key, shape in keys.items()}
    ours = SGFormer(tiny if arch == 'tiny' else arch).state_dict()
    mapped = official_to_ours(official)
    assert {k: v.shape for k, v in mapped.items()} == {k: v.shape for k, v in ours.items()}


def test_mapping_is_pure_and_keeps_every_value(tiny, draw_golden):
    keys = json.loads((GOLDEN / 'official_keys_tiny.json').read_text())
    official = {key: draw_golden(key, shape) for key, shape in keys.items()}
    before = {key: value.clone() for key, value in official.items()}
    mapped = official_to_ours(official)
    assert all(torch.equal(before[key], value) for key, value in official.items())
    values = torch.cat([v.flatten() for k, v in official.items() if not k.startswith('head.')])
    assert torch.equal(torch.cat([v.flatten() for v in mapped.values()]).sort().values, values.sort().values)


@pytest.mark.parametrize(
    'missing', ['block1.0.attn.q2.bias', 'block1.1.attn.kv2.weight', 'block4.0.attn.q.weight']
)
def test_a_missing_part_of_a_stacked_layer_is_an_error(missing):
    keys = json.loads((GOLDEN / 'official_keys_tiny.json').read_text())
    official = {key: torch.zeros(shape) for key, shape in keys.items() if key != missing}
    stage, block = int(missing[5]) - 1, missing[7]
    with pytest.raises(KeyError, match=rf'stages\.{stage}\.blocks\.{block}\.attn'):
        official_to_ours(official)
