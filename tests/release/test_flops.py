"""The MAC counter: against the released code's numbers, counts by hand, and itself on two devices."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from older_torch import needs_torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_hook

from mmsgformer import SGFormer
from mmsgformer.attention import SelfGuidedAttention
from mmsgformer.compat import COUNTS_BY_MODULE
from mmsgformer.release import flops
from mmsgformer.release.flops import count_costs, count_macs
from mmsgformer.release.model_index import read_models

ROOT = Path(__file__).parents[2]


@pytest.fixture
def uncounted():
    """What fvcore counts besides: norms as five per entry, pooling as one, and a second token merge."""
    entries = Counter()

    def count(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            entries['norms'] += 5 * output.numel()
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            entries['pooling'] += inputs[0].numel()
        elif isinstance(module, SelfGuidedAttention):
            entries['second merge'] += inputs[0].numel()

    hook = register_module_forward_hook(count)
    yield entries
    hook.remove()


@pytest.mark.parametrize(
    ('arch', 'parameters', 'released'),
    [('s', 22_545_981, 4_817_946_176), ('m', 38_689_316, 7_469_637_824), ('b', 77_950_293, 15_609_822_720)],
)
def test_the_classifiers_cost_what_the_released_ones_do(arch, parameters, released, uncounted):
    """To the last MAC: 4.818, 7.470 and 15.610 G, as fvcore counts the released code, which merges twice."""
    total, *modules = count_costs(
        Config.fromfile(ROOT / f'configs/imagenet/sgformer-{arch}_8xb128_in1k.py'), (224, 224)
    )
    (model,) = (m for m in read_models(ROOT) if m.name == f'sgformer-{arch}_8xb128_in1k')
    assert total.parameters == model.parameters == parameters
    assert total.macs == model.macs == released - uncounted.total()
    parts = [cost for cost in modules if '.' not in cost.name]
    assert sum(cost.macs for cost in parts) == (total.macs if COUNTS_BY_MODULE else 0)


class DependsOnNumbers(nn.Sequential):
    """Which shapes alone cannot run."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum().item() else x


@needs_torch(2, 4, 'count of operations by module')
def test_shapes_alone_cost_what_numbers_do(tiny):
    model, image, kinds = SGFormer(tiny).eval(), torch.rand(1, 3, 70, 133), []
    model.register_forward_hook(lambda _, inputs, maps: kinds.append(type(maps[0])))
    macs = count_macs(model, image)
    assert kinds == [FakeTensor]
    assert macs['stages.0.blocks.0.ffn.fc1'] == 18 * 34 * 32 * 128
    assert count_macs(DependsOnNumbers(model), image) == {
        '': macs[''],
        **{f'0.{n}'.rstrip('.'): m for n, m in macs.items()},
    }


@needs_torch(2, 4, 'count of operations by module')
def test_a_detector_costs_what_is_counted_by_hand(monkeypatch, tiny):
    """A cascade, whose proposals depend on numbers: 20 boxes and 10 masks in three heads."""
    monkeypatch.setattr(flops, 'NUM_MASKS', 10)
    cfg = Config.fromfile(ROOT / 'configs/coco/cascade-mask-rcnn_sgformer-s_fpn_ms-3x_coco.py')
    cfg.model.backbone.arch = tiny
    cfg.model.neck.in_channels = list(tiny['embed_dims'])
    cfg.model.test_cfg.rpn.max_per_img = 20
    costs = {cost.name: cost for cost in count_costs(cfg, (96, 128))}
    sizes = [24 * 32, 12 * 16, 6 * 8, 3 * 4, 2 * 2]  # the last level is pooled
    lateral = sum(size * 256 * dim for size, dim in zip(sizes, tiny['embed_dims'], strict=False))
    assert costs['neck'].macs == lateral + sum(sizes[:4]) * 9 * 256 * 256
    assert costs['rpn_head'].macs == sum(sizes) * 256 * (9 * 256 + 3 + 3 * 4)
    box = 4 * 49 * 9 * 256 * 256 + 49 * 256 * 1024 + 1024 * (81 + 4 * 80)
    mask = 4 * 196 * 9 * 256 * 256 + 4 * 196 * 256 * 256 + 784 * 256 * 80
    assert costs['roi_head.bbox_head'].macs == 3 * 20 * box
    assert costs['roi_head.mask_head'].macs == 3 * 10 * mask
    assert costs[''].macs == sum(costs[name].macs for name in ('backbone', 'neck', 'rpn_head', 'roi_head'))
    assert costs['rpn_head'].parameters == 256 * (9 * 256 + 1) + (256 + 1) * (3 + 3 * 4)
