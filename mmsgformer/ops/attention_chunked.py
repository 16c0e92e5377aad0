"""Attention and its column means, a chunk of the softmax matrix at a time: memory linear in the tokens.

Both come out of one pass, on any device. On CPUs an operator in C++ does that and the backward pass, where it
can be built; else the backward pass is torch's fused attention's there, and elsewhere makes each chunk again.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from mmsgformer.compat import HAS_FUSED_CPU_ATTENTION, custom_op, register_flop_formula
from mmsgformer.ops import attention_cpu

# Elements of the softmax matrix per chunk: on a CPU as many as stay in its cache.
_CHUNK_ELEMENTS = {'cpu': 1 << 19}
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 24


@custom_op(
    'mmsgformer::chunked_attention',
    '(Tensor q, Tensor k, Tensor v, Tensor? valid) -> (Tensor, Tensor, Tensor)',
)
def chunked_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v, and the column means of the softmax matrix.

    On a CPU by the operator in C++ where it can be built, up to float32. Opaque to torch.compile, which would
    unroll the loop.

    Args:
        q: Queries, (B, heads, Q, d), of one type with k and v (B, heads, K, d).
        valid: True where a key, and the query of the same index, is real, (B, K); None: everywhere.

    Returns:
        The output (B, heads, Q, d) in q's dtype; the means over heads and queries (B, K), to which padded
        queries and keys contribute 0; the log-sum-exp of every query's logits (B, heads, Q). The last two are
        in float32 or better and have no gradient.
    """
    if attention_cpu.fits(q):
        return attention_cpu.attend(q, k, v, valid)
    batch, heads, num_queries = q.shape[:3]
    out = empty_by_token(q)
    scaled_q, k_per_head, v_per_head = _contiguous_per_head(q, k, v)
    sums, lse = k_per_head.new_zeros(batch, k.shape[2]), k_per_head.new_empty(q.shape[:3])
    with torch.autocast(q.device.type, enabled=False):
        for images, head, rows in _chunks(q, k):
            logits = _logits(scaled_q[images, head, rows], k_per_head[images, head], valid, images)
            weights = logits.softmax(dim=-1)
            lse[images, head, rows] = logits.amax(dim=-1) - weights.amax(dim=-1).log_()
            out[images, head, rows] = (weights @ v_per_head[images, head]).to(q.dtype)
            if valid is not None:
                weights *= valid[images, None, rows, None]
            sums[images] += weights.sum(dim=(1, 2))
    return out, sums / (heads * num_queries), lse


@chunked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    out = empty_by_token(q)
    exact = q.new_empty(0, dtype=torch.promote_types(q.dtype, torch.float32))
    return out, exact.new_empty(k.shape[0], k.shape[2]), exact.new_empty(q.shape[:3])


def attention_flops(q_shape: torch.Size, k_shape: torch.Size, *_: object, **__: object) -> int:
    """For torch's FlopCounterMode: q k^T and its product with v, two operations per multiplication."""
    return 4 * prod(q_shape) * k_shape[2]


def attention_gradient_flops(
    grad_shape: torch.Size, q_shape: torch.Size, k_shape: torch.Size, *_: object, **__: object
) -> int:
    """Of q k^T again, and of four products for the gradients, as of torch's own fused attention."""
    return 10 * prod(q_shape) * k_shape[2]


register_flop_formula(torch.ops.mmsgformer.chunked_attention)(attention_flops)


@custom_op(
    'mmsgformer::chunked_attention_backward',
    '(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? valid, Tensor? out, Tensor? lse)'
    ' -> (Tensor, Tensor, Tensor)',
)
def chunked_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, of their shapes, from that of the output; heads are next to each other.

    `out` and `lse` are what `chunked_attention` gave, for the operator in C++.
    """
    if attention_cpu.fits(q):
        return attention_cpu.attend_backward(grad_out, q, k, v, valid, out, lse)
    scaled_q, k_per_head, v_per_head = _contiguous_per_head(q, k, v)
    grad_q, grad_k, grad_v = (
        x.new_zeros(x.transpose(1, 2).shape).transpose(1, 2) for x in (scaled_q, k_per_head, v_per_head)
    )
    with torch.autocast(q.device.type, enabled=False):
        for images, head, rows in _chunks(q, k):
            logits = _logits(scaled_q[images, head, rows], k_per_head[images, head], valid, images)
            weights = logits.softmax(dim=-1)
            grad = grad_out[images, head, rows].to(weights.dtype).contiguous()
            grad_v[images, head] += weights.mT @ grad
            grad_weights = grad @ v_per_head[images, head].mT
            grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q[images, head, rows] = grad_logits @ k_per_head[images, head]
            grad_k[images, head] += grad_logits.mT @ scaled_q[images, head, rows]
    grad_q *= q.shape[-1] ** -0.5
    return grad_q.to(q.dtype), grad_k.to(q.dtype), grad_v.to(q.dtype)


@chunked_attention_backward.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(empty_by_token(x) for x in (q, k, v))


def refuse_second_derivative(ctx: FunctionCtx, *_: Tensor) -> None:
    """The gradient of a gradient: an error that says what has one."""
    raise RuntimeError(
        'attention with column means has no second derivative in this backend; build the backbone with '
        "attn_backend='reference' and run it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
    )


register_flop_formula(torch.ops.mmsgformer.chunked_attention_backward)(attention_gradient_flops)
chunked_attention_backward.register_autograd(refuse_second_derivative)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *(output[::2] if inputs[0].device.type == 'cpu' else (None, None)))


def _backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, valid, out, lse = ctx.saved_tensors
    fused = HAS_FUSED_CPU_ATTENTION and q.device.type == 'cpu' and not attention_cpu.fits(q)
    # With create_graph torch's fused gradient would fail later, and not say what to do.
    if not fused or torch.is_grad_enabled():
        return *chunked_attention_backward(grad, q, k, v, valid, out, lse), None
    mask = None
    if valid is not None:
        mask = torch.zeros_like(valid, dtype=q.dtype).masked_fill_(~valid, -torch.inf)[:, None, None, :]
    # What the gradient of scaled_dot_product_attention calls on a CPU.
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return *backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask), None


chunked_attention.register_autograd(_backward, setup_context=_save)


def empty_by_token(x: Tensor) -> Tensor:
    """Of x's shape (B, heads, N, d), in memory (B, N, heads, d): a token's heads are joined next."""
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)


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
    logits = queries @ keys.mT
    return logits if valid is None else logits.masked_fill_(~valid[images, None, None], -torch.inf)
