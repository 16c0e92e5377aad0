"""Softmax attention that also returns how much attention each key receives.

SG-Former reads the significance of an image region off its own attention: the mean, over queries and
heads, of the attention paid to a key, i.e. the column mean of the softmax matrix (docs/method.md,
"Significance").
"""

import itertools
import os

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from mmsgformer.compat import HAS_TRITON, is_compiling, is_exporting
from mmsgformer.ops.attention_choice import ours_is_quicker
from mmsgformer.ops.attention_chunked import chunked_attention

# A block of queries and one of keys must fit into a GPU's shared memory.
_MAX_TRITON_HEAD_DIM = 128
# Images or windows: CUDA's grids end there, and torch's attention does not cut them (pytorch/pytorch#142228).
_MAX_CUDA_BATCH = 65535
BACKENDS = ('auto', 'reference', 'chunked', 'triton')


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, on a CPU our operator where that is quicker.

    Args:
        q: Queries, (B, heads, Q, d).
        k: Keys, (B, heads, K, d).
        v: Values, (B, heads, K, d).
        dropout_p: Dropout on the attention weights.
        bias: Added to the logits, (B or 1, heads or 1, Q or 1, K).
    """
    plain = not is_compiling() and bias is None and dropout_p == 0 and not _has_tangent(q, k, v)
    # Within sdpa_kernel(MATH), as for second derivatives, none is to be fused.
    if plain and torch.backends.cuda.flash_sdp_enabled() and ours_is_quicker(q, k):
        return chunked_attention(q, k, v, None)[0]
    return _torch_attention(q, k, v, bias, dropout_p)


def attention_with_column_means(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None = None,
    dropout_p: float = 0.0,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor]:
    """Attention, and the mean attention that every key receives.

    Args:
        q: Queries, (B, heads, Q, d).
        k: Keys, (B, heads, K, d).
        v: Values, (B, heads, K, d).
        valid: For self-attention over padded tokens (Q = K): True where a token is real, (B, K), at least
            one per row. Padding receives no attention; as a query it pays none, but counts in the means.
        dropout_p: Dropout on the attention weights of the output; the means are those without dropout.
        backend: 'reference' holds the whole softmax matrix, 'chunked' a chunk of it at a time, on any device.
            'triton' is kernels for GPUs: for all of it in windows of at most 64 tokens (heads of at most 32
            channels, no dropout), else for the means, beside torch's fused attention.
            'auto': 'triton' where it runs, else 'chunked'.

    Returns:
        The output (B, heads, Q, d) in v's dtype and the means over heads and all Q queries (B, K), float32 or
        better, without gradient.

    Raises:
        ValueError: There is no such backend.
        RuntimeError: The backend cannot run here; the message says why.
        NotImplementedError: A forward-mode derivative is asked of another backend than 'reference'.
    """
    if is_exporting():
        return _plain_attention(q, k, v, valid)
    may_fall_back = backend == 'auto'
    backend = _choose_backend(backend, q)
    if backend == 'reference':
        return attention_with_column_means_reference(q, k, v, valid, dropout_p)
    if _has_tangent(q, k, v):
        raise NotImplementedError(
            f'attention with column means has no forward-mode derivative in the backend {backend!r}, but in '
            "'reference' (attn_backend)"
        )
    if backend == 'chunked' and dropout_p == 0:
        out, means, _ = chunked_attention(q, k, v, valid)
        return out, means.detach()
    if backend == 'triton' and dropout_p == 0 and q.shape == k.shape == v.shape:
        from mmsgformer.ops import attention_triton_windows as windows  # Triton is optional

        if q.shape[2] <= windows.MAX_TOKENS and q.shape[3] <= windows.MAX_HEAD_DIM:
            out, means = windows.triton_window_attention(q, k, v, valid, may_fall_back)
            return out, means.detach()
    lse = None
    if backend == 'triton' and valid is None:
        out, lse = _torch_attention_and_lse(q, k, v, dropout_p)
    else:
        out = _torch_attention(q, k, v, None if valid is None else valid[:, None, None, :], dropout_p)
    with torch.no_grad():
        if backend == 'chunked':
            return out, chunked_attention(q, k, v, valid)[1]
        from mmsgformer.ops.attention_triton import triton_column_means  # Triton is optional

        return out, triton_column_means(q, k, valid, lse, may_fall_back)


def _has_tangent(*tensors: Tensor) -> bool:
    """Whether forward-mode derivatives are under way, which an operator of ours would take for zero."""
    return not is_compiling() and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attention_with_column_means` in operators that every exporter knows, with the whole softmax matrix."""
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    if valid is None:
        weights = logits.softmax(dim=-1)
        return weights @ v, weights.mean(dim=(1, 2))
    weights = logits.masked_fill(~valid[:, None, None], -torch.inf).softmax(dim=-1)
    return weights @ v, (weights * valid[:, None, :, None]).mean(dim=(1, 2))


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """torch's attention of q (B, heads, Q, d) to k and v (B, heads, K, d); mask (B or 1, ...) as torch's."""
    if q.is_cuda and len(q) > _MAX_CUDA_BATCH:
        parts = (
            x.split(_MAX_CUDA_BATCH) if x is not None and len(x) > 1 else itertools.repeat(x)
            for x in (q, k, v, mask)
        )
        return torch.cat([_torch_attention(*part, dropout_p) for part in zip(*parts, strict=False)])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


def _torch_attention_and_lse(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float
) -> tuple[Tensor, Tensor | None]:
    """`_torch_attention`, and the log-sum-exp of every query's logits (B, heads, Q) if its kernel knows it.

    By two of the operators that scaled_dot_product_attention calls; they return what they keep for gradients.
    """
    # torch.compile does not know SDPAParams.
    if q.is_cuda and 0 < len(q) <= _MAX_CUDA_BATCH and not is_compiling():
        cuda, aten = torch.backends.cuda, torch.ops.aten
        params = cuda.SDPAParams(q, k, v, None, dropout_p, False, False)
        if q.shape[-1] % 8 == 0 and cuda.can_use_flash_attention(params):
            return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p)[:2]
        if cuda.can_use_efficient_attention(params):
            out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, dropout_p)
            return out, lse[..., : q.shape[2]]  # it is padded
    return _torch_attention(q, k, v, None, dropout_p), None


def check_backend(backend: str) -> None:
    """Raise a ValueError if there is no backend of this name."""
    if backend not in BACKENDS:
        raise ValueError(f'the attention backend must be one of {", ".join(BACKENDS)}, got {backend!r}')


def _choose_backend(backend: str, q: Tensor) -> str:
    """The backend to use for these queries."""
    check_backend(backend)
    if backend == 'auto':
        # The kernels are for training types; in float64 nobody is in a hurry.
        fits = q.is_cuda and q.dtype != torch.float64 and q.shape[-1] <= _MAX_TRITON_HEAD_DIM
        return 'triton' if fits and HAS_TRITON else 'chunked'
    if backend == 'triton' and not HAS_TRITON:
        raise RuntimeError(
            "the attention backend 'triton' cannot run: there is no Triton 3.4, which came with torch 2.8"
        )
    if backend == 'triton' and not q.is_cuda and os.environ.get('TRITON_INTERPRET') != '1':
        raise RuntimeError(
            f"the attention backend 'triton' cannot run: the tensors are on {q.device.type}; it needs a GPU, "
            'or TRITON_INTERPRET=1 to be tested'
        )
    if backend == 'triton' and q.shape[-1] > _MAX_TRITON_HEAD_DIM:
        raise RuntimeError(
            f"the attention backend 'triton' cannot run: heads have {q.shape[-1]} channels, it takes at most "
            f'{_MAX_TRITON_HEAD_DIM}'
        )
    return backend


def attention_with_column_means_reference(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`attention_with_column_means` as the formula says it, with the whole softmax matrix in memory."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    outs, means = [], []
    for b in range(q.shape[0]):
        logits = q[b].to(dtype) @ k[b].to(dtype).transpose(-2, -1) / q.shape[-1] ** 0.5
        if valid is not None:
            logits[:, :, ~valid[b]] = -torch.inf
        weights = logits.softmax(dim=-1)
        outs.append(F.dropout(weights, dropout_p) @ v[b].to(dtype))
        if valid is not None:
            weights = weights * valid[b, :, None]
        means.append(weights.detach().mean(dim=(0, 1)))
    return torch.stack(outs).to(v.dtype), torch.stack(means)
