"""Token merging against its reference, and the rules for sizes that do not divide."""

import pytest
import torch
from tolerances import OPERATOR, assert_close

from mmsgformer.attention import RunMerge
from mmsgformer.ops import merge_tokens_reference, sorted_runs
from mmsgformer.ops.token_merge import _run_positions

RUN_LENGTHS = [(196, 56, 28), (49, 14, 7), (2, 1), (3, 5, 2)]


def merge_tokens(tokens, significance, weights, biases):
    """As the self-guided attention does it."""
    parts = sorted_runs(tokens, significance, [len(weight) for weight in weights])
    layers = [{'weight': weight[None], 'bias': bias} for weight, bias in zip(weights, biases, strict=True)]
    merges = [RunMerge(len(weight)) for weight in weights]
    return torch.cat(list(map(torch.func.functional_call, merges, layers, parts)), dim=1)


def layers(run_lengths, dtype=torch.float64):
    torch.manual_seed(1)
    weights = [torch.randn(length, dtype=dtype, requires_grad=True) for length in run_lengths]
    return weights, [torch.randn(1, dtype=dtype, requires_grad=True) for _ in run_lengths]


@pytest.mark.parametrize('run_lengths', RUN_LENGTHS)
@pytest.mark.parametrize('num_tokens', [4, 5, 7, 64, 197, 784])
def test_agrees_with_the_reference(run_lengths, num_tokens):
    torch.manual_seed(0)
    significance = torch.rand(2, num_tokens)
    results = []
    for function in (merge_tokens, merge_tokens_reference):
        weights, biases = layers(run_lengths)
        tokens = torch.linspace(-1, 1, 2 * num_tokens * 6, dtype=torch.float64).view(2, num_tokens, 6)
        tokens = tokens.cos().requires_grad_()
        merged = function(tokens, significance, weights, biases)
        merged.square().sum().backward()
        results.append([merged, tokens.grad, *(p.grad for p in weights + biases)])
    for ours, reference in zip(*results, strict=True):
        assert_close(ours, reference, OPERATOR[torch.float64].backward)


@pytest.mark.parametrize(
    ('num_tokens', 'run_lengths', 'merged'),
    [(3136, (196, 56, 28), 60), (784, (49, 14, 7), 60), (196, (2, 1), 147)],
)
def test_as_many_tokens_at_224_as_the_paper(num_tokens, run_lengths, merged):
    weights, biases = layers(run_lengths, torch.float32)
    out = merge_tokens(torch.randn(1, num_tokens, 4), torch.rand(1, num_tokens), weights, biases)
    assert out.shape == (1, merged, 4)


def test_ties_keep_the_tokens_order():
    """The sort is stable: with equal significance everywhere, merging runs of 1 changes nothing."""
    tokens = torch.randn(2, 1000, 3)
    ones = [torch.ones(1)] * 3
    merged = merge_tokens(tokens, torch.zeros(2, 1000), ones, [torch.zeros(1)] * 3)
    assert torch.equal(merged, tokens)


@pytest.mark.parametrize(
    ('size', 'run_length'), [(1, 196), (7, 3), (16, 196), (100, 7), (200, 196), (56, 28)]
)
def test_every_token_is_used_and_no_run_is_partial(size, run_length):
    positions = _run_positions(10, 10 + size, run_length, torch.device('cpu'))
    assert len(positions) % run_length == 0
    assert positions.unique().tolist() == list(range(10, 10 + size))
    assert positions.tolist() == sorted(positions.tolist())
