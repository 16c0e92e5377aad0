"""PlaceSeededDataset around data sets that read whole batches (torch's `__getitems__`)."""

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader, Dataset, Subset

from mmsgformer.engine.exact_resume import PlaceSeededDataset, ResumableBatchSampler


class OneByOne(Dataset):
    """Index and a random number; the sample 3 cannot be read."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            raise OSError('no picture')
        return torch.tensor([float(index), np.random.rand()])

    def __len__(self) -> int:
        return 8


class Both(OneByOne):
    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [OneByOne.__getitem__(self, index) for index in indices]


class BatchedAlone(Dataset):
    """As torch's `Dataset` leaves it: `__getitem__` raises NotImplementedError."""

    __getitems__ = Both.__getitems__
    __len__ = OneByOne.__len__


class BatchedAloneWithoutTorch:
    __getitems__ = Both.__getitems__
    __len__ = OneByOne.__len__


def batches(dataset: object, num_skipped: int, workers: int) -> list[list]:
    """Those of the first epoch, without the first ones, as a resumed run loads them."""
    placed = PlaceSeededDataset(dataset, skip_bad=True)
    sampler = ResumableBatchSampler(DefaultSampler(placed, shuffle=True, seed=0), batch_size=2)
    sampler.start(seed=0, epoch=0, num_skipped=num_skipped)
    loader = DataLoader(placed, batch_sampler=sampler, num_workers=workers)
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', ['subset', Both, BatchedAlone, BatchedAloneWithoutTorch])
def test_samples_are_those_of_a_data_set_that_reads_one_by_one(kind, workers):
    """The same random numbers, the same sample instead of the bad one, also when the first are left out."""
    dataset = Subset(OneByOne(), range(8)) if kind == 'subset' else kind()
    expected = batches(OneByOne(), num_skipped=0, workers=0)
    assert len(expected) == 4
    assert batches(dataset, num_skipped=0, workers=workers) == expected
    assert batches(dataset, num_skipped=1, workers=workers) == expected[1:]


@pytest.mark.parametrize('kind', [OneByOne, Both, BatchedAlone])
def test_plain_indices_are_passed_on(kind):
    """As a data loader without our sampler gives them."""
    loader = DataLoader(PlaceSeededDataset(kind()), batch_sampler=[[0, 1], [2]])
    assert [batch[:, 0].tolist() for batch in loader] == [[0, 1], [2]]
