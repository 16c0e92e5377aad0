"""A classifier's numbers are those of mmpretrain's metrics on the same predictions."""

import numpy as np
import pytest
import torch
from mmpretrain.evaluation import Accuracy, SingleLabelMetric
from mmpretrain.structures import DataSample

from mmsgformer.data import DataError
from mmsgformer.report.classification import ClassificationResults

CLASSES = tuple('abcdefg')
UNSEEN = 6


def samples_of(right: bool) -> list[DataSample]:
    """100 samples of six of seven classes, one of which is never predicted."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(UNSEEN, (100,), generator=generator)
    logits = torch.randn(100, len(CLASSES), generator=generator) + 1.5 * torch.eye(len(CLASSES))[truth]
    logits[:, 5] -= 99
    scores = torch.eye(len(CLASSES))[truth] if right else logits.softmax(dim=1)
    return [DataSample().set_gt_label(t).set_pred_score(s) for t, s in zip(truth, scores, strict=True)]


def judged(samples: list[DataSample]) -> ClassificationResults:
    results = ClassificationResults(CLASSES)
    for sample in samples:
        results.add(sample)
    return results


def test_numbers_are_those_of_mmpretrain():
    samples = samples_of(right=False)
    summary = judged(samples).summary()
    dicts = [sample.to_dict() for sample in samples]
    expected = {}
    for metric in (Accuracy(topk=(1, 5)), SingleLabelMetric(), SingleLabelMetric(average=None)):
        metric.process({}, dicts)
        expected |= metric.evaluate(size=len(samples))
    headline = dict(summary.headline)
    for name, key in (
        ('top-1 accuracy', 'accuracy/top1'),
        ('top-5 accuracy', 'accuracy/top5'),
        ('mean F1', 'single-label/f1-score'),
    ):
        assert 100 * headline[name] == pytest.approx(expected[key], abs=1e-3)
    for column, key in ((1, 'precision'), (2, 'recall'), (3, 'f1-score')):
        own = [100 * row[column] for row in summary.tables[0].rows]
        assert own == pytest.approx(expected[f'single-label/{key}_classwise'], abs=1e-2)


def test_the_truth_is_perfect():
    results = judged(samples_of(right=True))
    summary = results.summary()
    assert dict(summary.headline)['top-1 accuracy'] == 1
    assert [row[1:4] for row in summary.tables[0].rows[:UNSEEN]] == [(1, 1, 1)] * UNSEEN
    assert not any(map(results.is_error, range(100)))
    assert summary.confusion.most_confused(5) == []


def test_the_worst_are_wrong_and_sure():
    results = judged(samples_of(right=False))
    order = results.summary().scores.argsort()
    assert results.is_error(order[0])
    assert not results.is_error(order[-1])
    wrong = [i for i in range(100) if results.is_error(i)]
    assert max(results.scores[i].max() for i in wrong) == results.scores[order[0]].max()
    assert ', is ' in results.describe(order[0])


def test_confused_pairs_are_listed_by_their_number():
    confusion = judged(samples_of(right=False)).summary().confusion
    pairs = confusion.most_confused(3)
    off = confusion.counts - np.diag(np.diag(confusion.counts))
    assert [count for _, _, count, _ in pairs] == sorted(off.ravel().tolist(), reverse=True)[:3]
    truth, predicted, count, share = pairs[0]
    row = confusion.counts[CLASSES.index(truth)]
    assert (row[CLASSES.index(predicted)], row.sum()) == (count, pytest.approx(count / share))


def test_several_labels_are_refused():
    sample = DataSample().set_gt_label([0, 1]).set_pred_score(torch.ones(7))
    sample.set_metainfo({'img_path': 'a.jpg'})
    with pytest.raises(DataError, match=r'a\.jpg has not one label'):
        judged([sample])
