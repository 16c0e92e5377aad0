"""Attention and its column means, a chunk of the softmax matrix at a time: memory linear in the tokens.

Both come out of one pass, on any device. The backward pass is that of torch's fused attention where there is
one and it is quicker, else it makes each chunk again.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from mmsgformer.compat import HAS_FUSED_CPU_ATTENTION, custom_op, register_flop_formula
from mmsgformer.ops.linear_cpu import amd_family_with_avx512, onednn_linear, onednn_pays

# Elements of the softmax matrix per chunk: on a CPU as many as stay in its cache.
_CHUNK_ELEMENTS = {'cpu': 1 << 19}
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 24
# With fewer elements per head the calls cost more than they save.
_MIN_ELEMENTS = 1 << 18


# On Zen 4, family 25, torch's fused attention is quicker.
_CHUNKS_ARE_QUICKER = amd_family_with_avx512() >= 26


def quicker_than_torch(q: Tensor, k: Tensor) -> bool:
    """Whether torch's own attention of q (B, heads, Q, d) to k (B, heads, K, d) is slower than this one.

    It is where there are many queries and oneDNN's products are much quicker than MKL's, which torch's uses.
    """
    return _CHUNKS_ARE_QUICKER and onednn_pays(q, k) and q.shape[2] * k.shape[2] >= _MIN_ELEMENTS


@custom_op(
    'mmsgformer::chunked_attention',
    '(Tensor q, Tensor k, Tensor v, Tensor? valid) -> (Tensor, Tensor, Tensor)',
)
def chunked_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v, and the column means of the softmax matrix.

    Opaque to torch.compile, which would unroll the loop.

    Args:
        q: Queries, (B, heads, Q, d), of one type with k and v (B, heads, K, d).
        valid: True where a key, and the query of the same index, is real, (B, K); None: everywhere.

    Returns:
        The output (B, heads, Q, d) in q's dtype; the means over heads and queries (B, K), to which padded
        queries and keys contribute 0; the log-sum-exp of every query's logits (B, heads, Q). The last two are
        in float32 or better and have no gradient.
    """
    batch, heads, num_queries, head_dim = q.shape
    out = q.new_empty(batch, num_queries, heads, head_dim).transpose(1, 2)  # heads are joined next
    scaled_q, k_per_head, v_per_head = _contiguous_per_head(q, k, v)
    sums, lse = k_per_head.new_zeros(batch, k.shape[2]), k_per_head.new_empty(q.shape[:3])
    with torch.autocast(q.device.type, enabled=False):
        for images, head, rows in _chunks(q, k):
            logits = _logits(scaled_q[images, head, rows], k_per_head[images, head], valid, images)
            weights = logits.softmax(dim=-1)
            lse[images, head, rows] = logits.amax(dim=-1) - weights.amax(dim=-1).log_()
            out[images, head, rows] = _matmul_transposed(weights, v_per_head[images, head].mT).to(q.dtype)
            if valid is not None:
                weights *= valid[images, None, rows, None]
            sums[images] += weights.sum(dim=(1, 2))
    return out, sums / (heads * num_queries), lse


@chunked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    out = q.new_empty(q.transpose(1, 2).shape).transpose(1, 2)
    exact = q.new_empty(0, dtype=torch.promote_types(q.dtype, torch.float32))
    return out, exact.new_empty(k.shape[0], k.shape[2]), exact.new_empty(q.shape[:3])


@register_flop_formula(torch.ops.mmsgformer.chunked_attention)
def _(q_shape: torch.Size, k_shape: torch.Size, *_: object, **__: object) -> int:
    """For torch's FlopCounterMode: q k^T and its product with v, two operations per multiplication."""
    return 4 * prod(q_shape) * k_shape[2]


@custom_op(
    'mmsgformer::chunked_attention_backward',
    '(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? valid) -> (Tensor, Tensor, Tensor)',
)
def _chunked_attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, of their shapes, contiguous, from that of the output."""
    scaled_q, k_per_head, v_per_head = _contiguous_per_head(q, k, v)
    grad_q = torch.empty_like(scaled_q)
    # Summed up transposed, as the products come: (B, heads, d, K).
    grad_k, grad_v = torch.zeros_like(k_per_head.mT), torch.zeros_like(v_per_head.mT)
    with torch.autocast(q.device.type, enabled=False):
        for images, head, rows in _chunks(q, k):
            logits = _logits(scaled_q[images, head, rows], k_per_head[images, head], valid, images)
            weights = logits.softmax(dim=-1)
            grad = grad_out[images, head, rows].to(weights.dtype).contiguous()
            grad_v[images, head] += _matmul_transposed(grad.mT, weights.mT)
            grad_weights = _matmul_transposed(grad, v_per_head[images, head])
            grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q[images, head, rows] = _matmul_transposed(grad_logits, k_per_head[images, head].mT)
            grad_k[images, head] += _matmul_transposed(scaled_q[images, head, rows].mT, grad_logits.mT)
    grad_q *= q.shape[-1] ** -0.5
    return grad_q.to(q.dtype), grad_k.mT.to(q.dtype).contiguous(), grad_v.mT.to(q.dtype).contiguous()


@_chunked_attention_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _refuse_second_derivative(ctx: FunctionCtx, *_: Tensor) -> None:
    raise RuntimeError(
        'attention with column means has no second derivative in this backend; build the backbone with '
        "attn_backend='reference' and run it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
    )


_chunked_attention_backward.register_autograd(_refuse_second_derivative)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    on_cpu = inputs[0].device.type == 'cpu'
    ctx.fused = HAS_FUSED_CPU_ATTENTION and on_cpu and not quicker_than_torch(*inputs[:2])
    ctx.save_for_backward(*inputs, *(output[::2] if ctx.fused else ()))


def _backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, valid, *out_and_lse = ctx.saved_tensors
    # With create_graph torch's fused gradient would fail later, and not say what to do.
    if not ctx.fused or torch.is_grad_enabled():
        return *_chunked_attention_backward(grad, q, k, v, valid), None
    mask = None
    if valid is not None:
        mask = torch.zeros_like(valid, dtype=q.dtype).masked_fill_(~valid, -torch.inf)[:, None, None, :]
    # What the gradient of scaled_dot_product_attention calls on a CPU.
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return *backward(grad, q, k, v, *out_and_lse, 0.0, False, attn_mask=mask), None


chunked_attention.register_autograd(_backward, setup_context=_save)


def _contiguous_per_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
    logits = _matmul_transposed(queries, keys)
    return logits if valid is None else logits.masked_fill_(~valid[images, None, None], -torch.inf)


def _matmul_transposed(x: Tensor, y: Tensor) -> Tensor:
    """x (images, heads, N, c) @ y (images, heads, M, c)^T -> (images, heads, N, M)."""
    if len(x) == x.shape[1] == 1 and onednn_pays(x, y):
        return onednn_linear(x[0, 0], y[0, 0])[None, None]
    return x @ y.mT
