"""Agent attention: the official module's numbers, and torch's own pooling and interpolation elsewhere."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mixers.golden import check
from mixers.oracle import check_formula
from torch import Tensor

from mmsgformer import mixers
from mmsgformer.mixers.agent import AgentAttention


@pytest.mark.parametrize(
    ('case', 'arguments'),
    [
        ('agent', {'stage': 0, 'agent_shape': 7}),
        ('agent_same', {'stage': 2}),
        ('agent_same', {'stage': 0, 'agent_num': 49, 'window': 14}),
    ],
)
def test_agrees_with_the_official_module(case, arguments):
    check(case, mixers.build('agent', 16, 2, **arguments), partial(mixers.from_official, 'agent'))


def by_the_formula(mixer: AgentAttention, x: Tensor) -> Tensor:
    """Whole softmax matrices, torch's pooling and interpolation."""
    batch, height, width, dim = x.shape
    side, learnt, heads = mixer.agent_shape, mixer.learnt_shape, mixer.num_heads

    def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(maps, size, mode='bilinear', align_corners=False)

    def bias(coarse: Tensor, lines: Tensor) -> Tensor:  # (h, n, 7, 7), (h, n, R, R) -> (h, a * a, H * W)
        maps = (resized(coarse, (height, width)) + resized(lines, (height, width))).flatten(2)
        grids = maps.transpose(1, 2).reshape(heads, height * width, learnt, learnt)
        return resized(grids, (side, side)).flatten(2).transpose(1, 2)

    def split(maps: Tensor) -> Tensor:  # (B, C, H, W) -> (B, h, H * W, d)
        return maps.reshape(batch, heads, dim // heads, -1).transpose(2, 3)

    q, k, v = mixer.qkv(x).permute(0, 3, 1, 2).chunk(3, dim=1)
    agents = split(F.adaptive_avg_pool2d(q, side))
    to_tokens = bias(mixer.an_bias, (mixer.ah_bias + mixer.aw_bias)[0])
    to_agents = bias(mixer.na_bias, (mixer.ha_bias + mixer.wa_bias)[0].permute(0, 3, 1, 2))
    scale = (dim // heads) ** -0.5
    gathered = (agents @ split(k).mT * scale + to_tokens).softmax(-1) @ split(v)
    out = (split(q) @ agents.mT * scale + to_agents.mT).softmax(-1) @ gathered
    out = out.transpose(2, 3).reshape(batch, dim, height, width) + mixer.dwc(v)
    return mixer.proj(out.permute(0, 2, 3, 1))


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 23), (56, 56), (13, 50)])
@pytest.mark.parametrize('agent_shape', [None, 2, 12])
def test_is_what_its_formula_says(size, agent_shape):
    """At any size and for any grid: resizing as products of matrices is torch's interpolation."""
    torch.manual_seed(0)
    mixer = mixers.build('agent', 16, 2, agent_shape=agent_shape).double()
    for parameter in mixer.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    check_formula(mixer, by_the_formula, torch.randn(2, *size, 16, dtype=torch.float64))


@pytest.mark.parametrize(
    'arguments', [{'agent_num': 12}, {'agent_num': 0}, {'window': 0}, {'agent_shape': 0}]
)
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match='agent needs a square number of agents and sizes >= 1, got'):
        mixers.build('agent', 16, 2, **arguments)
