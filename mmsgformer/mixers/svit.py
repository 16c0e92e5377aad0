"""SViT's super token attention: soft clusters of tokens attend to each other, and tokens read from them.

Source: Super Token Sampling ViT (CVPR 2023, arXiv 2211.11167) and its code, hhb072/STViT.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsgformer.attention import join_heads, multiples
from mmsgformer.mixers.base import QKVMixer
from mmsgformer.mixers.regions import from_regions, to_regions
from mmsgformer.mixers.registry import MIXERS
from mmsgformer.ops import dot_product_attention

SIZES = (8, 4, 1, 1)
EPSILON = 1e-12


@MIXERS.register_module(name='svit')
class SuperTokenAttention(QKVMixer):
    """Every token is shared out among the 3 x 3 cells around it; their super tokens attend to each other.

    Cells outside the map get a share too, which is lost, as in the official code. Shares have no gradient.

    Args:
        stoken_size: Side of a cell, by default 8, 4, 1, 1 in stages 1-4. 1: plain full attention.
        n_iter: How often tokens are shared out, from the second time on by the means of the time before.
        mask_padding: False: the official rule, by which padded tokens count.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stage: int = 0,
        block: int = 0,
        stoken_size: int | None = None,
        n_iter: int = 1,
        mask_padding: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        self.stoken_size = SIZES[stage] if stoken_size is None else stoken_size
        if self.stoken_size < 1 or n_iter < 1:
            raise ValueError(f'svit needs stoken_size and n_iter >= 1, got {self.stoken_size} and {n_iter}')
        self.n_iter = n_iter
        self.mask_padding = mask_padding

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        if self.stoken_size == 1:
            return self._attend(x), significance
        height, width = x.shape[1:3]
        side = (self.stoken_size,) * 2
        grid = multiples(height, side[0]), multiples(width, side[1])
        cells = to_regions(x, side)  # (B, cells, T, C)
        real = to_regions(torch.ones_like(x[:1, ..., :1]), side)  # (1, cells, T, 1), 0 where padded
        if not self.mask_padding:
            real = torch.ones_like(real)
        with torch.no_grad():
            tokens = (cells.sum(2) / real.sum(2)).unflatten(1, grid)
            shares = share_out(cells, tokens) * real  # (B, cells, T, 9)
            for _ in range(self.n_iter - 1):
                shares = share_out(cells, means(cells, shares, grid)) * real
        tokens = self._attend(means(cells, shares, grid))
        return from_regions(shares @ neighbours(tokens), side, height, width), significance

    def _attend(self, x: Tensor) -> Tensor:
        """Full attention among super tokens, (B, rows, columns, C) -> same."""
        # The official order of channels: [head | q k v | d].
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out = dot_product_attention(*qkv.chunk(3, dim=-1), self.dropout_p)
        return self.project(join_heads(out)).view_as(x)


def neighbours(tokens: Tensor) -> Tensor:
    """The 3 x 3 super tokens around each, 0 outside the map: (B, rows, columns, C) -> (B, cells, 9, C)."""
    return F.unfold(tokens.movedim(-1, 1), 3, padding=1).unflatten(1, (-1, 9)).permute(0, 3, 2, 1)


def share_out(cells: Tensor, tokens: Tensor) -> Tensor:
    """How much of every token (B, cells, T, C) goes to the 3 x 3 super tokens around it, (B, cells, T, 9)."""
    return (cells @ neighbours(tokens).mT * cells.shape[-1] ** -0.5).softmax(-1)


def sums(parts: Tensor, grid: tuple[int, int]) -> Tensor:
    """What every super token is given by the 3 x 3 cells around it: (B, cells, 9, C) -> (B, *grid, C)."""
    return F.fold(parts.permute(0, 3, 2, 1).flatten(1, 2), grid, 3, padding=1).movedim(1, -1)


def means(cells: Tensor, shares: Tensor, grid: tuple[int, int]) -> Tensor:
    """Super tokens: the means of tokens (B, cells, T, C) by shares (B, cells, T, 9), (B, *grid, C)."""
    weights = sums(shares.sum(2).unsqueeze(-1), grid)
    return sums(shares.mT @ cells, grid) / (weights + EPSILON)


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official StokenAttention's weights; its 1x1 convolutions are linear layers here."""
    return {
        name.removeprefix('stoken_refine.'): value.flatten(1) if name.endswith('weight') else value
        for name, value in state_dict.items()
        if name.startswith('stoken_refine.')
    }
