"""Agreement with the official code: outputs, significance maps, logits and the gradient at the image.

tests/golden holds what the official code gave in float64 for weights drawn by formula; of the large arrays
every 11th entry (flattened) is kept.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from tolerances import OFFICIAL, assert_official
from torch import Tensor

from mmsgformer import SGFormer
from mmsgformer.attention import HybridScaleAttention
from mmsgformer.checkpoint.names import official_to_ours

GOLDEN = Path(__file__).parent / 'golden'


def official_weights(name: str, draw_golden) -> dict[str, Tensor]:
    keys = json.loads((GOLDEN / f'official_keys_{name}.json').read_text())
    return {key: draw_golden(key, shape) for key, shape in keys.items()}


# On a CPU 'auto' is 'chunked'. 'triton', slow when interpreted, is held against 'reference' elsewhere.
CASES = [('tiny', 'reference'), ('tiny', 'chunked'), ('s', 'auto')]


@pytest.fixture(params=CASES, ids='-'.join)
def case(request, draw_golden) -> tuple[SGFormer, dict[str, Tensor], dict[str, np.ndarray]]:
    """The model with the formula's weights, those weights by official name, and the golden arrays."""
    name, backend = request.param
    weights = official_weights(name, draw_golden)
    model = SGFormer(name, attn_backend=backend).double().eval()
    model.load_state_dict(official_to_ours(weights))
    return model, weights, dict(np.load(GOLDEN / f'official_{name}_224.npz'))


def test_agrees_with_the_official_code(case, draw_golden):
    model, weights, golden = case
    significance = {}
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage.blocks):
            if isinstance(block.attn, HybridScaleAttention):
                name = f'significance_stage{i}_block{j}'
                block.attn.register_forward_hook(
                    lambda _, __, output, name=name: significance.update({name: output[1]})
                )
    batch = len(golden['logits'])
    image = draw_golden('image224x224', (batch, 3, 224, 224)).requires_grad_()
    stages = model(image)
    loss = sum((stage * draw_golden(f'probe{i}', stage.shape)).mean() for i, stage in enumerate(stages))
    loss.backward()

    for i, stage in enumerate(stages):
        assert_official(stage, golden[f'stage{i}'])
    assert sorted(significance) == sorted(name for name in golden if name.startswith('significance'))
    for name, values in significance.items():
        assert_official(values, golden[name])
    assert_official(
        stages[3].mean((2, 3)) @ weights['head.weight'].T + weights['head.bias'], golden['logits']
    )
    assert_official(loss, golden['loss'])
    assert_official(image.grad, golden['image_grad'], OFFICIAL * np.abs(golden['image_grad']).max())
