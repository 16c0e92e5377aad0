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

    def bias(self, height: int, width: int) -> Tensor:
        """By relative position; -100 where the shift brought tokens from opposite sides together."""
        index = offset_index(self.size, self.bias_table.device).T  # query - key
        bias = self.bias_table[index].permute(2, 0, 1)[None]  # (1, heads, M * M, M * M)
        if not self.shift:
            return bias

        def wrapped(length: int) -> Tensor:
            """Whether each place came from the other side, (windows of this axis, M)."""
            return (torch.arange(length, device=bias.device) >= length - self.shift).view(-1, self.size)

        rows, columns = wrapped(height), wrapped(width)
        side = 2 * rows[:, None, :, None] + columns[None, :, None, :]  # (windows, windows, M, M)
        side = side.reshape(-1, 1, self.size**2)
        return bias + bias.new_zeros(()).masked_fill(side[..., None] != side[:, :, None], FOREIGN)


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of microsoft/Swin-Transformer's `WindowAttention`, or of its block's `attn`."""
    named = {key.removeprefix('attn.'): value for key, value in state_dict.items()}
    table = named.pop('relative_position_bias_table')
    named.pop('relative_position_index', None)
    return {'bias_table': table, **named}
