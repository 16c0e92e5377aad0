"""Attention within windows and its column means on a GPU: one Triton kernel forward, one backward.

A window of at most 64 tokens is one tile: its softmax matrix never leaves the registers, and no mask is made
of the padding. Results repeat bit for bit. Sums are in float32 or better. TRITON_INTERPRET=1, set before
Triton is imported, runs the kernels on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from mmsgformer.compat import custom_op, register_flop_formula
from mmsgformer.ops.attention_chunked import (
    attention_flops,
    attention_gradient_flops,
    chunked_attention,
    chunked_attention_backward,
    empty_by_token,
    refuse_second_derivative,
)
from mmsgformer.ops.attention_triton import kernel_mask, load_rows, on_device_of, runs_here

MAX_TOKENS = 64
# In float32 the tiles of wider heads do not fit into the registers, nor into the shared memory of small GPUs.
MAX_HEAD_DIM = 32


@triton.jit
def _softmax(
    queries, keys, valid, window, token, tokens,
    scale: tl.constexpr, has_valid: tl.constexpr, sum_type: tl.constexpr,
):  # fmt: skip
    """Attention of a window's tokens to its real ones (tokens, tokens), and which are real."""
    is_real = token < tokens
    if has_valid:
        is_real = is_real & (tl.load(valid + window * tokens + token, mask=is_real, other=0) != 0)
    logits = tl.dot(queries, tl.trans(keys), input_precision='ieee', out_dtype=sum_type) * scale
    logits = tl.where(is_real[None, :], logits, float('-inf'))
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None], is_real


@triton.jit
def _window_forward_kernel(
    q, k, v, valid, out, means, heads, tokens, head_dim,
    q_window, q_head, q_token, q_channel, k_window, k_head, k_token, k_channel,
    v_window, v_head, v_token, v_channel, out_window, out_head, out_token,
    scale: tl.constexpr, has_valid: tl.constexpr, widen: tl.constexpr,
    size: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Output and means of a window, head by head; program (window)."""
    window = tl.program_id(0).to(tl.int64)
    token, channel = tl.arange(0, size), tl.arange(0, channels)
    inside = (token[:, None] < tokens) & (channel[None, :] < head_dim)
    sum_type = means.dtype.element_ty
    received = tl.zeros((size,), sum_type)
    for head in range(heads):
        q_start, k_start = q + window * q_window + head * q_head, k + window * k_window + head * k_head
        v_start = v + window * v_window + head * v_head
        queries = load_rows(q_start, token, tokens, channel, head_dim, q_token, q_channel, widen)
        keys = load_rows(k_start, token, tokens, channel, head_dim, k_token, k_channel, widen)
        values = load_rows(v_start, token, tokens, channel, head_dim, v_token, v_channel, widen)
        weights, is_real = _softmax(queries, keys, valid, window, token, tokens, scale, has_valid, sum_type)
        received += tl.sum(tl.where(is_real[:, None], weights, 0.0), axis=0)  # padding pays none
        product = tl.dot(weights.to(values.dtype), values, input_precision='ieee', out_dtype=sum_type)
        place = window * out_window + head * out_head + token[:, None] * out_token + channel[None, :]
        tl.store(out + place, product, mask=inside)
    tl.store(means + window * tokens + token, received / (heads * tokens), mask=token < tokens)


@triton.jit
def _window_backward_kernel(
    grad, q, k, v, valid, grad_q, grad_k, grad_v, tokens, head_dim,
    grad_window, grad_head, grad_token, grad_channel, q_window, q_head, q_token, q_channel,
    k_window, k_head, k_token, k_channel, v_window, v_head, v_token, v_channel,
    out_window, out_head, out_token,
    scale: tl.constexpr, has_valid: tl.constexpr, widen: tl.constexpr,
    size: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Gradients of a window's queries, keys and values; program (window, head)."""
    window, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    token, channel = tl.arange(0, size), tl.arange(0, channels)
    inside = (token[:, None] < tokens) & (channel[None, :] < head_dim)
    sum_type: tl.constexpr = tl.float64 if q.dtype.element_ty == tl.float64 else tl.float32
    grad += window * grad_window + head * grad_head
    q += window * q_window + head * q_head
    k += window * k_window + head * k_head
    v += window * v_window + head * v_head
    place = window * out_window + head * out_head + token[:, None] * out_token + channel[None, :]
    queries = load_rows(q, token, tokens, channel, head_dim, q_token, q_channel, widen)
    keys = load_rows(k, token, tokens, channel, head_dim, k_token, k_channel, widen)
    values = load_rows(v, token, tokens, channel, head_dim, v_token, v_channel, widen)
    grads = load_rows(grad, token, tokens, channel, head_dim, grad_token, grad_channel, widen)
    weights, _ = _softmax(queries, keys, valid, window, token, tokens, scale, has_valid, sum_type)
    of_values = tl.dot(tl.trans(weights.to(grads.dtype)), grads, input_precision='ieee', out_dtype=sum_type)
    tl.store(grad_v + place, of_values, mask=inside)
    of_weights = tl.dot(grads, tl.trans(values), input_precision='ieee', out_dtype=sum_type)
    of_logits = weights * (of_weights - tl.sum(weights * of_weights, axis=1)[:, None]) * scale
    of_logits = of_logits.to(keys.dtype)
    tl.store(grad_q + place, tl.dot(of_logits, keys, input_precision='ieee', out_dtype=sum_type), mask=inside)
    of_keys = tl.dot(tl.trans(of_logits), queries, input_precision='ieee', out_dtype=sum_type)
    tl.store(grad_k + place, of_keys, mask=inside)


@custom_op(
    'mmsgformer::triton_window_attention',
    '(Tensor q, Tensor k, Tensor v, Tensor? valid, bool may_fall_back=False) -> (Tensor, Tensor)',
)
def triton_window_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, may_fall_back: bool = False
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v within each window, and the column means of the softmax matrix.

    Args:
        q: Queries, (B, heads, N, d), of one type with the keys and values of the same shape; N at most 64.
        valid: True where a token is real, (B, N), at least one per row; None: everywhere.
        may_fall_back: Compute them in chunks, with a warning, where Triton cannot compile for this device.

    Returns:
        The output (B, heads, N, d) in q's dtype and the means over heads and queries (B, N) in float32 or
        better, to which padded queries and keys contribute 0, without gradient.
    """
    if may_fall_back and not runs_here(_both_kernels, q.device, q.dtype, q.shape[-1]):
        return chunked_attention(q, k, v, valid)[:2]
    return _run_forward(q, k, v, valid)


@triton_window_attention.register_fake
def _(q: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    return _empty_results(q)


register_flop_formula(torch.ops.mmsgformer.triton_window_attention)(attention_flops)


@custom_op(
    'mmsgformer::triton_window_attention_backward',
    '(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? valid, bool may_fall_back)'
    ' -> (Tensor, Tensor, Tensor)',
)
def _window_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, may_fall_back: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, of their shapes, from that of the output."""
    if may_fall_back and not runs_here(_both_kernels, q.device, q.dtype, q.shape[-1]):
        return chunked_attention_backward(grad, q, k, v, valid, None, None)
    return _run_backward(grad, q, k, v, valid)


@_window_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(empty_by_token(x) for x in (q, k, v))


register_flop_formula(torch.ops.mmsgformer.triton_window_attention_backward)(attention_gradient_flops)
_window_attention_backward.register_autograd(refuse_second_derivative)


def _save(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.may_fall_back = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_window_attention_backward(grad, *ctx.saved_tensors, ctx.may_fall_back), None, None


triton_window_attention.register_autograd(_backward, setup_context=_save)


def _run_forward(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """`triton_window_attention` by its kernel."""
    out, means = _empty_results(q)
    batch, heads, tokens, head_dim = q.shape
    mask = kernel_mask(q, valid)
    strides = (*q.stride(), *k.stride(), *v.stride(), *out.stride()[:3])
    if batch:
        with on_device_of(q):
            _window_forward_kernel[(batch,)](
                q, k, v, mask, out, means, heads, tokens, head_dim, *strides, **_constants(q, valid)
            )
    return out, means


def _run_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`_window_attention_backward` by its kernel."""
    grads = tuple(empty_by_token(x) for x in (q, k, v))
    batch, heads, tokens, head_dim = q.shape
    mask = kernel_mask(q, valid)
    strides = (*grad.stride(), *q.stride(), *k.stride(), *v.stride(), *grads[0].stride()[:3])
    if batch:
        with on_device_of(q):
            _window_backward_kernel[batch, heads](
                grad, q, k, v, mask, *grads, tokens, head_dim, *strides, **_constants(q, valid)
            )
    return grads


def _both_kernels(q: Tensor, k: Tensor, valid: Tensor) -> None:
    """Forward and backward: either both run here, or neither is used."""
    _run_forward(q, k, k, valid)
    _run_backward(q, q, k, k, valid)


def _empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, heads, N, d) and means (B, N)."""
    means = q.new_empty(q.shape[0], q.shape[2], dtype=torch.promote_types(q.dtype, torch.float32))
    return empty_by_token(q), means


def _constants(q: Tensor, valid: Tensor | None) -> dict:
    """What the kernels are compiled for."""
    head_dim = q.shape[-1]
    return {
        'scale': head_dim**-0.5,
        'has_valid': valid is not None,
        # Triton's interpreter takes the bits of bfloat16 for integers in tl.dot.
        'widen': q.dtype == torch.bfloat16 and not q.is_cuda,
        'size': max(16, triton.next_power_of_2(q.shape[2])),
        'channels': max(16, triton.next_power_of_2(head_dim)),
        # So that nothing is spilled; the next head's tiles are not loaded ahead, which takes room.
        'num_warps': 4 if q.dtype.itemsize == 2 else 8,
        'num_stages': 1,
    }
