"""Agent attention: a few pooled queries gather from all tokens, and all tokens read from those few.

Source: Agent Attention (ECCV 2024, arXiv 2312.08874) and its code, LeapLabTHU/Agent-Attention.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsgformer.attention import conv_channels_last, join_heads, split_heads
from mmsgformer.mixers.base import QKVMixer
from mmsgformer.mixers.registry import MIXERS
from mmsgformer.ops.autocast import without_autocast

AGENTS = (9, 16, 49, 49)
WINDOWS = (56, 28, 14, 7)
COARSE = 7  # side of the coarse map that is a part of every bias


@MIXERS.register_module(name='agent')
class AgentAttention(QKVMixer):
    """Softmax attention twice, through a grid of agents, plus a depthwise 3x3 convolution of the values.

    Args:
        agent_num: Agents n that the biases are learnt for, a square; by default 9, 16, 49, 49 in stages 1-4.
        window: Side of the map that they are learnt for, by default 56, 28, 14, 7; resized to any other.
        agent_shape: Side of the grid of agents, by default the root of n. The authors take more for dense
            prediction (9, 12, 14, 7 on ADE20K), which needs no further weights.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stage: int = 0,
        block: int = 0,
        agent_num: int | None = None,
        window: int | None = None,
        agent_shape: int | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        n = AGENTS[stage] if agent_num is None else agent_num
        R = WINDOWS[stage] if window is None else window
        self.learnt_shape = math.isqrt(max(n, 0))
        self.agent_shape = self.learnt_shape if agent_shape is None else agent_shape
        if self.learnt_shape**2 != n or min(n, R, self.agent_shape) < 1:
            raise ValueError(
                'agent needs a square number of agents and sizes >= 1, '
                f'got agent_num {n}, window {R}, agent_shape {self.agent_shape}'
            )
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        # Of agents to tokens, then of tokens to agents: a coarse map, a column and a row.
        self.an_bias, self.na_bias = (bias(num_heads, n, COARSE, COARSE) for _ in range(2))
        self.ah_bias, self.aw_bias = bias(1, num_heads, n, R, 1), bias(1, num_heads, n, 1, R)
        self.ha_bias, self.wa_bias = bias(1, num_heads, R, 1, n), bias(1, num_heads, 1, R, n)

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, H, W, C)
        agents = resample(q.movedim(-1, 1), (self.agent_shape,) * 2, F.adaptive_avg_pool1d).flatten(2).mT
        flat = (agents, *(t.flatten(1, 2) for t in (q, k, v)))
        agents, tokens, keys, values = (split_heads(t, self.num_heads) for t in flat)
        columns, rows = (t.movedim(-1, 2) for t in (self.ha_bias, self.wa_bias))
        with without_autocast(x):
            to_tokens = self._bias(self.an_bias, self.ah_bias, self.aw_bias, x.shape[1:3])
            to_agents = self._bias(self.na_bias, columns, rows, x.shape[1:3]).mT
        p = self.dropout_p
        gathered = F.scaled_dot_product_attention(agents, keys, values, to_tokens.to(q.dtype), p)
        out = F.scaled_dot_product_attention(tokens, agents, gathered, to_agents.to(q.dtype), p)
        return self.project(join_heads(out).view_as(x) + conv_channels_last(self.dwc, v)), significance

    def _bias(self, coarse: Tensor, columns: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """(h, n, 7, 7), (1, h, n, R, 1) and (1, h, n, 1, R), resized and added: (h, agents, H * W)."""
        parts = (coarse, size), (columns[0], (size[0], 1)), (rows[0], (1, size[1]))
        bias = sum(resample(maps, to, linear) for maps, to in parts).flatten(2)
        if self.agent_shape != self.learnt_shape:
            grids = bias.mT.unflatten(2, (self.learnt_shape,) * 2)
            bias = resample(grids, (self.agent_shape,) * 2, linear).flatten(2).mT
        return bias


def bias(*shape: int) -> nn.Parameter:
    """A new bias of attention."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def linear(lines: Tensor, size: int) -> Tensor:
    """Interpolated lines, (1, n, L) -> (1, n, size)."""
    return F.interpolate(lines, size=size, mode='linear', align_corners=False)


def resample(maps: Tensor, size: tuple[int, int], along: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Maps (m, n, H, W) -> (m, n, *size), by what `along` does to lines (1, n, L) of each side.

    As two products: on a GPU the gradients of torch's pooling and interpolation are not deterministic.
    """

    def matrix(old: int, new: int) -> Tensor:
        lines = torch.eye(old, dtype=torch.promote_types(maps.dtype, torch.float32), device=maps.device)
        return along(lines[None], new)[0].to(maps.dtype)  # (old, new)

    rows, columns = map(matrix, maps.shape[2:], size)
    return rows.mT @ (maps @ columns)


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official AgentAttention's weights: their names are ours."""
    return dict(state_dict)
