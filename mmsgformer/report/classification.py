"""Results of a classifier: accuracy; precision, recall and F1 of every class."""

from collections.abc import Callable, Sequence

import numpy as np
from mmengine.structures import BaseDataElement

from mmsgformer.data import DataError
from mmsgformer.report.results import Confusion, Picture, Summary, Table
from mmsgformer.visualization.drawing import seen_part

TOP = 5


class ClassificationResults:
    """`Results` of a classifier of one label an image."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.scores: list[np.ndarray] = []
        self.truth: list[int] = []

    def add(self, sample: BaseDataElement) -> None:
        """Take a sample's scores and label.

        Raises:
            DataError: It has several labels, or none.
        """
        labels = sample.get('gt_label')
        if labels is None or labels.numel() != 1:
            raise DataError(f'{sample.img_path} has not one label; a report needs images of one class each')
        self.scores.append(sample.pred_score.numpy())
        self.truth.append(int(labels))

    def summary(self) -> Summary:
        """Accuracy, and every class's precision, recall and F1."""
        scores, truth = np.stack(self.scores), np.array(self.truth)
        predicted = scores.argmax(axis=1)
        number = len(self.classes)
        counts = np.bincount(truth * number + predicted, minlength=number**2).reshape(number, number)
        right = np.diag(counts)
        # As mmpretrain has it: 0 where nothing was predicted, or nothing is there.
        precision = right / np.maximum(counts.sum(axis=0), 1)
        recall = right / np.maximum(counts.sum(axis=1), 1)
        f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float32).eps)
        headline = [('top-1 accuracy', float(right.sum() / len(truth)))]
        if number > TOP:
            best = np.argsort(-scores, axis=1)[:, :TOP]
            headline.append((f'top-{TOP} accuracy', float((best == truth[:, None]).any(axis=1).mean())))
        headline.append(('mean F1', float(f1.mean())))
        columns = ('class', 'precision', 'recall', 'F1', 'images')
        sizes = [int(size) for size in counts.sum(axis=1)]
        rows = list(zip(self.classes, precision, recall, f1, sizes, strict=True))
        confidence = scores[np.arange(len(truth)), predicted]
        return Summary(
            headline,
            [Table('Per class', columns, rows)],
            Confusion(counts, self.classes, self.classes, 'images'),
            np.where(predicted == truth, confidence, -confidence),
            'The worst are wrong and sure of it, the best are right and sure of it.',
        )

    def describe(self, index: int) -> str:
        """The true class, and the predicted one with its score."""
        scores, truth = self.scores[index], self.truth[index]
        predicted = int(scores.argmax())
        verdict = f'predicted {self.classes[predicted]} ({scores[predicted]:.2f})'
        return verdict if predicted == truth else f'{verdict}, is {self.classes[truth]}'

    def is_error(self, index: int) -> bool:
        """Whether the prediction is wrong."""
        return int(self.scores[index].argmax()) != self.truth[index]

    def draw(self, index: int, image: np.ndarray, predict: Callable[[], BaseDataElement]) -> list[Picture]:
        """The part of the image that the model saw."""
        return [Picture(self.describe(index), seen_part(image, predict()))]
