"""Shifted windows: the official module's numbers, and at any size attention by a table of who sees whom."""

from functools import partial

import pytest
import torch
from mixers.golden import check
from mixers.oracle import check_formula
from mixers.pairs import attend_by_pairs, every_pair
from torch import Tensor

from mmsgformer import mixers
from mmsgformer.mixers.swin import ShiftedWindowAttention

SIZES = [(7, 7), (14, 21), (1, 1), (1, 9), (3, 2), (8, 8), (11, 15), (13, 10)]


@pytest.mark.parametrize(('case', 'block'), [('swin_shift0', 0), ('swin_shift3', 1), ('swin_shift3', 5)])
def test_agrees_with_the_official_module(case, block):
    mixer = mixers.build('swin', 16, 2, block=block, mask_padding=False)
    check(case, mixer, partial(mixers.from_official, 'swin'))


def by_the_formula(mixer: ShiftedWindowAttention, x: Tensor) -> Tensor:
    """Tokens see each other if they are in one window and were so before the map was rolled."""
    size, shift = mixer.size, mixer.shift

    def place(length: int, i: int) -> tuple[int, int, bool]:
        """Window, place in it, and side of the seam."""
        padded = -(-length // size) * size
        rolled = (i - shift) % padded
        return rolled // size, rolled % size, rolled >= padded - shift

    def places(*coordinates: int) -> list[tuple[int, int, bool]]:
        return [place(x.shape[1 + i % 2], c) for i, c in enumerate(coordinates)]

    def sees(*pair: int) -> bool:
        yi, xi, yj, xj = places(*pair)
        return yi[::2] == yj[::2] and xi[::2] == xj[::2]

    def row_of_table(*pair: int) -> int:
        yi, xi, yj, xj = (place[1] for place in places(*pair))
        return (yi - yj + size - 1) * (2 * size - 1) + xi - xj + size - 1

    bias = mixer.bias_table[every_pair(x, row_of_table)].permute(2, 0, 1)
    return attend_by_pairs(mixer, x, every_pair(x, sees), bias)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize(('block', 'window_size'), [(0, 7), (1, 7), (1, 4), (1, 3)])
def test_windows_hide_their_padding(size, block, window_size):
    """Real tokens alone take part, whatever the window."""
    torch.manual_seed(0)
    mixer = mixers.build('swin', 12, 3, block=block, window_size=window_size).double()
    torch.nn.init.normal_(mixer.bias_table)
    torch.nn.init.normal_(mixer.qkv.bias)
    check_formula(mixer, by_the_formula, torch.randn(2, *size, 12, dtype=torch.float64))
