"""Super token attention: the official module's numbers, and a loop over tokens where that pads."""

from functools import partial

import pytest
import torch
from mixers.golden import check
from mixers.oracle import check_formula
from torch import Tensor

from mmsgformer import mixers
from mmsgformer.mixers.svit import EPSILON, SuperTokenAttention


@pytest.mark.parametrize(
    ('case', 'arguments'),
    [
        ('svit_s4_i1', {'stage': 1, 'mask_padding': False}),
        ('svit_s4_i2', {'stage': 1, 'n_iter': 2, 'mask_padding': False}),
        ('svit_s1_i1', {'stage': 2}),
    ],
)
def test_agrees_with_the_official_module(case, arguments):
    check(case, mixers.build('svit', 16, 2, **arguments), partial(mixers.from_official, 'svit'))


def of_image(mixer: SuperTokenAttention, image: Tensor) -> Tensor:
    """One image (H, W, C), token by token; a cell is what of the map lies in it."""
    height, width, dim = image.shape
    side = mixer.stoken_size
    cells = {
        (i, j): image[i * side : (i + 1) * side, j * side : (j + 1) * side]
        for i in range(-(-height // side))
        for j in range(-(-width // side))
    }
    tokens = {cell: inside.mean((0, 1)).detach() for cell, inside in cells.items()}
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for _ in range(mixer.n_iter):
        shares, sums, weights = {}, dict.fromkeys(cells, 0), dict.fromkeys(cells, 0)
        for y in range(height):
            for x in range(width):
                near = [(y // side + i, x // side + j) for i, j in around]
                logits = [image[y, x].detach() @ tokens.get(cell, torch.zeros(dim).double()) for cell in near]
                parts = (torch.stack(logits) * dim**-0.5).softmax(0)
                shares[y, x] = {cell: part for cell, part in zip(near, parts, strict=True) if cell in cells}
                for cell, part in shares[y, x].items():
                    sums[cell] = sums[cell] + part * image[y, x]
                    weights[cell] = weights[cell] + part
        means = {cell: sums[cell] / (weights[cell] + EPSILON) for cell in cells}
        tokens = {cell: mean.detach() for cell, mean in means.items()}
    refined = mixer._attend(torch.stack(list(means.values()))[None, None])[0, 0]
    refined = dict(zip(cells, refined, strict=True))
    rows = [
        torch.stack([sum(part * refined[cell] for cell, part in shares[y, x].items()) for x in range(width)])
        for y in range(height)
    ]
    return torch.stack(rows)


def by_the_formula(mixer: SuperTokenAttention, x: Tensor) -> Tensor:
    return torch.stack([of_image(mixer, image) for image in x])


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 9), (8, 12), (13, 4)])
@pytest.mark.parametrize('n_iter', [1, 2])
def test_padding_counts_nowhere(size, n_iter):
    """The output and the gradients are those of a loop over the real tokens."""
    torch.manual_seed(0)
    mixer = mixers.build('svit', 16, 2, stage=1, n_iter=n_iter).double()
    check_formula(mixer, by_the_formula, torch.randn(1, *size, 16, dtype=torch.float64))


@pytest.mark.parametrize('arguments', [{'stoken_size': 0}, {'n_iter': 0}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match='svit needs stoken_size and n_iter >= 1'):
        mixers.build('svit', 16, 2, **arguments)
