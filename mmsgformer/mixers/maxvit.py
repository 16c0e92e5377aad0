"""MaxViT's two attentions in turn: in windows, and in grids spread over the map (arXiv 2204.01697)."""

import torch
from torch import Tensor, nn

from mmsgformer.mixers.groups import GroupMixer, offset_index
from mmsgformer.mixers.registry import MIXERS


def to_grid(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) with H and W multiples of `size` -> (B * grids, size * size, C).

    A grid has the tokens of the rows i, i + H / size, i + 2 H / size, ... and of such columns.
    """
    B, H, W, C = x.shape
    x = x.reshape(B, size, H // size, size, W // size, C).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, size * size, C)


def from_grid(grids: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `to_grid`: (B * grids, size * size, C) -> (B, height, width, C)."""
    x = grids.unflatten(1, (size, size)).unflatten(0, (-1, height // size, width // size))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


@MIXERS.register_module(name='maxvit')
class BlockGridAttention(GroupMixer):
    """Even blocks attend within windows, odd ones within grids; a learned bias by relative position.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        stage: Of no effect.
        block: Windows where it is even, grids where it is odd.
        window_size: Side of a window, and of a grid.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the projection's output.
        mask_padding: Hide padded tokens. The official code refuses sizes that need padding.
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
        if block % 2:
            self.to_groups, self.from_groups = to_grid, from_grid
        self.bias_table = nn.Parameter(torch.empty(num_heads, 2 * window_size - 1, 2 * window_size - 1))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def bias(self, height: int, width: int) -> Tensor:
        """By relative position, (1, heads, n, n)."""
        index = offset_index(self.size, self.bias_table.device)  # key - query
        return self.bias_table.flatten(1)[:, index][None]


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of timm's `AttentionCl` with `head_first=False`, or of its block's `attn`."""
    named = {key.removeprefix('attn.'): value for key, value in state_dict.items()}
    named['bias_table'] = named.pop('rel_pos.relative_position_bias_table')
    return {key: value for key, value in named.items() if not key.startswith('rel_pos.')}
