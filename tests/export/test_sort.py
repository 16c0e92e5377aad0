"""The sort in blocks is the stable sort, whatever the length and however many values are equal."""

import pytest
import torch

pytest.importorskip('onnxscript')
from mmsgformer.export.sort import BLOCK, sort_in_blocks


@pytest.mark.parametrize('different', [1, 3, 1000, 10**6])
@pytest.mark.parametrize('length', [1, 4, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 9000])
def test_the_order_is_that_of_a_stable_sort(length, different):
    generator = torch.Generator().manual_seed(length)
    x = torch.randint(-different, different, (2, length), generator=generator) / different
    values, order = sort_in_blocks(x, stable=True, dim=1)
    expected = x.sort(dim=1, stable=True)
    assert torch.equal(order, expected.indices)
    assert torch.equal(values, expected.values)


@pytest.mark.parametrize('descending', [False, True])
def test_sorted_input(descending):
    x = torch.arange(5000.0).sort(descending=descending).values[None]
    assert torch.equal(sort_in_blocks(x, stable=True, dim=1)[1], x.argsort(stable=True))
