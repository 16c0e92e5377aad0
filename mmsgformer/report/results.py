"""What every task's results have in common."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader

SHOWN_CLASSES = 20  # more are no longer readable as a matrix


class Table(NamedTuple):
    """Numbers for people: floats are shares of 1, not-a-number where there is nothing to measure."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple]
    note: str = ''


class Confusion(NamedTuple):
    """How often what truly is a row was taken for a column."""

    counts: np.ndarray
    """(rows, columns), integers."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    unit: str
    note: str = ''

    def most_confused(self, number: int) -> list[tuple[str, str, int, float]]:
        """(truth, prediction, count, share of the truth) of the largest entries off the diagonal."""
        off = self.counts.copy()
        np.fill_diagonal(off, 0)
        totals = self.counts.sum(axis=1)
        order = np.argsort(-off, axis=None, kind='stable')[:number]
        places = zip(*np.unravel_index(order, off.shape), strict=True)
        return [
            (self.rows[i], self.columns[j], int(off[i, j]), off[i, j] / totals[i])
            for i, j in places
            if off[i, j]
        ]


@dataclass
class Summary:
    """What a model's predictions on a split are worth."""

    headline: list[tuple[str, float]]
    """The main metrics."""
    tables: list[Table]
    confusion: Confusion
    scores: np.ndarray
    """(N,), how good each image's prediction is, above 0 if anything is right; the page is in their order."""
    legend: str = ''
    """What the pictures of examples show."""
    colors: list[tuple[str, str]] = field(default_factory=list)
    """(what, colour in CSS) in those pictures."""
    notes: list[str] = field(default_factory=list)


class Picture(NamedTuple):
    """An image (H, W, 3), RGB uint8, and what it shows."""

    text: str
    image: np.ndarray


class Results(Protocol):
    """The results of one task, gathered image by image in the order of the data set."""

    def add(self, sample: BaseDataElement) -> None:
        """Take a predicted sample."""

    def summary(self) -> Summary:
        """Judge all that were taken."""

    def describe(self, index: int) -> str:
        """What is right and wrong with an image, in a line."""

    def is_error(self, index: int) -> bool:
        """Whether anything of an image's prediction is wrong."""

    def draw(self, index: int, image: np.ndarray, predict: Callable[[], BaseDataElement]) -> list[Picture]:
        """Pictures of an image's prediction; `predict` makes it again."""


class Speed(NamedTuple):
    """How long a test took."""

    images: int
    seconds: float
    batch_size: int
    device: str


def predict_all(
    model: nn.Module,
    loader: DataLoader,
    results: Results,
    track: Callable[[object, int], object] = lambda batches, count: batches,
) -> Speed:
    """Predict a split with the batches that tools/test.py makes of it.

    Args:
        model: In evaluation mode.
        loader: The split's.
        results: Takes every sample.
        track: Called with the batches and their number, iterates over them: a progress bar.

    Returns:
        How long the images took, without the first batch where there are more.
    """
    sizes, start = [], time.perf_counter()
    for batch in track(loader, len(loader)):
        with torch.no_grad():
            samples = [sample.cpu() for sample in model.test_step(batch)]
        if not sizes and len(loader) > 1:  # what is built on the first use is no part of the speed
            start = time.perf_counter()
        sizes.append(len(samples))
        for sample in samples:
            results.add(sample)
    seconds = time.perf_counter() - start
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
    images = sum(sizes[1:] or sizes)
    return Speed(images, seconds, loader.batch_size or max(sizes), name)
