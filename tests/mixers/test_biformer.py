"""Bi-level routing attention: the official modules' numbers, and a loop over the regions where these pad."""

from functools import partial

import pytest
import torch
from mixers.golden import check
from mixers.oracle import check_formula
from torch import Tensor

from mmsgformer import mixers
from mmsgformer.mixers.biformer import BiLevelRoutingAttention


@pytest.mark.parametrize(
    ('case', 'arguments'),
    [
        ('biformer_legacy', {'stage': 1, 'mask_padding': False}),
        ('biformer_nchw', {'stage': 1, 'nchw': True, 'mask_padding': False}),
        ('biformer_full_lepe', {'stage': 3}),
    ],
)
def test_agrees_with_the_official_module(case, arguments):
    check(case, mixers.build('biformer', 16, 2, **arguments), partial(mixers.from_official, 'biformer'))


@pytest.mark.parametrize(('case', 'nchw'), [('biformer_legacy', False), ('biformer_nchw', True)])
def test_the_masks_change_nothing_where_regions_divide_the_map(case, nchw):
    mixer = mixers.build('biformer', 16, 2, stage=1, nchw=nchw)
    check(case, mixer, partial(mixers.from_official, 'biformer'), sizes=['14x14'])


def of_image(mixer: BiLevelRoutingAttention, image: Tensor) -> Tensor:
    """One image (H, W, C), region by region; a region is what of the map lies in it."""
    height, width, dim = image.shape
    q, k, v = mixer.qkv(image).chunk(3, dim=-1)
    if mixer.nchw:
        rows, columns = max(height // mixer.n_win, 1), max(width // mixer.n_win, 1)
    else:
        rows, columns = -(-height // mixer.n_win), -(-width // mixer.n_win)
    regions = [
        (slice(top, top + rows), slice(left, left + columns))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    mean_keys = torch.stack([k[region].mean((0, 1)) for region in regions])
    out = torch.zeros_like(q)
    for region in regions:
        affinity = mean_keys @ q[region].mean((0, 1))
        chosen = affinity.argsort(descending=True)[: mixer.topk].tolist()
        keys, values = (torch.cat([t[regions[i]].flatten(0, 1) for i in chosen]) for t in (k, v))
        queries = q[region].flatten(0, 1)
        heads = zip(*(t.chunk(mixer.num_heads, dim=1) for t in (queries, keys, values)), strict=True)
        attended = [(a @ b.T * dim**-0.5).softmax(-1) @ c for a, b, c in heads]
        out[region] = torch.cat(attended, dim=1).view_as(out[region])
    return mixer.proj(out + mixer.lepe(v.permute(2, 0, 1)[None])[0].permute(1, 2, 0))


def by_the_formula(mixer: BiLevelRoutingAttention, x: Tensor) -> Tensor:
    return torch.stack([of_image(mixer, image) for image in x])


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 23), (9, 11), (16, 8), (15, 50), (70, 3)])
@pytest.mark.parametrize('arguments', [{'stage': 0}, {'stage': 1}, {'stage': 2}, {'stage': 1, 'nchw': True}])
def test_padding_is_no_key_and_counts_in_no_mean(size, arguments):
    """The output and the gradients are those of a loop over the regions' real tokens."""
    torch.manual_seed(0)
    mixer = mixers.build('biformer', 16, 2, **arguments).double()
    torch.nn.init.normal_(mixer.qkv.bias)  # what padded tokens would have as keys and values
    check_formula(mixer, by_the_formula, torch.randn(2, *size, 16, dtype=torch.float64))


@pytest.mark.parametrize('size', [(14, 14), (9, 11)])
def test_a_query_sees_its_regions_and_no_others(size):
    """Without LePE, the output in one region depends on itself and the tokens of k regions at most."""
    torch.manual_seed(0)
    mixer = mixers.build('biformer', 16, 2, stage=1).double()
    torch.nn.init.zeros_(mixer.lepe.weight)
    x = torch.randn(1, *size, 16, dtype=torch.float64, requires_grad=True)
    seen = torch.autograd.grad(mixer(x)[0][0, 0, 0].sum(), x)[0].abs().sum(-1)[0] > 0
    assert seen.sum() in range(1, 5 * 4 + 1)
    assert seen[0, 0]


@pytest.mark.parametrize('arguments', [{'n_win': 0}, {'topk': 0}, {'topk': -1}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match='biformer needs n_win and topk >= 1, or topk -2'):
        mixers.build('biformer', 16, 2, **arguments)
