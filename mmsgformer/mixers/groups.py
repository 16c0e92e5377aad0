"""Attention within groups of tokens, and the two ways to group a map: windows, and grids spread over it."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmsgformer.attention import from_windows, join_heads, pad_to_multiple, split_heads, to_windows
from mmsgformer.mixers.base import QKVMixer
from mmsgformer.ops import dot_product_attention


def attend_in_groups(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Softmax attention of the queries of each group to the keys of the same group.

    Args:
        q: (B * G, n, C), image by image.
        k: (B * G, m, C).
        v: (B * G, m, C).
        num_heads: C consists of the heads, one after the other.
        bias: Added to the logits, (G or 1, heads or 1, n or 1, m); -inf where a key is not to be seen, which
            leaves every query at least one key.
        dropout_p: Dropout on the attention weights.

    Returns:
        (B * G, n, C).
    """
    q, k, v = (split_heads(t, num_heads) for t in (q, k, v))
    if bias is not None:
        bias = bias.to(q.dtype)
        if len(bias) > 1:
            bias = bias.repeat(len(q) // len(bias), 1, 1, 1)
    return join_heads(dot_product_attention(q, k, v, dropout_p, bias))


class GroupMixer(QKVMixer):
    """Attention within groups of `size` x `size` tokens, from a map of any size.

    The map is padded at the right and bottom. Padded tokens are hidden from all, unless `mask_padding` is
    False: then, as in most official codes, they take part with the biases of the linear layer as keys and
    values.
    """

    def __init__(
        self, dim: int, num_heads: int, size: int, attn_drop: float, proj_drop: float, mask_padding: bool
    ) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        self.size = size
        self.mask_padding = mask_padding

    def attend(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        to_groups: Callable[[Tensor, int], Tensor] = to_windows,
        from_groups: Callable[[Tensor, int, int, int], Tensor] = from_windows,
        shift: int = 0,
    ) -> Tensor:
        """Attend within the groups that a partition makes of the map.

        Args:
            x: The map (B, H, W, C).
            bias: Added to the logits, (G or 1, heads or 1, n, n).
            to_groups: Partition, as `to_windows`.
            from_groups: Its inverse.
            shift: The padded map is rolled by this many tokens up and left before the partition.
        """
        H, W = x.shape[1:3]
        padded = pad_to_multiple(x, self.size)
        height, width = padded.shape[1:3]
        if self.mask_padding and (height, width) != (H, W):
            real = pad_to_multiple(x.new_ones(1, H, W, 1, dtype=torch.bool), self.size)
            real = to_groups(real.roll((-shift, -shift), (1, 2)), self.size)  # (G, n, 1)
            hidden = torch.zeros_like(real, dtype=x.dtype).masked_fill(~real, -torch.inf).mT[:, None]
            bias = hidden if bias is None else bias + hidden
        if shift:
            padded = padded.roll((-shift, -shift), (1, 2))
        q, k, v = to_groups(self.qkv(padded), self.size).chunk(3, dim=-1)
        out = attend_in_groups(q, k, v, self.num_heads, bias, self.dropout_p)
        out = from_groups(out, self.size, height, width)
        if shift:
            out = out.roll((shift, shift), (1, 2))
        return self.project(out[:, :H, :W])


def offset_index(size: int) -> Tensor:
    """For query i and key j of a group: where key - query is in a flattened (2 size - 1)^2 table, (n, n)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    rows, columns = (t.flatten()[None, :] - t.flatten()[:, None] + size - 1 for t in (y, x))
    return rows * (2 * size - 1) + columns
