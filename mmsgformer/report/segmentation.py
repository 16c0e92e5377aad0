"""Results of a segmenter: IoU and accuracy of every class, by pixels."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from mmengine.structures import BaseDataElement

from mmsgformer.report.results import Confusion, Picture, Summary, Table

OPACITY = 0.55
WRONG, IGNORED = (213, 94, 0), (128, 128, 128)


class SegmentationResults:
    """`Results` of a segmenter.

    Args:
        classes: Their names.
        palette: A colour, RGB, for each.
        ignored: The id of pixels that do not count.
    """

    def __init__(self, classes: Sequence[str], palette: Sequence[Sequence[int]], ignored: int) -> None:
        self.classes = tuple(classes)
        self.palette = np.array(palette, np.uint8).reshape(-1, 3)
        self.ignored = ignored
        self.counts = np.zeros((len(classes), len(classes)), np.int64)
        self.scores: list[float] = []
        self.worst: list[tuple[int, int, int]] = []

    def add(self, sample: BaseDataElement) -> None:
        """Count a sample's pixels by true and predicted class."""
        counts = self._count(*self._labels(sample))
        self.counts += counts
        union = counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
        present = union > 0
        self.scores.append(float((np.diag(counts)[present] / union[present]).mean()) if any(present) else 1.0)
        np.fill_diagonal(counts, 0)
        truth, predicted = np.unravel_index(counts.argmax(), counts.shape)
        self.worst.append((int(truth), int(predicted), int(counts.max())))

    def _labels(self, sample: BaseDataElement) -> tuple[np.ndarray, np.ndarray]:
        """The true and the predicted label map (H, W)."""
        truth, predicted = sample.gt_sem_seg.data, sample.pred_sem_seg.data
        return truth.squeeze().numpy().astype(np.int64), predicted.squeeze().numpy().astype(np.int64)

    def _count(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        number = len(self.classes)
        valid = (truth != self.ignored) & (truth < number)
        pairs = truth[valid] * number + predicted[valid]
        return np.bincount(pairs, minlength=number**2).reshape(number, number)

    def summary(self) -> Summary:
        """mIoU and accuracy, of all pixels and of every class; a class that is nowhere has none."""
        right, true = np.diag(self.counts), self.counts.sum(axis=1)
        with np.errstate(invalid='ignore'):
            iou = right / (true + self.counts.sum(axis=0) - right)
            accuracy = right / true
            shares = true / true.sum()
        headline = [
            ('mIoU', float(np.nanmean(iou))),
            ('pixel accuracy', float(right.sum() / true.sum())),
            ('mean class accuracy', float(np.nanmean(accuracy))),
        ]
        columns = ('class', 'IoU', 'accuracy', 'share of pixels')
        rows = list(zip(self.classes, iou, accuracy, shares, strict=True))
        return Summary(
            headline,
            [Table('Per class', columns, rows)],
            Confusion(self.counts, self.classes, self.classes, 'pixels'),
            np.array(self.scores),
            'Pixels of a wrong class are orange under "mistakes", those without a label grey. Images are '
            'ordered by the mean IoU of the classes in them.',
            [
                (name, f'rgb{tuple(color.tolist())}')
                for name, color in zip(self.classes, self.palette, strict=True)
            ],
        )

    def describe(self, index: int) -> str:
        """The image's mIoU, and what was confused most."""
        truth, predicted, pixels = self.worst[index]
        text = f'mIoU {self.scores[index]:.0%}'
        if pixels:
            text += f'; most confused: {pixels:,} pixels of {self.classes[truth]} taken for '
            text += self.classes[predicted]
        return text

    def is_error(self, index: int) -> bool:
        """Whether any pixel is wrong."""
        return self.worst[index][2] > 0

    def draw(self, index: int, image: np.ndarray, predict: Callable[[], BaseDataElement]) -> list[Picture]:
        """The truth, the prediction and the mistakes over the image."""
        truth, predicted = self._labels(predict())
        known = (truth != self.ignored) & (truth < len(self.classes))
        colors = np.where(known[..., None], self.palette[np.where(known, truth, 0)], np.uint8(IGNORED))
        grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        mistakes = grey.copy()
        mistakes[known & (truth != predicted)] = WRONG
        mistakes[~known] = IGNORED
        return [
            Picture('image', image),
            Picture('truth', _blend(grey, colors)),
            Picture('prediction', _blend(grey, self.palette[predicted])),
            Picture('mistakes', _blend(grey, mistakes)),
        ]


def _blend(image: np.ndarray, colors: np.ndarray) -> np.ndarray:
    return cv2.addWeighted(image, 1 - OPACITY, np.ascontiguousarray(colors, np.uint8), OPACITY, 0)
