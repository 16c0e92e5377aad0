"""Windows, padding and the significance map at sizes that do not divide."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import OPERATOR, assert_close
from torch import Tensor

from mmsgformer.attention import (
    FullAttention,
    HybridScaleAttention,
    SelfGuidedAttention,
    from_windows,
    pad_to_multiple,
    to_windows,
)

SIZES = [(7, 7), (8, 8), (1, 1), (5, 23), (14, 21), (13, 50)]


@pytest.mark.parametrize('size', SIZES)
def test_windows_round_trip(size):
    x = torch.randn(2, *size, 3)
    windows = to_windows(pad_to_multiple(x, 7), 7)
    assert windows.shape == (2 * -(-size[0] // 7) * -(-size[1] // 7), 49, 3)
    assert torch.equal(from_windows(windows, 7, *size), x)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('reduction', [8, 4, 2])
def test_significance_is_attention_received(size, reduction):
    """Means of softmax rows add up to 1 over the cells, and in a window to the share of it within the map."""
    torch.manual_seed(0)
    attention = HybridScaleAttention(16, 4, reduction).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    _, from_global = attention._attend_globally(x)
    cells = from_global[:, ::reduction, ::reduction]
    torch.testing.assert_close(cells.sum((1, 2)), torch.ones(2).double())
    _, from_local = attention._attend_locally(x)
    windows = to_windows(pad_to_multiple(from_local.unsqueeze(-1), 7), 7)
    inside = to_windows(pad_to_multiple(torch.ones_like(x[..., :1]), 7), 7)
    torch.testing.assert_close(windows.sum((1, 2)), inside.mean((1, 2)))


@pytest.mark.parametrize('size', SIZES)
def test_local_attention_does_not_see_its_padding(size):
    """A padded window gives what softmax attention over its real tokens alone gives."""
    torch.manual_seed(0)
    attention = HybridScaleAttention(8, 2, 2).double()
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    out, means = attention._attend_locally(x)
    top, left = size[0] // 7 * 7, size[1] // 7 * 7  # the last, maybe partial, window
    if top == size[0] or left == size[1]:
        top, left = size[0] - min(size[0], 7), size[1] - min(size[1], 7)
        top, left = top // 7 * 7, left // 7 * 7
    q, k, v = attention.local_qkv(x[0, top : top + 7, left : left + 7].reshape(-1, 8)).chunk(3, dim=-1)
    weights = (q @ k.T / 2).softmax(-1)
    torch.testing.assert_close(out[0, top : top + 7, left : left + 7].reshape(-1, 4), weights @ v)
    torch.testing.assert_close(means[0, top : top + 7, left : left + 7].flatten(), weights.sum(0) / 49)


def hybrid_scale_by_the_formula(attention: HybridScaleAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and significance, with the whole softmax matrix, a convolution and a loop over the windows."""
    height, width, dim = x.shape[1:]
    ratio, heads = attention.reduction, attention.num_heads // 2

    def attend(q: Tensor, k: Tensor, v: Tensor, places: int) -> tuple[Tensor, Tensor]:
        q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
        weights = (q @ k.mT / q.shape[2] ** 0.5).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1), weights.sum((0, 1)) / (heads * places)

    outs, significances = [], []
    for image in x:
        padded = F.pad(image.permute(2, 0, 1), (0, -width % ratio, 0, -height % ratio))
        reduced = F.conv2d(padded[None], attention.reduce.weight, attention.reduce.bias, stride=ratio)
        reduced = F.gelu(attention.reduce_norm(reduced[0].permute(1, 2, 0)))
        keys_and_values = attention.global_kv(reduced.flatten(0, 1)).chunk(2, 1)
        out, means = attend(attention.global_q(image.flatten(0, 1)), *keys_and_values, height * width)
        attended = torch.cat([out, torch.zeros_like(out)], 1).view(height, width, dim)
        means = F.interpolate(means.view(1, 1, *reduced.shape[:2]), scale_factor=ratio, mode='nearest')
        significance = means[0, 0, :height, :width].clone()
        for top in range(0, height, 7):
            for left in range(0, width, 7):
                window = (slice(top, top + 7), slice(left, left + 7))
                out, means = attend(*attention.local_qkv(image[window].flatten(0, 1)).chunk(3, 1), 49)
                attended[window][..., dim // 2 :] = out.view_as(attended[window][..., dim // 2 :])
                significance[window] += means.view_as(significance[window])
        position = attention.lepe.conv(attention.lepe.linear(image).permute(2, 0, 1)[None])
        outs.append(attention.proj(attended + position[0].permute(1, 2, 0)))
        significances.append(significance)
    return torch.stack(outs), torch.stack(significances)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('reduction', [8, 4, 2])
def test_hybrid_scale_attention_is_what_its_formula_says(size, reduction):
    """Where the windows and the cells of the reduced map do not divide the map too."""
    torch.manual_seed(0)
    attention = HybridScaleAttention(16, 4, reduction).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = hybrid_scale_by_the_formula(attention, x)
        for ours, one in zip(attention(x), expected, strict=True):
            assert_close(ours, one, OPERATOR[torch.float64].forward)


def test_significance_carries_no_gradient_and_is_passed_on():
    x = torch.randn(2, 8, 9, 16, requires_grad=True)
    _, significance = HybridScaleAttention(16, 4, 4)(x)
    assert not significance.requires_grad
    assert significance.shape == (2, 8, 9)
    assert SelfGuidedAttention(16, 4, (2, 1))(x, significance)[1] is significance
    assert FullAttention(16, 4)(x, significance)[1] is significance


@pytest.mark.parametrize('attention', [HybridScaleAttention(16, 4, 4), FullAttention(16, 4)])
def test_attention_dropout_acts_in_training_only(attention):
    attention.attn_drop = 0.5
    x = torch.randn(1, 8, 8, 16)
    assert not torch.equal(attention.train()(x)[0], attention(x)[0])
    assert torch.equal(attention.eval()(x)[0], attention(x)[0])
