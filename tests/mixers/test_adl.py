"""The diversification loss: the official numbers, and what it is for."""

import numpy as np
import pytest
import torch
from mixers.golden import FOLDER, STORED, normal

from mmsgformer.mixers.adl import diversification_loss


def test_agrees_with_the_official_loss():
    """Value and gradients of two layers of different sizes."""
    golden = np.load(FOLDER / 'adl_loss.npz')
    layers = []
    for i, size in enumerate([12, 30]):
        n = normal(f'attn{i}', (2, 4, size, size)).requires_grad_()
        layers.append((n, (2 * n + 2 * normal(f'key{i}', (2, 1, 1, size))).softmax(-1)))
    loss = diversification_loss(weights for _, weights in layers)
    assert loss.item() == pytest.approx(float(golden['loss']), rel=1e-12)
    loss.backward()
    for i, (n, _) in enumerate(layers):
        expected = torch.from_numpy(golden[f'grad{i}']).double()
        assert (n.grad - expected).abs().max() <= STORED * expected.abs().max()


def test_diverse_attention_costs_nothing_and_equal_attention_all():
    diverse = torch.eye(20).expand(2, 4, 20, 20)
    assert diversification_loss([diverse]) == 0
    equal = torch.zeros(2, 4, 20, 20)
    equal[..., 3] = 1
    assert diversification_loss([equal]).item() == pytest.approx(1, abs=1e-5)
