"""Attention and its column means, a chunk of the softmax matrix at a time: memory linear in the tokens.

Both come out of one pass, on any device. The backward pass is that of torch's fused attention where there is
one and it is quicker, else it makes each chunk again.
"""

from collections.abc import Iterator
from math import prod
from typing import Optional

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.utils.flop_counter import register_flop_formula

from mmsgformer.ops.linear_cpu import onednn_pays, product

# Elements of the softmax matrix per chunk: on a CPU as many as stay in its cache.
_CHUNK_ELEMENTS = {'cpu': 1 << 19}
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 24
# With fewer elements per head the calls cost more than they save.
_MIN_ELEMENTS = 1 << 18


def quicker_than_torch(q: Tensor, k: Tensor) -> bool:
    """Whether torch's own attention of q (B, heads, Q, d) to k (B, heads, K, d) is slower than this one.

    It is where there are many queries and oneDNN's products are much quicker than MKL's, which torch's uses.
    """
    return q.shape[2] * k.shape[2] >= _MIN_ELEMENTS and onednn_pays(q, k)


@torch.library.custom_op('mmsgformer::chunked_attention', mutates_args=())
def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Optional[Tensor],  # noqa: UP045  the operator's schema is read from it
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v, and the column means of the softmax matrix.

    Opaque to torch.compile, which would unroll the loop.

    Args:
        q: Queries, (B, heads, Q, d), of one type with k and v (B, heads, K, d).
        valid: True where a key, and the query of the same index, is real, (B, K); None: everywhere.

    Returns:
        The output (B, heads, Q, d) in q's dtype; the means over heads and valid queries (B, K), 0 for
        padding; the log-sum-exp of every query's logits (B, heads, Q). The last two are in float32 or
        better and have no gradient.
    """
    batch, heads, num_queries, head_dim = q.shape
    out = q.new_empty(batch, num_queries, heads, head_dim).transpose(1, 2)  # heads are joined next
    queries, keys, values = _at_work(q, k, v)
    sums, lse = keys.new_zeros(batch, k.shape[2]), keys.new_empty(q.shape[:3])
    with torch.autocast(q.device.type, enabled=False):
        for images, head, rows in _chunks(q, k):
            logits = _logits(queries[images, head, rows], keys[images, head], valid, images)
            largest = logits.amax(dim=-1)
            weights = torch.softmax(logits, dim=-1, out=logits)
            lse[images, head, rows] = largest - weights.amax(dim=-1).log_()
            out[images, head, rows] = _product(weights, values[images, head].mT).to(q.dtype)
            if valid is not None:
                weights *= valid[images, None, rows, None]
            sums[images] += weights.sum(dim=(1, 2))
    counted = num_queries if valid is None else valid.sum(dim=1, keepdim=True)
    return out, sums / (heads * counted), lse


@chunked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    out = q.new_empty(q.transpose(1, 2).shape).transpose(1, 2)
    exact = q.new_empty(0, dtype=torch.promote_types(q.dtype, torch.float32))
    return out, exact.new_empty(k.shape[0], k.shape[2]), exact.new_empty(q.shape[:3])


@register_flop_formula(torch.ops.mmsgformer.chunked_attention)
def _(q_shape: torch.Size, k_shape: torch.Size, *_: object, **__: object) -> int:
    """For torch's FlopCounterMode: q k^T and its product with v, two operations per multiplication."""
    return 4 * prod(q_shape) * k_shape[2]


@torch.library.custom_op('mmsgformer::chunked_attention_backward', mutates_args=())
def _chunked_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Optional[Tensor],  # noqa: UP045
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at q, k and v, of their shapes, from that at the output."""
    queries, keys, values = _at_work(q, k, v)
    at_queries = torch.empty_like(queries)
    at_keys, at_values = torch.zeros_like(keys.mT), torch.zeros_like(values.mT)
    with torch.autocast(q.device.type, enabled=False):
        for images, head, rows in _chunks(q, k):
            logits = _logits(queries[images, head, rows], keys[images, head], valid, images)
            weights = torch.softmax(logits, dim=-1, out=logits)
            at_out = grad[images, head, rows].to(weights.dtype).contiguous()
            at_values[images, head] += _product(at_out.mT, weights.mT)
            at_weights = _product(at_out, values[images, head])
            at_logits = torch._softmax_backward_data(at_weights, weights, -1, weights.dtype)
            at_queries[images, head, rows] = _product(at_logits, keys[images, head].mT)
            at_keys[images, head] += _product(queries[images, head, rows].mT, at_logits.mT)
    at_queries *= q.shape[-1] ** -0.5
    return at_queries.to(q.dtype), at_keys.mT.to(q.dtype), at_values.mT.to(q.dtype)


@_chunked_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.fused = inputs[0].device.type == 'cpu' and not quicker_than_torch(*inputs[:2])
    ctx.save_for_backward(*inputs, *(output[::2] if ctx.fused else ()))


def _backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.fused:
        return *_chunked_attention_backward(grad, *ctx.saved_tensors), None
    q, k, v, valid, out, lse = ctx.saved_tensors
    mask = None
    if valid is not None:
        mask = torch.zeros_like(valid, dtype=q.dtype).masked_fill_(~valid, -torch.inf)[:, None, None, :]
    # What the gradient of scaled_dot_product_attention calls on a CPU.
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return *backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask), None


chunked_attention.register_autograd(_backward, setup_context=_save)


def _at_work(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values, each head of each image contiguous, in float32 or better."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (q.to(dtype) * q.shape[-1] ** -0.5).contiguous(), *(x.to(dtype).contiguous() for x in (k, v))


def _chunks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Images, heads and queries of each chunk: several images whole, or some queries of one head."""
    batch, heads, num_queries = q.shape[:3]
    elements = _CHUNK_ELEMENTS.get(q.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
    images = elements // max(1, heads * num_queries * k.shape[2])
    if images:
        for start in range(0, batch, images):
            yield slice(start, start + images), slice(None), slice(None)
        return
    rows = max(1, elements // k.shape[2])
    for image in range(batch):
        for head in range(heads):
            for start in range(0, num_queries, rows):
                yield slice(image, image + 1), slice(head, head + 1), slice(start, start + rows)


def _logits(queries: Tensor, keys: Tensor, valid: Tensor | None, images: slice) -> Tensor:
    """Of these images and queries, (images, heads, Q, K)."""
    logits = _product(queries, keys)
    return logits if valid is None else logits.masked_fill_(~valid[images, None, None], -torch.inf)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x (images, heads, N, c) @ y (images, heads, M, c)^T -> (images, heads, N, M)."""
    if len(x) == x.shape[1] == 1 and onednn_pays(x, y):
        return product(x[0, 0], y[0, 0])[None, None]
    return x @ y.mT
