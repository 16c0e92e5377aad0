"""Attention by a table of who sees whom: the slow and obvious way, without groups, windows or padding."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmsgformer.attention import join_heads, split_heads
from mmsgformer.mixers.base import QKVMixer


def every_pair(x: Tensor, rule: Callable[[int, int, int], object]) -> Tensor:
    """`rule(y, x)` of each token of a map (B, H, W, C), as lists of numbers: queries i and keys j.

    Args:
        x: The map.
        rule: Of two tokens' coordinates, `(yi, xi, yj, xj)`, the answer for the pair.
    """
    places = [(i, j) for i in range(x.shape[1]) for j in range(x.shape[2])]
    return torch.tensor([[rule(*query, *key) for key in places] for query in places])


def attend_by_pairs(mixer: QKVMixer, x: Tensor, seen: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """The mixer's output for x (B, H, W, C), where `seen` (N, N) says which query (row) sees which key.

    `bias` (heads, N, N) is added to the logits.
    """
    q, k, v = (split_heads(t.flatten(1, 2), mixer.num_heads) for t in mixer.qkv(x).chunk(3, dim=-1))
    logits = q @ k.mT / q.shape[-1] ** 0.5 + bias
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return mixer.proj(join_heads(weights @ v)).view_as(x)
