"""Block and grid: the official module's numbers, and at any size attention by a table of who sees whom."""

from functools import partial

import pytest
import torch
from mixers.golden import check
from mixers.oracle import check_formula
from mixers.pairs import attend_by_pairs, every_pair
from torch import Tensor

from mmsgformer import mixers
from mmsgformer.mixers.maxvit import BlockGridAttention, from_grid, to_grid

SIZES = [(7, 7), (14, 21), (1, 1), (1, 9), (3, 2), (8, 8), (11, 15)]


@pytest.mark.parametrize(('case', 'block'), [('maxvit_block', 0), ('maxvit_grid', 1)])
def test_agrees_with_the_official_module(case, block):
    check(case, mixers.build('maxvit', 16, 2, block=block), partial(mixers.from_official, 'maxvit'))


def test_grids_round_trip():
    x = torch.randn(2, 14, 21, 3)
    grids = to_grid(x, 7)
    assert torch.equal(grids[0].view(7, 7, 3), x[0, ::2, ::3])
    assert torch.equal(from_grid(grids, 7, 14, 21), x)


def by_the_formula(mixer: BlockGridAttention, x: Tensor) -> Tensor:
    """Tokens see each other if they are in one window, or in one grid."""
    size = mixer.size

    def place(i: int, length: int) -> tuple[int, int]:
        """Group, and place in it."""
        return (
            (i % -(-length // size), i // -(-length // size))
            if mixer.to_groups is to_grid
            else (i // size, i % size)
        )

    def places(*coordinates: int) -> list[tuple[int, int]]:
        return [place(c, x.shape[1 + i % 2]) for i, c in enumerate(coordinates)]

    def sees(*pair: int) -> bool:
        yi, xi, yj, xj = (place[0] for place in places(*pair))
        return (yi, xi) == (yj, xj)

    def entry(*pair: int) -> list[int]:
        yi, xi, yj, xj = (place[1] for place in places(*pair))
        return [yj - yi + size - 1, xj - xi + size - 1]

    rows, columns = every_pair(x, entry).unbind(-1)
    return attend_by_pairs(mixer, x, every_pair(x, sees), mixer.bias_table[:, rows, columns])


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize(('block', 'window_size'), [(0, 7), (1, 7), (1, 4)])
def test_groups_hide_their_padding(size, block, window_size):
    """Real tokens alone take part, in windows and in grids."""
    torch.manual_seed(0)
    mixer = mixers.build('maxvit', 12, 3, block=block, window_size=window_size).double()
    torch.nn.init.normal_(mixer.bias_table)
    torch.nn.init.normal_(mixer.qkv.bias)
    check_formula(mixer, by_the_formula, torch.randn(2, *size, 12, dtype=torch.float64))
