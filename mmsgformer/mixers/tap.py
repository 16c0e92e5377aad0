"""Token-aware pooling: before attention, every token decides how far to look around itself.

Source: Robustifying Token Attention for Vision Transformers (ICCV 2023, arXiv 2303.11126) and its code,
guoyongcs/TAPADL (MIT).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsgformer.attention import conv_channels_last

DILATIONS = (1, 2, 3)


class TokenAwarePooling(nn.Module):
    """x and its 3x3 means at dilations 1 to 3, summed with every token's own weights: (B, H, W, C) -> same.

    Zeros outside the map count in the means. The BatchNorm sees K = 4 channels; small batches want SyncBN
    (`sync_bn='torch'` in a config).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        pools = 1 + len(DILATIONS)
        self.proj = nn.Sequential(
            nn.Conv2d(dim, pools, 3, padding=1, bias=False),
            nn.BatchNorm2d(pools),
            nn.Conv2d(pools, pools, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = conv_channels_last(self.proj, x).softmax(-1)  # (B, H, W, K)
        pools = [x, *(neighbour_means(x, dilation) for dilation in DILATIONS)]
        return sum(weight * pool for weight, pool in zip(weights.split(1, dim=-1), pools, strict=True))


def neighbour_means(x: Tensor, dilation: int) -> Tensor:
    """The means of 3x3 tokens that are `dilation` apart, always by 9: (B, H, W, C) -> same."""
    dim = x.shape[-1]
    kernel = torch.full((dim, 1, 3, 3), 1 / 9, dtype=x.dtype, device=x.device)
    x = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=dilation, dilation=dilation, groups=dim)
    return x.permute(0, 2, 3, 1)
