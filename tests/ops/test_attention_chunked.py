"""Attention in chunks against the whole softmax matrix in float64."""

import pytest
import torch
from older_torch import needs_torch
from tolerances import OPERATOR, assert_close
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mmsgformer.compat import TORCH
from mmsgformer.ops import (
    attention_chunked,
    attention_cpu,
    attention_with_column_means_reference,
    dot_product_attention,
)
from mmsgformer.ops.attention_chunked import chunked_attention

# Inductor's cache is on by default from torch 2.4 on.
DISABLED_CACHE = {'force_disable_caches': True} if TORCH >= (2, 4) else {}


@pytest.fixture(autouse=True, params=['c++', 'chunks'])
def way(request, monkeypatch):
    """With the operator in C++ and without it, as on other devices and where there is no compiler."""
    if request.param == 'chunks':
        monkeypatch.setattr(attention_cpu, 'is_available', lambda: False)
    elif not attention_cpu.is_available():
        pytest.skip('no compiler for the operator in C++')
    return request.param


def make(batch: int, heads: int, queries: int, keys: int, dim: int) -> list[torch.Tensor]:
    """Queries, keys, values and a probe, in the layout of heads that were split off channels."""
    torch.manual_seed(0)
    return [torch.randn(batch, n, heads, dim).transpose(1, 2) for n in (queries, keys, keys, queries)]


@pytest.mark.parametrize('chunk', [1, 100, 5000, 1 << 19])
@pytest.mark.parametrize(
    ('size', 'masked'),
    [
        ((2, 3, 50, 30, 16), False),
        ((1, 2, 7, 64, 24), False),
        ((2, 1, 33, 1, 8), False),
        ((2, 3, 40, 40, 16), True),
    ],
)
@pytest.mark.parametrize('scale', [1, 100])
def test_output_means_and_gradients(size, masked, chunk, scale, monkeypatch):
    """Chunks of one query, of several, of an image and of all; logits of a hundred too."""
    monkeypatch.setattr(attention_chunked, '_CHUNK_ELEMENTS', {'cpu': chunk})
    q, k, v, probe = make(*size)
    valid = torch.arange(size[3]) < torch.tensor([[1], [size[3] - 7]]) if masked else None
    results = []
    for function, dtype in (
        (chunked_attention, torch.float32),
        (attention_with_column_means_reference, torch.float64),
    ):
        leaves = [t.to(dtype).requires_grad_() for t in (q * scale**0.5, k * scale**0.5, v)]
        out, means, *_ = function(*leaves, valid)
        results.append([out, means, *torch.autograd.grad(out, leaves, probe.to(dtype))])
    for ours, exact in zip(*results, strict=True):
        assert_close(ours, exact, scale * OPERATOR[torch.float32].backward)


def test_a_gradient_of_any_layout_is_taken():
    q, k, v, _ = make(1, 2, 20, 10, 8)
    for probe in (torch.ones(1).expand(1, 2, 20, 8), torch.randn(1, 2, 8, 20).transpose(2, 3)):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        ours = torch.autograd.grad(chunked_attention(*leaves, None)[0], leaves, probe)
        exact = torch.autograd.grad(attention_with_column_means_reference(*leaves)[0], leaves, probe)
        for a, b in zip(ours, exact, strict=True):
            assert_close(a, b, OPERATOR[torch.float32].backward)


@pytest.mark.parametrize(
    'size', [(1, 1, 1, 1, 1), (2, 3, 5, 33, 7), (1, 2, 1000, 70, 40), (3, 1, 20, 2000, 32)]
)
def test_attention_alone(size, monkeypatch):
    """One key; sizes that no tile divides; blocks of several tiles and of one; more keys than fit a block."""
    monkeypatch.setenv('MMSGFORMER_CPU_KERNEL', '1')
    q, k, v, _ = make(*size)
    exact, _ = attention_with_column_means_reference(*(t.double() for t in (q, k, v)))
    assert_close(dot_product_attention(q, k, v), exact, OPERATOR[torch.float32].forward)


@needs_torch(2, 4, 'check of custom operators')
@pytest.mark.parametrize('masked', [False, True])
def test_it_is_an_operator_that_torch_can_trust(masked):
    q, k, v, _ = make(1, 2, 6, 6, 8)
    leaves = tuple(t.clone().requires_grad_() for t in (q, k, v))
    torch.library.opcheck(chunked_attention, (*leaves, torch.arange(6)[None] < 4 if masked else None))


@pytest.mark.parametrize('layout', ['split heads', 'contiguous', 'every other channel'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('masked', [False, True])
def test_what_compilers_are_told_of_its_layout_is_true(layout, dtype, masked):
    """Fake outputs have the real ones' shapes, strides and types, forward and backward."""
    tensors = [t.to(dtype) for t in make(2, 3, 10, 10, 8)]
    if layout == 'contiguous':
        tensors = [t.contiguous() for t in tensors]
    elif layout == 'every other channel':
        tensors = [torch.stack([t, t], dim=-1).flatten(3)[..., ::2] for t in tensors]
    q, k, v, probe = tensors
    valid = torch.arange(10)[None].expand(2, -1) < 7 if masked else None
    out, _, lse = chunked_attention(q, k, v, valid)
    calls = [(chunked_attention, (q, k, v, valid))]
    calls.append((attention_chunked.chunked_attention_backward, (probe, q, k, v, valid, out, lse)))
    for operator, inputs in calls:
        mode = FakeTensorMode()
        fake_inputs = [x if x is None else mode.from_tensor(x) for x in inputs]
        with mode:
            fakes = operator(*fake_inputs)
        for fake, real in zip(fakes, operator(*inputs), strict=True):
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_inductor_trains_through_it():
    """Compiled code checks the strides that it was promised."""
    q, k, v, probe = make(1, 2, 20, 20, 8)
    results = []
    for function in (chunked_attention, torch.compile(lambda *x: chunked_attention(*x), fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        # Something that Inductor makes code for on either side. Its cache does not see an operator change.
        with torch._inductor.config.patch(DISABLED_CACHE):
            out, means, _ = function(*(leaf.sin() for leaf in leaves), None)
            results.append([out, means, *torch.autograd.grad(out.cos(), leaves, probe)])
    for compiled, eager in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_its_multiplications_are_counted():
    """By torch's counter, as those of torch's own attention are, which this replaces."""
    totals = []
    for function in (
        lambda *x: chunked_attention(*x, None),
        torch.nn.functional.scaled_dot_product_attention,
    ):
        q, k, v = (t.to('meta') for t in make(2, 3, 50, 30, 16)[:3])
        with FlopCounterMode(display=False) as counter:
            function(q, k, v)
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] == 4 * 2 * 3 * 50 * 30 * 16
