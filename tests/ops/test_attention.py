"""Every backend of attention with column means against the reference."""

import os
from types import SimpleNamespace

import pytest
import torch
from older_torch import NEEDS_TRITON
from tolerances import OPERATOR, assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmsgformer.ops import (
    attention,
    attention_chunked,
    attention_cpu,
    attention_triton,
    attention_triton_windows,
    attention_with_column_means,
)

SHAPES = [(2, 1, 49, 49, 16), (3, 4, 49, 49, 32), (1, 4, 130, 17, 24), (3, 2, 1, 5, 32), (2, 3, 64, 64, 64)]
# The Triton kernels are interpreted on a CPU; with `cuda` here all of this file runs on a GPU.
DEVICE = os.environ.get('MMSGFORMER_TEST_DEVICE', 'cpu')
BACKENDS = ['chunked', pytest.param('triton', marks=NEEDS_TRITON)]


def inputs(batch, heads, queries, keys, dim, dtype=torch.float64, scale=1.0):
    """q, k and v as the heads of one projection are: a transposed view of (B, N, heads, d)."""
    torch.manual_seed(0)
    leaves = [
        (scale * torch.randn(batch, n, heads, dim)).to(DEVICE, dtype).requires_grad_()
        for n in (queries, keys, keys)
    ]
    return leaves, [leaf.transpose(1, 2) for leaf in leaves]


def some_valid(batch: int, keys: int) -> torch.Tensor:
    """A mask that differs between the rows and leaves at least one token in each."""
    valid = torch.arange(keys) % 3 != torch.arange(batch)[:, None] % 3
    valid[:, 0] = True
    return valid.to(DEVICE)


def run(backend, shape, valid=None, **how):
    """Output, column means and the gradients at q, k and v."""
    leaves, (q, k, v) = inputs(*shape, **how)
    out, means = attention_with_column_means(q, k, v, valid, backend=backend)
    assert not means.requires_grad
    assert out.dtype == q.dtype
    assert means.dtype == torch.promote_types(q.dtype, torch.float32)
    out.to(means.dtype).square().sum().backward()
    return [out, means, *(leaf.grad for leaf in leaves)]


# A mask is for self-attention, where there are as many queries as keys.
CASES = [(shape, False) for shape in SHAPES] + [(shape, True) for shape in SHAPES if shape[2] == shape[3]]


@pytest.mark.parametrize(('shape', 'masked'), CASES)
@pytest.mark.parametrize('backend', BACKENDS)
def test_agrees_with_the_reference(shape, masked, backend):
    valid = some_valid(shape[0], shape[3]) if masked else None
    ours = run(backend, shape, valid)
    for ours_one, reference in zip(ours, run('reference', shape, valid), strict=True):
        assert_close(ours_one, reference, OPERATOR[torch.float64].backward)
    if masked:
        assert not ours[1][~valid].any()


@pytest.mark.parametrize(('shape', 'masked'), CASES)
@pytest.mark.parametrize('chunk', [1, 300])
def test_the_size_of_chunks_does_not_matter(monkeypatch, shape, masked, chunk):
    monkeypatch.setattr(attention_chunked, '_CHUNK_ELEMENTS', {DEVICE: chunk})
    valid = some_valid(shape[0], shape[3]) if masked else None
    for ours, reference in zip(run('chunked', shape, valid), run('reference', shape, valid), strict=True):
        assert_close(ours, reference, OPERATOR[torch.float64].backward)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('head_dim', [16, 24, 64])
def test_precision(dtype, backend, head_dim):
    """Outputs and gradients are as exact as the type allows, relative to their norm; means are float32's."""
    shape = (2, 2, 150, 70, head_dim)
    ours = run(backend, shape, dtype=dtype)
    leaves, _ = inputs(*shape, dtype=dtype)
    q, k, v = (leaf.detach().double().transpose(1, 2).requires_grad_() for leaf in leaves)
    out, means = attention_with_column_means(q, k, v, backend='reference')
    out.square().sum().backward()
    expected = [out, means, *(t.grad.transpose(1, 2) for t in (q, k, v))]
    of_type, of_means = OPERATOR[dtype], OPERATOR[torch.float32]
    limits = [of_type.forward, of_means.forward, *[of_type.backward] * 3]
    for i, (one, exact, limit) in enumerate(zip(ours, expected, limits, strict=True)):
        assert_close(one, exact, limit, i)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', ['reference', *BACKENDS])
@pytest.mark.parametrize('scale', [30.0, 100.0])
def test_large_activations_stay_finite(dtype, backend, scale):
    """Products of queries and keys past float16's largest number, 65504, and far past exp's."""
    valid = some_valid(2, 60)
    out, means, *_ = run(backend, (2, 2, 60, 60, 32), valid, dtype=dtype, scale=scale)
    assert out.isfinite().all()
    # Logits of 50000 are rounded by 0.004; padded queries pay nothing.
    torch.testing.assert_close(means.sum(1), valid.to(means).mean(1), rtol=0, atol=0.01)


@pytest.mark.parametrize('backend', ['reference', *BACKENDS])
def test_huge_activations_have_finite_means_and_gradients(backend):
    """Logits of 1e12 in bfloat16, and the gradients of logits of 50000 in float32."""
    assert run(backend, (1, 1, 9, 9, 32), dtype=torch.bfloat16, scale=1e6)[1].isfinite().all()
    grads = run(backend, (2, 2, 60, 60, 32), dtype=torch.float32, scale=100.0)[2:]
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


def test_memory_grows_with_the_tokens_only():
    """What is kept for the backward pass has no softmax matrix in it: q, k, v, output, one number per row."""
    _, (q, k, v) = inputs(1, 2, 400, 300, 16, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        attention_with_column_means(q, k, v, backend='chunked')
    assert q.numel() + k.numel() + v.numel() <= sum(kept)
    assert sum(kept) <= 2 * q.numel() + k.numel() + v.numel() + 2 * 400


@pytest.mark.parametrize('backend', BACKENDS)
def test_operations_are_counted(backend):
    """Two products, of two operations per multiplication."""
    _, (q, k, v) = inputs(3, 2, 49, 49, 32, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        attention_with_column_means(q, k, v, backend=backend)
    assert counter.get_total_flops() == 2 * 2 * 3 * 2 * 49 * 49 * 32


@NEEDS_TRITON
def test_operations_of_the_gradient_are_counted():
    """One of the two products again, and four."""
    q = torch.empty(3, 2, 49, 32, device='meta')
    operators = torch.ops.mmsgformer
    with FlopCounterMode(display=False) as counter:
        operators.triton_window_attention_backward(q, q, q, q, None, False)
        assert counter.get_total_flops() == 5 * 2 * 3 * 2 * 49 * 49 * 32
        operators.chunked_attention_backward(q, q, q, q, None, None, None)
    assert counter.get_total_flops() == 2 * 5 * 2 * 3 * 2 * 49 * 49 * 32


@pytest.mark.parametrize('backend', ['reference', *BACKENDS])
def test_dropout_leaves_the_means_alone(backend):
    _, (q, k, v) = inputs(2, 2, 30, 20, 16)
    out, means = attention_with_column_means(q, k, v, backend=backend)
    dropped_out, dropped_means = attention_with_column_means(q, k, v, dropout_p=0.5, backend=backend)
    torch.testing.assert_close(means, dropped_means)
    assert not torch.allclose(out, dropped_out)


@pytest.mark.parametrize(
    ('is_cuda', 'dtype', 'head_dim', 'has_triton', 'expected'),
    [
        (False, torch.float32, 32, True, 'chunked'),
        (True, torch.float32, 32, True, 'triton'),
        (True, torch.bfloat16, 128, True, 'triton'),
        (True, torch.float32, 32, False, 'chunked'),
        (True, torch.float64, 32, True, 'chunked'),
        (True, torch.float32, 256, True, 'chunked'),
    ],
)
def test_auto_takes_the_kernels_where_they_run(is_cuda, dtype, head_dim, has_triton, expected, monkeypatch):
    """The tests of the backends that it takes are its tests too."""
    monkeypatch.setattr(attention, 'HAS_TRITON', has_triton)
    q = SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 1, 4, head_dim))
    assert attention._choose_backend('auto', q) == expected


def test_an_unknown_backend_is_named():
    _, (q, k, v) = inputs(1, 1, 4, 4, 16)
    with pytest.raises(ValueError, match="one of auto, reference, chunked, triton, got 'cuda'"):
        attention_with_column_means(q, k, v, backend='cuda')


@NEEDS_TRITON
@pytest.mark.skipif(DEVICE != 'cpu', reason='on a GPU every backend runs')
def test_a_backend_that_cannot_run_says_why(monkeypatch):
    """And `auto` does without it."""
    _, (q, k, v) = inputs(1, 1, 4, 4, 16)
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    with pytest.raises(RuntimeError, match="'triton' cannot run: the tensors are on cpu; it needs a GPU"):
        attention_with_column_means(q, k, v, backend='triton')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    with pytest.raises(RuntimeError, match='heads have 256 channels, it takes at most 128'):
        attention_with_column_means(*inputs(1, 1, 4, 4, 256)[1], backend='triton')
    monkeypatch.setattr(attention, 'HAS_TRITON', False)
    with pytest.raises(RuntimeError, match=r'there is no Triton 3\.4, which came with'):
        attention_with_column_means(q, k, v, backend='triton')
    attention_with_column_means(q, k, v)


@pytest.mark.parametrize('masked', [False, True, 'alike'])
def test_a_batch_that_is_too_large_for_a_gpu_is_cut(masked, monkeypatch):
    """More windows than a CUDA grid has places; torch's attention does not cut them itself."""

    class OnGpu(torch.Tensor):
        is_cuda = True

    _, (q, k, v) = inputs(7, 2, 9, 9, 16)
    mask = some_valid(7, 9)[:, None, None] if masked else None
    if masked == 'alike':
        mask = mask[:1]
    whole = attention._torch_attention(q, k, v, mask, 0.0)
    sizes = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F,
        'scaled_dot_product_attention',
        lambda q, *args, **kwargs: (sizes.append(len(q)), fused(q, *args, **kwargs))[1],
    )
    monkeypatch.setattr(attention, '_MAX_CUDA_BATCH', 3)
    cut = attention._torch_attention(*(t.as_subclass(OnGpu) for t in (q, k, v)), mask, 0.0)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(cut.as_subclass(torch.Tensor), whole)


@pytest.fixture
def break_kernels(monkeypatch):
    """A function that breaks the kernels of these names, as without a C compiler."""

    class Broken:
        def __getitem__(self, _: object) -> None:
            raise RuntimeError('Failed to find C compiler. Please specify via CC environment variable.')

    def break_kernels(*names: str) -> None:
        for name in names:
            module = attention_triton_windows if 'window' in name else attention_triton
            monkeypatch.setattr(module, name, Broken())

    attention_triton.runs_here.cache_clear()
    yield break_kernels
    attention_triton.runs_here.cache_clear()


@pytest.fixture
def triton_is_broken(break_kernels):
    break_kernels('_row_lse_kernel', '_window_forward_kernel')


@NEEDS_TRITON
@pytest.mark.parametrize('shape', SHAPES)
def test_a_log_sum_exp_that_is_known_is_not_computed(shape, triton_is_broken):
    """The kernel that computes it cannot run here."""
    _, (q, k, v) = inputs(*shape)
    lse = (q @ k.mT / q.shape[-1] ** 0.5).logsumexp(-1)
    means = attention_triton.triton_column_means(q, k, None, lse)
    assert_close(means, attention_with_column_means(q, k, v, backend='reference')[1], 1e-12)


@NEEDS_TRITON
def test_a_log_sum_exp_of_other_roundings_leaves_means_finite():
    """Of logits of 1e12 a last bit is 65536."""
    _, (q, k, _) = inputs(1, 1, 12, 9, 32, dtype=torch.bfloat16, scale=1e6)
    lse = (q.float() @ k.float().mT / q.shape[-1] ** 0.5).logsumexp(-1)
    means = attention_triton.triton_column_means(q, k, None, lse - 65536)
    assert means.isfinite().all()
    assert means.sum() <= 9


@NEEDS_TRITON
@pytest.mark.parametrize('keys', [9, 5], ids=['windows', 'reduced map'])
def test_an_empty_batch(keys):
    _, (q, k, v) = inputs(0, 2, 9, keys, 16, dtype=torch.float32)
    out, means = attention_with_column_means(q, k, v, backend='triton')
    assert out.shape == q.shape
    assert means.shape == (0, keys)


@NEEDS_TRITON
def test_without_a_compiler_the_means_come_in_chunks_and_it_is_said_once(triton_is_broken):
    _, (q, k, v) = inputs(2, 2, 9, 9, 16, dtype=torch.float32)
    with pytest.warns(UserWarning, match='Triton cannot run on .*Failed to find C compiler') as said:
        means = [attention_triton.triton_column_means(q, k, None, may_fall_back=True) for _ in range(2)][1]
    assert len(said) == 1
    torch.testing.assert_close(means, attention_with_column_means(q, k, v, backend='reference')[1])


@NEEDS_TRITON
@pytest.mark.parametrize('broken', ['_window_forward_kernel', '_window_backward_kernel'])
def test_where_a_kernel_does_not_compile_windows_come_in_chunks(broken, break_kernels, monkeypatch):
    """Also where it is only the gradient's: it is known before the forward pass."""
    break_kernels(broken)
    monkeypatch.setattr(attention_cpu, 'fits', lambda _: False)  # as on a GPU
    gradients = []
    for backend in ('triton', 'reference'):
        leaves, (q, k, v) = inputs(2, 2, 9, 9, 16, dtype=torch.float32)
        if backend == 'triton':
            with pytest.warns(UserWarning, match='Triton cannot run on'):
                out, _ = attention_triton_windows.triton_window_attention(q, k, v, None, may_fall_back=True)
        else:
            out, _ = attention_with_column_means(q, k, v, backend=backend)
        out.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients)


@NEEDS_TRITON
@pytest.mark.parametrize('keys', [9, 5], ids=['window', 'reduced map'])
def test_without_a_compiler_a_backend_that_was_asked_for_raises(keys, triton_is_broken):
    _, (q, k, v) = inputs(2, 2, 9, keys, 16, dtype=torch.float32)
    with pytest.raises(RuntimeError, match='Failed to find C compiler'):
        attention_with_column_means(q, k, v, backend='triton')


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_kernels_run_on_the_tensors_device():
    """Whatever the current one is."""
    _, (q, k, v) = inputs(2, 2, 9, 9, 16, dtype=torch.float32)
    q, k, v = (t.to('cuda:1') for t in (q, k, v))
    out, means = attention_with_column_means(q, k, v, backend='triton')
    expected = attention_with_column_means(q, k, v, backend='reference')
    torch.testing.assert_close((out, means), expected, rtol=0, atol=1e-4)
