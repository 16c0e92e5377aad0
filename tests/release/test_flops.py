"""The MAC counter: published sizes, fused attention, and what it leaves out."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmsgformer.release.flops import count_costs
from mmsgformer.release.model_index import read_models

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ('arch', 'parameters', 'gmacs'),
    [('s', 22_545_981, 4.818), ('m', 38_689_316, 7.470), ('b', 77_950_293, 15.610)],
)
def test_the_classifiers_cost_what_the_released_ones_do(arch, parameters, gmacs):
    total, *modules = count_costs(
        Config.fromfile(ROOT / f'configs/imagenet/sgformer-{arch}_8xb128_in1k.py'), (224, 224)
    )
    (model,) = (m for m in read_models(ROOT) if m.name == f'sgformer-{arch}_8xb128_in1k')
    assert total.parameters == model.parameters == parameters
    assert total.macs == model.macs
    assert round(total.macs / 1e9, 3) == gmacs
    parts = [cost for cost in modules if '.' not in cost.name and cost.name != 'data_preprocessor']
    assert sum(cost.macs for cost in parts) == total.macs
