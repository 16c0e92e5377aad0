"""Attention with column means against its reference."""

import pytest
import torch

from mmsgformer.ops import attention, attention_with_column_means, attention_with_column_means_reference

SHAPES = [(2, 1, 49, 49, 16), (1, 4, 130, 17, 24), (3, 2, 1, 5, 32), (2, 3, 64, 64, 64)]


def inputs(batch, heads, queries, keys, dim, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(batch, heads, n, dim) for n in (queries, keys, keys)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def some_valid(batch: int, keys: int) -> torch.Tensor:
    """A mask that differs between the rows and leaves at least one token in each."""
    valid = torch.arange(keys) % 3 != torch.arange(batch)[:, None] % 3
    valid[:, 0] = True
    return valid


# A mask is for self-attention, where there are as many queries as keys.
CASES = [(shape, False) for shape in SHAPES] + [(shape, True) for shape in SHAPES if shape[2] == shape[3]]


@pytest.mark.parametrize(('shape', 'masked'), CASES)
@pytest.mark.parametrize('chunk', [1, 300, 1 << 24])
def test_agrees_with_the_reference(monkeypatch, shape, masked, chunk):
    """Output, column means and gradients; also with the softmax matrix cut into many chunks."""
    monkeypatch.setattr(attention, '_CHUNK_ELEMENTS', chunk)
    batch, _, _, keys, _ = shape
    valid = some_valid(batch, keys) if masked else None
    results = []
    for function in (attention_with_column_means, attention_with_column_means_reference):
        q, k, v = inputs(*shape)
        out, means = function(q, k, v, valid)
        assert not means.requires_grad
        out.square().sum().backward()
        results.append([out, means, q.grad, k.grad, v.grad])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)
    if masked:
        assert not results[0][1][~valid].any()


@pytest.mark.parametrize(
    ('dtype', 'means_dtype', 'tolerance'),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.float32, 2e-2),
        (torch.float16, torch.float32, 2e-3),
    ],
)
def test_means_are_float32_or_better_and_sum_to_one(dtype, means_dtype, tolerance):
    q, k, v = inputs(2, 2, 300, 40, 32, dtype=dtype)
    out, means = attention_with_column_means(q, k, v)
    assert out.dtype == dtype
    assert means.dtype == means_dtype
    torch.testing.assert_close(means.sum(1), torch.ones(2, dtype=means_dtype), rtol=0, atol=1e-5)
    expected = attention_with_column_means_reference(q.double(), k.double(), v.double())[1]
    torch.testing.assert_close(means.double() * 40, expected * 40, rtol=0, atol=tolerance * 10)


def test_dropout_leaves_the_means_alone():
    q, k, v = inputs(2, 2, 30, 20, 16)
    out, means = attention_with_column_means(q, k, v)
    dropped_out, dropped_means = attention_with_column_means(q, k, v, dropout_p=0.5)
    assert torch.equal(means, dropped_means)
    assert not torch.equal(out, dropped_out)
