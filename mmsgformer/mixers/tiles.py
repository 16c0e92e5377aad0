"""Tiles of queries and who sees whom from them, for neighbourhood attention.

A map whose tokens g, g + dilation, ... form a group along either side is cut into these groups, each group
into tiles of TILE x TILE queries, and each tile attends to the tokens that its queries see together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsgformer.attention import multiples

# Side of a tile of queries.
TILE = 7


class Axis(NamedTuple):
    """Who sees whom along one side of the map, whose tokens g, g + dilation, ... are a group, for each g."""

    keys: Tensor
    """The members of a group that a tile of its queries attends to, (tiles, K)."""
    seen: Tensor
    """Whether a query sees a key, (dilation, tiles, TILE, K)."""
    kind: Tensor
    """Which of the `offset` tables a tile has, (tiles,)."""
    offset: Tensor
    """key - query + kernel - 1, where a query may see the key, (kinds, TILE, K)."""


def axis(length: int, kernel: int, dilation: int, stride: int, device: torch.device) -> Axis:
    """The tables of a side of `length` tokens, at least `dilation`.

    A query sees the `kernel` members of its group around it, or around the leader of its `stride` members; at
    a border the window moves inward. Where a group has fewer members, it sees them all.
    """
    longest = multiples(length, dilation)
    reach = kernel // 2 + stride // 2  # of a tile's queries, beyond the tile
    span = min(longest, TILE + 2 * reach)
    tops = range(0, longest, TILE)
    starts = [min(max(top - reach, 0), longest - span) for top in tops]
    kinds = sorted({start - top for start, top in zip(starts, tops, strict=True)})
    kind = [kinds.index(start - top) for start, top in zip(starts, tops, strict=True)]

    def tensor(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=device)

    places, spanned = tensor(range(TILE)), tensor(range(span))
    offset = tensor(kinds)[:, None, None] + spanned - places[:, None] + kernel - 1
    keys = tensor(starts)[:, None] + spanned
    members = (length + dilation - 1 - tensor(range(dilation)))[:, None, None] // dilation
    query = (tensor(tops)[:, None] + places).minimum(members - 1)  # (dilation, tiles, TILE)
    leader = (query // stride * stride + stride // 2).minimum(members - 1)
    first = (leader - kernel // 2).clamp(min=0).minimum((members - kernel).clamp(min=0))[..., None]
    seen = (keys[:, None] >= first) & (keys[:, None] < first + kernel) & (keys[:, None] < members[..., None])
    return Axis(keys, seen, tensor(kind), offset.clamp(0, 2 * kernel - 2))


def to_groups(x: Tensor, rows: int, columns: int) -> Tensor:
    """The tokens in steps of `rows` and `columns`, (B, H, W, C) -> (B * rows * columns, n, m, C), padded."""
    B, H, W, C = x.shape
    x = F.pad(x, (0, 0, 0, -W % columns, 0, -H % rows))
    x = x.view(B, multiples(H, rows), rows, multiples(W, columns), columns, C).permute(0, 2, 4, 1, 3, 5)
    return x.flatten(0, 2)


def from_groups(x: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """The inverse of `to_groups`, cropped: -> (B, height, width, C)."""
    x = x.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def spans(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows (tiles, K) and columns (tiles, K') of maps (B, n, m, C), for each tile: (B * tiles, K * K', C)."""
    x = x[:, rows][:, :, :, columns]  # (B, tiles, K, tiles, K', C)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)
