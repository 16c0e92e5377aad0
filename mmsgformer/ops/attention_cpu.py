"""Attention of many queries on a CPU: a chunk of the softmax matrix at a time, which stays in the cache.

For CPUs where oneDNN's products are much quicker than MKL's (`mmsgformer.ops.linear_cpu`), which torch's
fused attention uses; elsewhere that one is quicker. The means of the matrix's columns come out of the same
pass. The backward pass makes each chunk again.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from mmsgformer.ops.linear_cpu import onednn_pays, product

_CHUNK_ELEMENTS = 1 << 19
# With fewer elements per head the calls cost more than they save.
_MIN_ELEMENTS = 1 << 18


def worthwhile(q: Tensor, k: Tensor) -> bool:
    """Whether attention of q (B, heads, Q, d) to k (B, heads, K, d) is possible here, and quicker."""
    return q.shape[2] * k.shape[2] >= _MIN_ELEMENTS and onednn_pays(q, k)


@torch.library.custom_op('mmsgformer::cpu_attention', mutates_args=())
def cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v, and the column means of the softmax matrix.

    Opaque to torch.compile, which would unroll the loop.

    Args:
        q: Queries, (B, heads, Q, d), float32 like k and v (B, heads, K, d).

    Returns:
        The output (B, heads, Q, d) and the means over queries and heads (B, K), without gradient.
    """
    batch, heads, num_queries, head_dim = q.shape
    out = q.new_empty(batch, num_queries, heads, head_dim)  # heads are joined next
    means = q.new_zeros(batch, k.shape[2])
    for b, h, queries, keys, values in _heads(q, k, v):
        for rows, weights in _weights(queries, keys):
            out[b, rows, h] = product(weights, values.t())
            means[b] += weights.sum(dim=0)
    return out.transpose(1, 2), means / (heads * num_queries)


@cpu_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.transpose(1, 2).shape).transpose(1, 2), q.new_empty(k.shape[0], k.shape[2])


@torch.library.custom_op('mmsgformer::cpu_attention_backward', mutates_args=())
def _cpu_attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at q, k and v, of their shapes, from that at the output."""
    grads = [torch.empty_like(x) for x in (q, k, v)]
    for b, h, queries, keys, values in _heads(q, k, v):
        at_keys, at_values = torch.zeros_like(keys.t()), torch.zeros_like(values.t())
        for rows, weights in _weights(queries, keys):
            at_out = grad[b, h, rows].contiguous()
            at_values += product(at_out.t(), weights.t())
            at_logits = torch._softmax_backward_data(product(at_out, values), weights, -1, weights.dtype)
            grads[0][b, h, rows] = product(at_logits, keys.t())
            at_keys += product(queries[rows].t(), at_logits.t())
        grads[1][b, h], grads[2][b, h] = at_keys.t(), at_values.t()
    grads[0] *= q.shape[-1] ** -0.5
    return tuple(grads)


@_cpu_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return _cpu_attention_backward(grad, *ctx.saved_tensors)


cpu_attention.register_autograd(_backward, setup_context=_save)


def _heads(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Image, head, and its queries (Q, d), scaled, keys and values (K, d)."""
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            yield b, h, q[b, h] * q.shape[-1] ** -0.5, k[b, h].contiguous(), v[b, h].contiguous()


def _weights(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Which queries, and their rows of the softmax matrix."""
    step = max(1, _CHUNK_ELEMENTS // len(keys))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        logits = product(queries[rows], keys)
        yield rows, torch.softmax(logits, dim=-1, out=logits)
