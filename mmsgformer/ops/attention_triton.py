"""Column means of a softmax matrix on a GPU, without storing the matrix.

Two Triton kernels: the rows' log-sum-exp, unless torch's attention has told it, and the sums of the columns.
Each program adds up in a fixed order, so results repeat bit for bit. Sums are in float32 or better.
TRITON_INTERPRET=1, set before Triton is imported, runs them on a CPU.
"""

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmsgformer.compat import custom_op
from mmsgformer.ops.attention_chunked import chunked_attention

_ROWS = 64
_COLUMNS = 64
# The queries are cut into at most this many parts, each summed by its own programs.
_MAX_PARTS = 64


@triton.jit
def load_rows(
    pointer, index, size, channel, head_dim, stride_token, stride_channel, widen: tl.constexpr
):  # fmt: skip
    """Rows `index` of a (size, head_dim) matrix, zero outside of it; in float32 with `widen`."""
    offsets = index[:, None] * stride_token + channel[None, :] * stride_channel
    inside = (index[:, None] < size) & (channel[None, :] < head_dim)
    x = tl.load(pointer + offsets, mask=inside, other=0.0)
    return x.to(tl.float32) if widen else x


@triton.jit
def _key_is_real(valid, batch, key, num_keys, has_valid: tl.constexpr):
    """Which of these keys exist and are not padding."""
    is_real = key < num_keys
    if has_valid:
        is_real = is_real & (tl.load(valid + batch * num_keys + key, mask=is_real, other=0) != 0)
    return is_real


@triton.jit
def _row_lse_kernel(
    q, k, valid, lse, heads, num_queries, num_keys, head_dim,
    q_batch, q_head, q_token, q_channel, k_batch, k_head, k_token, k_channel,
    scale: tl.constexpr, has_valid: tl.constexpr, widen: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of each query's logits; program (group, block of queries)."""
    group = tl.program_id(0).to(tl.int64)
    batch, head = group // heads, group % heads
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    query = tl.program_id(1) * rows + tl.arange(0, rows)
    channel = tl.arange(0, channels)
    queries = load_rows(q, query, num_queries, channel, head_dim, q_token, q_channel, widen)
    sum_type = lse.dtype.element_ty
    largest = tl.full((rows,), float('-inf'), sum_type)
    total = tl.zeros((rows,), sum_type)
    for start in range(0, num_keys, columns):
        key = start + tl.arange(0, columns)
        keys = load_rows(k, key, num_keys, channel, head_dim, k_token, k_channel, widen)
        is_real = _key_is_real(valid, batch, key, num_keys, has_valid)
        logits = tl.dot(queries, tl.trans(keys), input_precision='ieee', out_dtype=sum_type) * scale
        logits = tl.where(is_real[None, :], logits, float('-inf'))
        larger = tl.maximum(largest, tl.max(logits, axis=1))
        # A row that has met padding only so far has -inf for its largest logit: -inf - -inf is no number.
        finite = tl.where(larger == float('-inf'), 0.0, larger)
        total = total * tl.exp(largest - finite) + tl.sum(tl.exp(logits - finite[:, None]), axis=1)
        largest = larger
    tl.store(lse + group * num_queries + query, largest + tl.log(total), mask=query < num_queries)


@triton.jit
def _column_sums_kernel(
    q, k, valid, lse, sums, heads, num_queries, num_keys, head_dim, part_size,
    q_batch, q_head, q_token, q_channel, k_batch, k_head, k_token, k_channel,
    scale: tl.constexpr, has_valid: tl.constexpr, widen: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, channels: tl.constexpr,
):  # fmt: skip
    """Sums of the softmax over a part's queries; program (group, block of keys, part of the queries)."""
    group = tl.program_id(0).to(tl.int64)
    batch, head = group // heads, group % heads
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    key = tl.program_id(1) * columns + tl.arange(0, columns)
    part = tl.program_id(2)
    channel = tl.arange(0, channels)
    keys = load_rows(k, key, num_keys, channel, head_dim, k_token, k_channel, widen)
    is_real = _key_is_real(valid, batch, key, num_keys, has_valid)
    sum_type = sums.dtype.element_ty
    total = tl.zeros((columns,), sum_type)
    for start in range(part * part_size, tl.minimum((part + 1) * part_size, num_queries), rows):
        query = start + tl.arange(0, rows)
        queries = load_rows(q, query, num_queries, channel, head_dim, q_token, q_channel, widen)
        counts = query < num_queries
        row_lse = tl.load(lse + group * num_queries + query, mask=counts, other=0.0)
        if has_valid:  # self-attention: queries are padding where the keys are
            counts = _key_is_real(valid, batch, query, num_keys, has_valid)
        logits = tl.dot(queries, tl.trans(keys), input_precision='ieee', out_dtype=sum_type) * scale
        # A log-sum-exp that was told is of products that were rounded otherwise: no weight is above 1.
        logits = tl.minimum(logits - row_lse[:, None], 0.0)
        logits = tl.where(counts[:, None] & is_real[None, :], logits, float('-inf'))
        total += tl.sum(tl.exp(logits), axis=0)
    tl.store(sums + (group * tl.num_programs(2) + part) * num_keys + key, total, mask=key < num_keys)


@custom_op(
    'mmsgformer::triton_column_means',
    '(Tensor q, Tensor k, Tensor? valid, Tensor? lse=None, bool may_fall_back=False) -> Tensor',
)
def triton_column_means(
    q: Tensor, k: Tensor, valid: Tensor | None, lse: Tensor | None = None, may_fall_back: bool = False
) -> Tensor:
    """Column means of softmax(q k^T / sqrt(d)) over heads and queries.

    Args:
        q: Queries, (B, heads, Q, d), d at most 128.
        k: Keys, (B, heads, K, d), of the same type.
        valid: True where a key, and the query of the same index, is real, (B, K); None: everywhere.
            Padding contributes 0.
        lse: Log-sum-exp of every query's logits, (B, heads, Q), in float32 or better; None: it is computed.
        may_fall_back: Compute them in chunks, with a warning, where Triton cannot compile for this device.

    Returns:
        Means (B, K) in float32 or better.
    """
    if may_fall_back and not runs_here(_column_means, q.device, q.dtype, q.shape[-1]):
        return chunked_attention(q, k, k, valid)[1]
    return _column_means(q, k, valid, lse)


@triton_column_means.register_fake
def _(q: Tensor, k: Tensor, *_: object, **__: object) -> Tensor:
    return q.new_empty(k.shape[0], k.shape[2], dtype=torch.promote_types(q.dtype, torch.float32))


@functools.cache
def runs_here(
    kernels: Callable[[Tensor, Tensor, Tensor], object],
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
) -> bool:
    """Whether kernels run on this device, for heads of this type and width; tried once, else a warning.

    Triton needs a C compiler and Python's headers, and not every GPU has the shared memory or the types.

    Args:
        kernels: Runs them, given queries and keys (B, heads, N, d) and which tokens are real (B, N).
        device: Where.
        dtype: Of the queries and keys.
        head_dim: d.
    """
    try:
        tokens = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
        kernels(tokens, tokens, torch.ones(1, 64, dtype=torch.bool, device=device))
    except Exception as error:  # of many kinds, by what is missing
        reason = str(error).partition('\n')[0] or type(error).__name__
        warnings.warn(
            f'Triton cannot run on {device} with heads of {head_dim} channels in {dtype} ({reason}): '
            'attention is computed without it, more slowly. It needs a C compiler and the headers of Python',
            stacklevel=2,
        )
        return False
    return True


def _column_means(q: Tensor, k: Tensor, valid: Tensor | None, lse: Tensor | None = None) -> Tensor:
    """`triton_column_means` by the kernels."""
    batch, heads, num_queries, head_dim = q.shape
    num_keys = k.shape[2]
    groups = batch * heads
    dtype = torch.promote_types(q.dtype, torch.float32)
    has_lse = lse is not None
    lse = lse.contiguous() if has_lse else torch.empty(groups, num_queries, dtype=dtype, device=q.device)
    query_blocks = triton.cdiv(num_queries, _ROWS)
    part_size = triton.cdiv(query_blocks, _MAX_PARTS) * _ROWS
    parts = triton.cdiv(num_queries, part_size)
    sums = torch.empty(groups, parts, num_keys, dtype=dtype, device=q.device)
    mask = kernel_mask(q, valid)
    sizes = (heads, num_queries, num_keys, head_dim)
    strides = (*q.stride(), *k.stride())
    constants = {
        'scale': head_dim**-0.5,
        'has_valid': valid is not None,
        # Triton's interpreter takes the bits of bfloat16 for integers in tl.dot.
        'widen': q.dtype == torch.bfloat16 and not q.is_cuda,
        'rows': _ROWS,
        'columns': _COLUMNS,
        'channels': max(16, triton.next_power_of_2(head_dim)),
    }
    if groups:
        with on_device_of(q):
            # The groups (windows among them) come first: the other axes of a grid end at 65535.
            if not has_lse:
                _row_lse_kernel[groups, query_blocks](q, k, mask, lse, *sizes, *strides, **constants)
            grid = (groups, triton.cdiv(num_keys, _COLUMNS), parts)
            _column_sums_kernel[grid](q, k, mask, lse, sums, *sizes, part_size, *strides, **constants)
    return sums.view(batch, heads * parts, num_keys).sum(dim=1) / (heads * num_queries)


def kernel_mask(q: Tensor, valid: Tensor | None) -> Tensor:
    """Which tokens are real, as kernels read it; without a mask any tensor, whose pointer is not read."""
    return q if valid is None else valid.to(torch.uint8).contiguous()


def on_device_of(q: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, whatever device the tensors are on."""
    return torch.cuda.device(q.device) if q.is_cuda else nullcontext()
