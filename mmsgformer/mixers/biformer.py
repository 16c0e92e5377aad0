"""BiFormer's bi-level routing attention: each region's queries see the regions that resemble it most.

Source: BiFormer (CVPR 2023, arXiv 2303.08810) and its code, rayleizhu/BiFormer (MIT).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsgformer.attention import conv_channels_last, join_heads, multiples, split_heads
from mmsgformer.mixers.base import QKVMixer
from mmsgformer.mixers.regions import from_regions, to_regions
from mmsgformer.mixers.registry import MIXERS
from mmsgformer.ops.autocast import without_autocast

FULL = -2  # the official sign for attention to all tokens
TOP_K = (1, 4, 16, FULL)


@MIXERS.register_module(name='biformer')
class BiLevelRoutingAttention(QKVMixer):
    """The map is cut into P x P regions; each attends to k of them. Plus a depthwise 5x5 convolution (LePE).

    Small maps have as many regions as they can fill, and where there are fewer than k, all are seen.

    Args:
        n_win: P; the authors take 7 for ImageNet, 8 for ADE20K at 512 pixels and 16 for COCO.
        topk: k, by default 1, 4, 16 in stages 1-3 and -2 in stage 4: full attention, which has no bias in
            qkv, a scale by the head instead of by C, and LePE of x instead of the values.
        nchw: The official code's second version: regions of floor(H / P) tokens a side, maybe more than P.
        mask_padding: False: the official rule, by which padded tokens are tokens like others.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stage: int = 0,
        block: int = 0,
        n_win: int = 7,
        topk: int | None = None,
        nchw: bool = False,
        mask_padding: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        topk = TOP_K[stage] if topk is None else topk
        self.full = topk == FULL
        if n_win < 1 or (topk < 1 and not self.full):
            raise ValueError(f'biformer needs n_win and topk >= 1, or topk {FULL}, got {n_win} and {topk}')
        self.n_win, self.topk = (1, 1) if self.full else (n_win, topk)
        self.scale = (dim // num_heads if self.full else dim) ** -0.5
        self.nchw, self.mask_padding = nchw, mask_padding
        self.qkv = nn.Linear(dim, 3 * dim, bias=not self.full)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        height, width = x.shape[1:3]
        side = tuple(
            max(n // self.n_win, 1) if self.nchw else multiples(n, self.n_win) for n in (height, width)
        )
        if not (self.nchw or self.mask_padding):
            x = F.pad(x, (0, 0, 0, side[1] * self.n_win - width, 0, side[0] * self.n_win - height))
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, H, W, C)
        attended = from_regions(self._attend(q, k, v, side), side, *x.shape[1:3])
        out = attended + conv_channels_last(self.lepe, x if self.full else v)
        return self.project(out[:, :height, :width]), significance

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, side: tuple[int, int]) -> Tensor:
        """Maps (B, H, W, C) in regions of `side` -> output (B, R, T, C), T tokens in each of R regions."""
        B, H, W, _ = q.shape
        real = to_regions(q.new_ones(1, H, W, 1, dtype=torch.bool), side)  # (1, R, T, 1)
        q, k, v = (to_regions(t, side) for t in (q, k, v))
        chosen = route(q, k, real.sum(2), self.topk)  # (B, R, topk)

        def gather(t: Tensor) -> Tensor:  # (B, R, T, c) -> (B * R, topk * T, c)
            t = t.flatten(0, 1).index_select(0, chosen.flatten())
            return t.unflatten(0, (-1, chosen.shape[-1])).flatten(1, 2)

        mask = None
        if self.mask_padding and (H % side[0] or W % side[1]):
            mask = gather(real.expand(B, -1, -1, -1))[:, None, None, :, 0]
        heads = (split_heads(t, self.num_heads) for t in (q.flatten(0, 1), gather(k), gather(v)))
        out = F.scaled_dot_product_attention(*heads, mask, self.dropout_p, scale=self.scale)
        return join_heads(out).unflatten(0, (B, -1))


@torch.no_grad()
def route(q: Tensor, k: Tensor, tokens: Tensor, topk: int) -> Tensor:
    """Which regions each region sees: those with the largest <mean q, mean k>.

    Zero-padded regions q, k (B, R, T, C) and their numbers of `tokens` (1, R, 1) -> indices (B, R, topk) in
    the batch's B * R regions; fewer than `topk` if there are fewer.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k = (t.sum(2, dtype=dtype) / tokens for t in (q, k))
    B, R, _ = k.shape
    with without_autocast(q):
        chosen = (q @ k.mT).topk(min(topk, R)).indices
    return chosen + R * torch.arange(B, device=k.device).view(-1, 1, 1)


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the official bra_legacy, bra_nchw (1x1 convolutions) and, in stage 4, AttentionLePE."""
    ours = {'qkv_linear': 'qkv', 'wo': 'proj', 'output_linear': 'proj'}
    renamed = {}
    for name, value in state_dict.items():
        layer, kind = name.split('.')[-2:]
        is_matrix = kind == 'weight' and layer != 'lepe'
        renamed[f'{ours.get(layer, layer)}.{kind}'] = value.flatten(1) if is_matrix else value
    return renamed
