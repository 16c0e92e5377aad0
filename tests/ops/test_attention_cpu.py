"""Attention in chunks against the whole softmax matrix in float64."""

import pytest
import torch

from mmsgformer.ops import (
    attention_cpu,
    attention_with_column_means_reference,
    dot_product_attention,
    linear_cpu,
)
from mmsgformer.ops.attention_cpu import cpu_attention, worthwhile


@pytest.fixture(autouse=True)
def on_a_cpu_where_it_pays(monkeypatch):
    """Whatever this one is."""
    monkeypatch.setattr(linear_cpu, '_ONEDNN_IS_QUICKER', torch.backends.mkldnn.is_available())


def make(batch: int, heads: int, queries: int, keys: int, dim: int) -> list[torch.Tensor]:
    """Queries, keys, values and a probe, in the layout of heads that were split off channels."""
    torch.manual_seed(0)
    return [torch.randn(batch, n, heads, dim).transpose(1, 2) for n in (queries, keys, keys, queries)]


@pytest.mark.parametrize('chunk', [1, 100, 1 << 19])
@pytest.mark.parametrize('size', [(2, 3, 50, 30, 16), (1, 2, 7, 64, 24), (2, 1, 33, 1, 8)])
@pytest.mark.parametrize('scale', [1, 100])
def test_output_means_and_gradients(size, chunk, scale, monkeypatch):
    """Chunks of one query, of several and of all; logits of a hundred too."""
    monkeypatch.setattr(attention_cpu, '_CHUNK_ELEMENTS', chunk)
    q, k, v, probe = make(*size)
    results = []
    for function, dtype in (
        (cpu_attention, torch.float32),
        (attention_with_column_means_reference, torch.float64),
    ):
        leaves = [t.to(dtype).requires_grad_() for t in (q * scale**0.5, k * scale**0.5, v)]
        out, means = function(*leaves)
        results.append([out, means, *torch.autograd.grad(out, leaves, probe.to(dtype))])
    for ours, exact in zip(*results, strict=True):
        error = (ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-3)
        assert error < 2e-5 * scale


def test_a_gradient_of_any_layout_is_taken():
    q, k, v, _ = make(1, 2, 20, 10, 8)
    for probe in (torch.ones(1).expand(1, 2, 20, 8), torch.randn(1, 2, 8, 20).transpose(2, 3)):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        ours = torch.autograd.grad(cpu_attention(*leaves)[0], leaves, probe)
        exact = torch.autograd.grad(attention_with_column_means_reference(*leaves)[0], leaves, probe)
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_it_is_used_where_it_pays():
    small, large = make(1, 1, 64, 64, 8), make(1, 1, 1024, 512, 8)
    assert not worthwhile(*small[:2])
    assert worthwhile(*large[:2]) == torch.backends.mkldnn.is_available()
    assert not worthwhile(*(t.double() for t in large[:2]))
    out = dot_product_attention(*large[:3])
    exact, _ = attention_with_column_means_reference(*(t.double() for t in large[:3]))
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)


def test_it_is_an_operator_that_torch_can_trust():
    q, k, v, _ = make(1, 2, 12, 6, 8)
    leaves = tuple(t.clone().requires_grad_() for t in (q, k, v))
    torch.library.opcheck(cpu_attention, leaves)
