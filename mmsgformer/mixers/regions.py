"""Maps cut into rectangular regions of neighbouring tokens, and back."""

import torch.nn.functional as F
from torch import Tensor

from mmsgformer.attention import multiples


def to_regions(x: Tensor, side: tuple[int, int]) -> Tensor:
    """A map (B, H, W, C), zero-padded at the right and bottom -> (B, regions, tokens of a region, C)."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % side[1], 0, -height % side[0]))
    x = x.unflatten(2, (-1, side[1])).unflatten(1, (-1, side[0]))  # (B, rows, side[0], columns, side[1], C)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_regions(regions: Tensor, side: tuple[int, int], height: int, width: int) -> Tensor:
    """The inverse of `to_regions`, cropped: (B, regions, tokens of a region, C) -> (B, height, width, C)."""
    x = regions.unflatten(2, side).unflatten(1, (-1, multiples(width, side[1])))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]
