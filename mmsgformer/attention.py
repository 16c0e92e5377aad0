"""The three attentions of SG-Former. The first makes the significance map, the second is guided by it.

All take and return channels-last maps and share one signature,
`forward(x, significance) -> (output, significance)`, so that a stage is a plain loop over its blocks:

- `HybridScaleAttention` (even blocks of stages 1-3) ignores the map it is given and returns a new one,
- `SelfGuidedAttention` (odd blocks) merges its keys and values by the map and passes it on,
- `FullAttention` (stage 4) has no use for it.

Source: SG-Former (ICCV 2023, arXiv 2308.12216), section 3; docs/method.md has the details.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsgformer.compat import is_exporting
from mmsgformer.ops import attention_with_column_means, dot_product_attention, sorted_runs

WINDOW_SIZE = 7


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d), a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def conv_channels_last(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a map (B, H, W, C); no layout copy, the result is (B, H', W', C')."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def multiples(length: int, size: int) -> int:
    """How many pieces of `size` cover a length. Not `-(-length // size)`: ONNX's division rounds to zero."""
    return (length + size - 1) // size


def pad_to_multiple(x: Tensor, size: int) -> Tensor:
    """Zero-pad a map (B, H, W, C) at the right and bottom until `size` divides H and W."""
    height, width = x.shape[1:3]
    # Not `-width % size`: an exporter would not see that the result is a multiple.
    bottom, right = (multiples(side, size) * size - side for side in (height, width))
    return F.pad(x, (0, 0, 0, right, 0, bottom))


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) with H and W multiples of `size` -> (B * windows, size * size, C)."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // size, size, W // size, size, C).transpose(2, 3)  # (B, rows, columns, size, size, C)
    return x.reshape(-1, size * size, C)


def from_windows(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`, cropped: (B * windows, size * size, C) -> (B, height, width, C)."""
    rows, columns = multiples(height, size), multiples(width, size)
    x = windows.unflatten(1, (size, size)).unflatten(0, (-1, rows, columns))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return crop(x, height, width)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left part of a map (B, H, W, ...)."""
    if is_exporting():  # how long a slice is an exporter cannot tell
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        return x.index_select(1, rows).index_select(2, columns)
    return x[:, :height, :width]


def softmax_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """The attention itself: q, k (B, heads, N, d) -> (B, heads, N, N), whose rows add up to 1."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    return (logits if bias is None else logits + bias).softmax(-1)


class LocalEnhancement(nn.Module):
    """Locally-enhanced position: a linear layer and a depthwise 3x3 convolution, (B, H, W, C) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return conv_channels_last(self.conv, self.linear(x))


class Attention(nn.Module):
    """What the three attentions share: output = proj(attention + locally-enhanced position)."""

    def __init__(self, dim: int, num_heads: int, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.lepe = LocalEnhancement(dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @property
    def dropout_p(self) -> float:
        """Dropout on the attention weights, at present."""
        return self.attn_drop if self.training else 0.0

    def project(self, attended: Tensor, x: Tensor) -> Tensor:
        """Attended tokens (B, H, W, C) and the attention's input of the same shape -> the output."""
        return self.proj_drop(self.proj(attended + self.lepe(x)))


class HybridScaleAttention(Attention):
    """Half the heads see a reduced global map, half see 7x7 windows; both say which tokens matter.

    Args:
        dim: Channels C.
        num_heads: Heads h, even.
        reduction: Merge ratio r: kernel and stride of the convolution that reduces the global map.
        backend: Of `attention_with_column_means`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = 'auto',
    ) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        self.reduction = reduction
        self.backend = backend
        self.global_q = nn.Linear(dim, dim // 2)
        self.reduce = nn.Conv2d(dim, dim, reduction, reduction)
        self.reduce_norm = nn.LayerNorm(dim)
        self.global_kv = nn.Linear(dim, dim)
        self.local_qkv = nn.Linear(dim, dim // 2 * 3)

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, H, W, C) -> output (B, H, W, C), significance (B, H, W) in float32 or better, no gradient."""
        global_out, global_means = self._attend_globally(x)
        local_out, local_means = self._attend_locally(x)
        out = self.project(torch.cat([global_out, local_out], dim=-1), x)
        return out, global_means + local_means

    def attention_weights(self, x: Tensor) -> Tensor:
        """Of the windows that lie within the map x (B, H, W, C) as a whole: (windows, heads, 49, 49)."""
        height, width = (side // WINDOW_SIZE * WINDOW_SIZE for side in x.shape[1:3])
        windows = to_windows(self.local_qkv(x[:, :height, :width]), WINDOW_SIZE)
        q, k, _ = (split_heads(t, self.num_heads // 2) for t in windows.chunk(3, dim=-1))
        return softmax_weights(q, k)

    def _attend_globally(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens attend to the reduced map: output (B, H, W, C/2), attention received (B, H, W)."""
        B, H, W, C = x.shape
        r, heads = self.reduction, self.num_heads // 2
        reduced = conv_channels_last(self.reduce, pad_to_multiple(x, r))  # (B, rows, columns, C)
        reduced = F.gelu(self.reduce_norm(reduced))
        rows, columns = reduced.shape[1:3]
        q = split_heads(self.global_q(x).flatten(1, 2), heads)  # (B, heads, H * W, d)
        kv = self.global_kv(reduced).flatten(1, 2)  # (B, rows * columns, C)
        k, v = (split_heads(t, heads) for t in kv.chunk(2, dim=-1))  # (B, heads, rows * columns, d)
        out, means = attention_with_column_means(q, k, v, None, self.dropout_p, self.backend)
        # Every token has the attention that its cell of the reduced map receives.
        means = means.view(B, rows, 1, columns, 1).expand(B, rows, r, columns, r)
        means = crop(means.reshape(B, rows * r, columns * r), H, W)
        return join_heads(out).view(B, H, W, C // 2), means

    def _attend_locally(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens attend within 7x7 windows: output (B, H, W, C/2), attention received (B, H, W)."""
        B, H, W, _ = x.shape
        qkv = to_windows(pad_to_multiple(self.local_qkv(x), WINDOW_SIZE), WINDOW_SIZE)  # (windows, 49, 3C/2)
        q, k, v = (split_heads(t, self.num_heads // 2) for t in qkv.chunk(3, dim=-1))
        valid = None  # (windows, 49), where windows are cut by the border
        if is_exporting() or H % WINDOW_SIZE or W % WINDOW_SIZE:  # exported is what is right for every size
            valid = pad_to_multiple(x.new_ones(1, H, W, 1, dtype=torch.bool), WINDOW_SIZE)
            valid = to_windows(valid.expand(B, -1, -1, -1), WINDOW_SIZE).squeeze(-1)
        # A cut window's means are over 49 queries too: its padding pays no attention.
        out, means = attention_with_column_means(q, k, v, valid, self.dropout_p, self.backend)
        out = from_windows(join_heads(out), WINDOW_SIZE, H, W)  # (B, H, W, C/2)
        means = from_windows(means.unsqueeze(-1), WINDOW_SIZE, H, W)
        return out, means.squeeze(-1)


class RunMerge(nn.Linear):
    """Runs of g tokens become one token each: (B, M, g, C) -> (B, M, C).

    A weighted sum with one weight per place in the run, and a bias, the same for all channels.
    """

    def __init__(self, run_length: int) -> None:
        super().__init__(run_length, 1)

    def forward(self, runs: Tensor) -> Tensor:
        return self.weight[0] @ runs + self.bias


class SelfGuidedAttention(Attention):
    """All tokens attend to a merged sequence that stays fine where the map says it matters.

    One sort and one merge serve all heads; the official code builds two sequences, which are identical
    except where significances tie.

    Args:
        dim: Channels C.
        num_heads: Heads h.
        run_lengths: How many tokens become one, for each part of the sorted tokens, least significant first.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        run_lengths: tuple[int, ...],
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        self.q = nn.Linear(dim, dim)
        self.merge = nn.ModuleList(RunMerge(length) for length in run_lengths)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, significance: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, H, W, C) and significance (B, H, W) -> output (B, H, W, C) and the same significance."""
        tokens = x.flatten(1, 2)  # (B, N, C)
        parts = sorted_runs(tokens, significance.flatten(1), [merge.in_features for merge in self.merge])
        merged = torch.cat([merge(runs) for merge, runs in zip(self.merge, parts, strict=True)], dim=1)
        q = split_heads(self.q(tokens), self.num_heads)  # (B, heads, N, d)
        k, v = (split_heads(t, self.num_heads) for t in self.kv(merged).chunk(2, dim=-1))  # (B, heads, M, d)
        out = dot_product_attention(q, k, v, self.dropout_p)
        return self.project(join_heads(out).view_as(x), x), significance


class FullAttention(Attention):
    """Plain multi-head self-attention over all tokens: stage 4, where the map is small."""

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
        out = dot_product_attention(q, k, v, self.dropout_p)
        return self.project(join_heads(out).view_as(x), x), significance

    def attention_weights(self, x: Tensor) -> Tensor:
        """Of all tokens of x (B, H, W, C) to each other, (B, heads, H * W, H * W)."""
        q, k, _ = (split_heads(t, self.num_heads) for t in self.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
        return softmax_weights(q, k)
