"""Neighbourhoods: the official module's numbers, loops over neighbours, natten itself, and bad arguments."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mixers.golden import check
from mixers.oracle import check_formula
from mixers.pairs import attend_by_pairs, every_pair
from tolerances import OPERATOR, assert_close
from torch import Tensor

from mmsgformer import mixers
from mmsgformer.mixers import neighborhood
from mmsgformer.mixers.neighborhood import NeighborhoodAttention

SIZES = [(14, 9), (1, 1), (1, 17), (2, 3), (7, 7), (8, 16), (23, 5)]
# (kernel_size, dilation, stride)
SETTINGS = [(7, 1, 1), (3, 1, 1), (3, 2, 1), (3, 4, 2), (7, 2, 1), (7, 3, 4), (7, 1, 7), (4, 1, 3), (2, 5, 1)]


@pytest.mark.parametrize('kernel', [3, 7])
@pytest.mark.parametrize('dilation', [1, 2, 4])
def test_agrees_with_the_official_module(kernel, dilation):
    arguments = {'kernel_size': kernel, 'dilation': dilation, 'mask_padding': False}
    mixer = mixers.build('neighborhood', 16, 2, **arguments)
    check(f'nat_k{kernel}_d{dilation}', mixer, partial(mixers.from_official, 'neighborhood'))


def neighbours(i: int, length: int, kernel: int, dilation: int, stride: int) -> list[int]:
    """The definition, along one axis."""
    group, member = i % dilation, i // dilation
    members = len(range(group, length, dilation))
    leader = min(member // stride * stride + stride // 2, members - 1)
    first = min(max(leader - kernel // 2, 0), max(members - kernel, 0))
    return [(first + t) * dilation + group for t in range(min(kernel, members))]


def by_the_formula(mixer: NeighborhoodAttention, x: Tensor) -> Tensor:
    kernel, dilation = mixer.kernel_size, mixer.dilation or max(1, min(x.shape[1:3]) // mixer.kernel_size)
    height, width = x.shape[1:3]
    rows, columns = (
        [neighbours(i, length, kernel, dilation, mixer.stride) for i in range(length)]
        for length in (height, width)
    )
    seen = every_pair(x, lambda yi, xi, yj, xj: yj in rows[yi] and xj in columns[xi])
    if mixer.bias_table is None:
        return attend_by_pairs(mixer, x, seen)

    def entry(*pair: int) -> list[int]:
        """Where they see each other, else anything."""
        yi, xi, yj, xj = (c // dilation for c in pair)
        return [min(max(d + kernel - 1, 0), 2 * kernel - 2) for d in (yj - yi, xj - xi)]

    y, x_ = every_pair(x, entry).unbind(-1)
    return attend_by_pairs(mixer, x, seen, mixer.bias_table[:, y, x_])


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('setting', [*SETTINGS, (3, 'auto', 1)], ids=str)
@pytest.mark.parametrize('bias', [True, False])
def test_any_size_is_what_the_definition_says(size, setting, bias):
    """Where a neighbourhood does not fit, it is the whole group; tiles and borders leave no trace."""
    torch.manual_seed(0)
    arguments = dict(zip(('kernel_size', 'dilation', 'stride'), setting, strict=True))
    mixer = mixers.build('neighborhood', 8, 2, block=1, bias=bias, **arguments).double()
    if bias:
        torch.nn.init.normal_(mixer.bias_table)
    check_formula(mixer, by_the_formula, torch.randn(2, *size, 8, dtype=torch.float64))


@pytest.mark.parametrize('dilation', [1, 4])
def test_no_neighbours_are_gathered(dilation):
    """They would be 49 times the keys, and as much of the values, kept for the backward pass."""
    mixer, kept = mixers.build('neighborhood', 32, 1, dilation=dilation), []
    x = torch.randn(1, 56, 56, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        mixer(x)
    assert sum(kept) < 49 * x.numel()


@pytest.mark.filterwarnings('ignore:flex_attention called without torch.compile')
@pytest.mark.parametrize('setting', [(7, 1, 1), (3, 2, 1), (3, 4, 2), (7, 1, 7), (4, 2, 3)], ids=str)
def test_natten_gives_the_same(setting):
    pytest.importorskip('natten')
    torch.manual_seed(0)
    kernel, dilation, stride = setting
    mixer = mixers.build('neighborhood', 32, 2, bias=False, kernel_size=kernel, stride=stride)
    q, k, v = torch.randn(3, 2, 14, 17, 32).unbind()
    ours, theirs = (attend(q, k, v, dilation) for attend in (mixer._attend, mixer._natten))
    assert_close(ours, theirs, OPERATOR[torch.float32].forward)


@pytest.mark.parametrize(
    ('arguments', 'installed', 'fits'),
    [
        ({}, True, True),
        ({}, False, False),
        ({'bias': True}, True, False),
        ({'attn_drop': 0.1}, True, False),
        ({'dilation': 3}, True, False),  # the map is smaller than 7 * 3
    ],
)
def test_natten_is_used_where_it_fits(arguments, installed, fits, monkeypatch):
    """On a GPU for which it was built; it says so itself."""
    kernels = SimpleNamespace(can_run_cutlass_fna=lambda q, k, v: q.shape == (1, 14, 20, 2, 4))
    package = SimpleNamespace(backends=kernels) if installed else None
    monkeypatch.setattr(neighborhood, 'natten', lambda: package)

    class OnGpu(torch.Tensor):
        is_cuda = True

    mixer = mixers.build('neighborhood', 8, 2, **{'bias': False, **arguments})
    q = torch.zeros(1, 14, 20, 8)
    assert mixer._natten_fits(q.as_subclass(OnGpu), mixer.dilation) is fits
    assert not mixer._natten_fits(q, mixer.dilation)


def test_the_dilation_of_a_block():
    def dilations(dilation: object, stage: int = 0) -> list[int | None]:
        return [
            mixers.build('neighborhood', 8, 2, stage, block, dilation=dilation).dilation for block in range(4)
        ]

    assert dilations(2) == [2, 2, 2, 2]
    assert dilations('auto') == [1, None, 1, None]
    assert dilations([1, 4]) == [1, 4, 1, 4]
    assert dilations([[1, 8], [1, 4], [1, 2], [1, 1]], stage=1) == [1, 4, 1, 4]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'dilation': 0}, 'or such a list for each stage, got 0'),
        ({'dilation': []}, r'got \[\]'),
        ({'dilation': 'big'}, "dilation must be 'auto', .* got 'big'"),
        ({'dilation': [[1]], 'stage': 3}, r'got \[\[1\]\]'),
        ({'kernel_size': 1}, 'kernel_size >= 2'),
        ({'stride': 8}, 'stride <= kernel_size, got kernel_size=7, stride=8'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mixers.build('neighborhood', 8, 2, **arguments)
