"""Attention within groups of tokens, and the two ways to group a map: windows, and grids spread over it."""

import torch
from torch import Tensor

from mmsgformer.attention import (
    from_windows,
    join_heads,
    pad_to_multiple,
    softmax_weights,
    split_heads,
    to_windows,
)
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
    """Attention within groups of `size` x `size` tokens, windows if a subclass says nothing else, of any map.

    The map is padded at the right and bottom. Padded tokens are hidden from all, unless `mask_padding` is
    False: then, as in most official codes, they take part with the biases of the linear layer as keys and
    values.
    """

    # The partition and its inverse, and by how many tokens the padded map is rolled up and left before it.
    to_groups = staticmethod(to_windows)
    from_groups = staticmethod(from_windows)
    shift = 0

    def __init__(
        self, dim: int, num_heads: int, size: int, attn_drop: float, proj_drop: float, mask_padding: bool
    ) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        self.size = size
        self.mask_padding = mask_padding

    def bias(self, height: int, width: int) -> Tensor | None:
        """What is added to the logits of a padded map of this size, (groups or 1, heads or 1, n, n)."""

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        H, W = x.shape[1:3]
        padded = pad_to_multiple(x, self.size)
        height, width = padded.shape[1:3]
        bias = self.bias(height, width)
        if self.mask_padding and (height, width) != (H, W):
            real = self._grouped(pad_to_multiple(x.new_ones(1, H, W, 1, dtype=torch.bool), self.size))
            hidden = torch.zeros_like(real, dtype=x.dtype).masked_fill(~real, -torch.inf)  # (G, n, 1)
            hidden = hidden.mT[:, None]  # (G, 1, 1, n)
            bias = hidden if bias is None else bias + hidden
        q, k, v = self._grouped(self.qkv(padded)).chunk(3, dim=-1)
        out = attend_in_groups(q, k, v, self.num_heads, bias, self.dropout_p)
        out = _rolled(self.from_groups(out, self.size, height, width), self.shift)
        return self.project(out[:, :H, :W]), significance

    def attention_weights(self, x: Tensor) -> Tensor:
        """The softmax of the groups of x (B, H, W, C), cut to whole groups: (B * G, heads, n, n)."""
        height, width = (side // self.size * self.size for side in x.shape[1:3])
        q, k, _ = self._grouped(self.qkv(x[:, :height, :width])).chunk(3, dim=-1)
        bias = self.bias(height, width)
        if bias is not None and len(bias) > 1:
            bias = bias.repeat(len(x), 1, 1, 1)
        return softmax_weights(*(split_heads(t, self.num_heads) for t in (q, k)), bias)

    def _grouped(self, x: Tensor) -> Tensor:
        """A padded map (B, H, W, C) -> (B * G, n, C)."""
        return self.to_groups(_rolled(x, -self.shift), self.size)


def _rolled(x: Tensor, shift: int) -> Tensor:
    """A map (B, H, W, C) rolled down and to the right."""
    return x.roll((shift, shift), (1, 2)) if shift else x


def offset_index(size: int, device: torch.device) -> Tensor:
    """For query i and key j of a group: where key - query is in a flattened (2 size - 1)^2 table, (n, n).

    It is no buffer of a module: one that no checkpoint has would be lost with deferred initialisation.
    """
    places = torch.arange(size, device=device)
    y, x = torch.meshgrid(places, places, indexing='ij')
    rows, columns = (t.flatten()[None, :] - t.flatten()[:, None] + size - 1 for t in (y, x))
    return rows * (2 * size - 1) + columns
