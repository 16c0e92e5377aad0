"""Attention diversification loss: layers whose queries all attend to the same few tokens pay for it.

Source: Robustifying Token Attention for Vision Transformers (ICCV 2023, arXiv 2303.11126) and its code,
guoyongcs/TAPADL (MIT).
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsgformer.ops.autocast import at_least_float32

EPSILON = 1e-6  # the official counter of layers starts here


def diversification_loss(attention: Iterable[Tensor]) -> Tensor:
    """How alike the queries' attention is: 0 where no token receives twice its share, at most 1.

    The mean, over layers and queries, of the cosine between a query's attention and the mean attention, both
    cut to what exceeds 2 / N.

    Args:
        attention: For each layer the weights (B, heads, N, N), rows adding up to 1.
    """
    losses = [_alike(weights).mean() for weights in attention]
    return torch.stack(losses).sum() / (len(losses) + EPSILON)


def _alike(weights: Tensor) -> Tensor:
    """Attention (B, heads, N, N) -> every query's cosine to the mean, (B, N)."""
    weights = at_least_float32(weights).mean(dim=1)
    threshold = 2 / weights.shape[-1]
    mean = F.threshold(weights.mean(dim=1, keepdim=True), threshold, 0.0)
    return F.cosine_similarity(mean, F.threshold(weights, threshold, 0.0), dim=-1)
