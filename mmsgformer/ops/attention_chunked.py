"""Column means of a softmax matrix, made a chunk at a time: memory linear in the tokens, any device."""

from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor

# Elements of the softmax matrix per chunk: on a CPU as many as stay in its cache.
_CHUNK_ELEMENTS = {'cpu': 1 << 18}
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 24
# Instead of -inf, which a matrix product may multiply with the zeros of its own padding.
_MINUS_INFINITY = -1e30


@torch.library.custom_op('mmsgformer::chunked_column_means', mutates_args=())
def chunked_column_means(
    q: Tensor,
    k: Tensor,
    lse: Optional[Tensor],  # noqa: UP045  the operator's schema is read from it
    valid: Optional[Tensor],  # noqa: UP045
) -> Tensor:
    """Column means of softmax(q k^T / sqrt(d)) over heads and valid queries, without gradient.

    Opaque to torch.compile, which would unroll the loop.

    Args:
        q: Queries, (B, heads, Q, d).
        k: Keys, (B, heads, K, d).
        lse: Log-sum-exp of every query's logits, (B, heads, Q); None: computed here, which takes as long
            again.
        valid: True where a key, and the query of the same index, is real, (B, K); None: everywhere.

    Returns:
        Means (B, K) in float32 or better, 0 for padding.
    """
    batch, heads, num_queries, head_dim = q.shape
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.promote_types(q.dtype, torch.float32)
        queries, keys = (q.to(dtype) * head_dim**-0.5).flatten(0, 1), k.to(dtype).flatten(0, 1)
        if lse is None:
            masked = None if valid is None else ~valid.repeat_interleave(heads, dim=0)
            lse = _row_lse(queries, keys, masked).view(q.shape[:3])
        if valid is not None:  # the weights of padded queries become 0
            lse = lse.masked_fill(~valid[:, None], -_MINUS_INFINITY)
        # softmax = exp(q k - lse): one more channel in the product subtracts the log-sum-exp.
        queries = torch.cat([queries, -lse.flatten(0, 1).unsqueeze(-1)], dim=-1)
        keys = torch.cat([keys, torch.ones_like(keys[:, :, :1])], dim=-1)
        sums = keys.new_zeros(keys.shape[:2])
        for group, rows in _chunks(queries, keys):
            weights = torch.bmm(queries[group, rows], keys[group].transpose(1, 2)).exp_()
            sums[group] += weights.sum(dim=1)
        # Of huge logits even the rounding error is large, and its exponential may be infinite.
        sums = sums.clamp_(max=num_queries).view(batch, heads, k.shape[2]).sum(dim=1)
    if valid is None:
        return sums / (heads * num_queries)
    return sums.masked_fill(~valid, 0) / (heads * valid.sum(dim=1, keepdim=True))


@chunked_column_means.register_fake
def _(q: Tensor, k: Tensor, lse: Tensor | None, valid: Tensor | None) -> Tensor:
    return q.new_empty(k.shape[0], k.shape[2], dtype=torch.promote_types(q.dtype, torch.float32))


def _row_lse(queries: Tensor, keys: Tensor, masked: Tensor | None) -> Tensor:
    """Log-sum-exp (B * heads, Q) of the logits of scaled queries and keys, except `masked` (B * heads, K)."""
    lse = queries.new_empty(queries.shape[:2])
    for group, rows in _chunks(queries, keys):
        logits = torch.bmm(queries[group, rows], keys[group].transpose(1, 2))
        if masked is not None:
            logits.masked_fill_(masked[group, None], -torch.inf)
        lse[group, rows] = logits.logsumexp(dim=-1)
    return lse


def _chunks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Groups and queries of each chunk: all queries of several groups, or some queries of one group."""
    num_groups, num_queries, num_keys = *queries.shape[:2], keys.shape[1]
    elements = _CHUNK_ELEMENTS.get(queries.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
    groups = max(1, elements // (num_queries * num_keys))
    rows = max(1, min(num_queries, elements // num_keys))
    for group in range(0, num_groups, groups):
        for row in range(0, num_queries, rows):
            yield slice(group, group + groups), slice(row, row + rows)
