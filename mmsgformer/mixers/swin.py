"""Swin's windows, which shift by half their size in every second block (ICCV 2021, arXiv 2103.14030)."""

import torch
from torch import Tensor, nn

from mmsgformer.mixers.groups import GroupMixer, offset_index
from mmsgformer.mixers.registry import MIXERS

# What the official code adds to a logit where two tokens are not neighbours in the map.
FOREIGN = -100.0


@MIXERS.register_module(name='swin')
class ShiftedWindowAttention(GroupMixer):
    """Attention within windows with a learned bias by relative position; odd blocks shift the windows.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        stage: Of no effect.
        block: Windows shift where it is odd.
        window_size: Side M of a window.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the projection's output.
        mask_padding: Hide padded tokens. The official code for dense prediction does not.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stage: int,
        block: int,
        window_size: int = 7,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        mask_padding: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, window_size, attn_drop, proj_drop, mask_padding)
        self.shift = window_size // 2 if block % 2 else 0
        self.bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer('index', offset_index(window_size).T, persistent=False)  # query - key

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        bias = self.bias_table[self.index].permute(2, 0, 1)[None]  # (1, heads, M * M, M * M)
        if self.shift:
            bias = bias + self._foreign(*x.shape[1:3], like=bias)
        return self.attend(x, bias, shift=self.shift), significance

    def _foreign(self, height: int, width: int, like: Tensor) -> Tensor:
        """-100 where rolling brought tokens from opposite sides into a window, (windows, 1, M * M, M * M)."""

        def part(length: int) -> Tensor:
            """In which window row, and on which side of the seam, each padded coordinate is, (rows, M)."""
            places = torch.arange(-(-length // self.size) * self.size, device=like.device)
            return (places >= len(places) - self.shift).view(-1, self.size)

        rows, columns = part(height), part(width)
        sides = rows[:, None, :, None] * 2 + columns[None, :, None, :]  # (rows, columns, M, M)
        sides = sides.reshape(-1, self.size**2)
        return like.new_zeros(()).masked_fill(sides[:, None] != sides[:, :, None], FOREIGN)[:, None]


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of microsoft/Swin-Transformer's `WindowAttention`, or of its block's `attn`."""
    named = {key.removeprefix('attn.'): value for key, value in state_dict.items()}
    table = named.pop('relative_position_bias_table')
    named.pop('relative_position_index', None)
    return {'bias_table': table, **named}
