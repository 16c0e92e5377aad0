"""Softmax attention that also returns how much attention each key receives.

SG-Former reads the significance of an image region off its own attention: the mean, over queries and
heads, of the attention paid to a key, i.e. the column mean of the softmax matrix (docs/method.md,
"Significance").
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of the softmax matrix that are computed at once: 64 MiB in float32, a few times over.
_CHUNK_ELEMENTS = 1 << 24


def attention_with_column_means(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention, and the mean attention that every key receives.

    The output comes from torch's fused attention and the means from a second pass over query chunks, so
    the (Q, K) matrix is never held whole, in training neither: the means carry no gradient.

    Args:
        q: Queries, (B, heads, Q, d).
        k: Keys, (B, heads, K, d).
        v: Values, (B, heads, K, d).
        valid: For self-attention over padded tokens (Q = K): True where a token is real, (B, K), at least
            one per row. Padding receives no attention and does not count as a query in the means.
        dropout_p: Dropout on the attention weights of the output; the means are those without dropout.

    Returns:
        The output (B, heads, Q, d) in v's dtype and the means (B, K), float32 or better, without gradient.
    """
    mask = None if valid is None else valid[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
    with torch.no_grad():
        return out, _column_means(q, k, valid)


def _column_means(q: Tensor, k: Tensor, valid: Tensor | None) -> Tensor:
    """Column means of softmax(q k^T / sqrt(d)) over heads and (valid) queries: (B, K)."""
    batch, heads, num_queries, head_dim = q.shape
    num_keys = k.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    keys = (k * head_dim**-0.5).transpose(-2, -1)
    sums = torch.zeros(batch, num_keys, dtype=dtype, device=q.device)
    step = max(1, _CHUNK_ELEMENTS // max(1, batch * heads * num_keys))
    for start in range(0, num_queries, step):
        logits = (q[:, :, start : start + step] @ keys).to(dtype)
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None, None, :], -torch.inf)
        weights = logits.softmax(dim=-1)
        if valid is not None:
            weights = weights * valid[:, None, start : start + step, None]
        sums += weights.sum(dim=(1, 2))
    if valid is None:
        return sums / (heads * num_queries)
    return sums / (heads * valid.sum(dim=1, keepdim=True))


def attention_with_column_means_reference(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attention_with_column_means` as the formula says it, with the whole softmax matrix in memory."""
    weights = []
    for b in range(q.shape[0]):
        logits = q[b] @ k[b].transpose(-2, -1) / q.shape[-1] ** 0.5
        if valid is not None:
            logits[:, :, ~valid[b]] = -torch.inf
        weights.append(logits.softmax(dim=-1))
    out = torch.stack([w @ v[b] for b, w in enumerate(weights)])
    means = [w if valid is None else w[:, valid[b]] for b, w in enumerate(weights)]
    return out, torch.stack([w.detach().mean(dim=(0, 1)) for w in means])
