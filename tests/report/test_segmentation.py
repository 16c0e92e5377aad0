"""A segmenter's numbers are those of mmseg's IoUMetric on the same predictions."""

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

from mmsgformer.report.segmentation import WRONG, SegmentationResults

CLASSES = ('road', 'tree', 'sky', 'nowhere')
PALETTE = [(10, 20, 30), (200, 20, 30), (10, 200, 30), (10, 20, 200)]
IGNORED = 255


def samples_of(noise: float) -> list[SegDataSample]:
    """Five images of three of the classes, a tenth of the pixels without a label."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(5):
        truth = rng.integers(0, 3, (1, 30, 40))
        predicted = np.where(rng.random(truth.shape) < noise, rng.integers(0, 3, truth.shape), truth)
        truth[rng.random(truth.shape) < 0.1] = IGNORED
        sample = SegDataSample(metainfo={'img_path': 'a.jpg'})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth))
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(predicted))
        samples.append(sample)
    return samples


def judged(samples: list[SegDataSample]) -> SegmentationResults:
    results = SegmentationResults(CLASSES, PALETTE, IGNORED)
    for sample in samples:
        results.add(sample)
    return results


def test_numbers_are_those_of_ioumetric():
    samples = samples_of(noise=0.5)
    summary = judged(samples).summary()
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, [sample.to_dict() for sample in samples])
    areas = tuple(map(sum, zip(*metric.results, strict=True)))
    per_class = IoUMetric.total_area_to_metrics(*areas)
    expected = metric.evaluate(size=len(samples))
    headline = dict(summary.headline)
    for name, key in (('mIoU', 'mIoU'), ('pixel accuracy', 'aAcc'), ('mean class accuracy', 'mAcc')):
        assert 100 * headline[name] == pytest.approx(expected[key], abs=5e-3)
    _, iou, accuracy, shares = zip(*summary.tables[0].rows, strict=True)
    np.testing.assert_allclose(iou, per_class['IoU'], rtol=1e-5)
    np.testing.assert_allclose(accuracy, per_class['Acc'], rtol=1e-5)
    assert sum(shares) == pytest.approx(1)
    assert np.isnan(iou[3])


def test_the_truth_is_perfect():
    """1 everywhere but for the class that is nowhere, and no mistakes in any picture."""
    samples = samples_of(noise=0)
    results = judged(samples)
    summary = results.summary()
    assert [value for _, value in summary.headline] == [1, 1, 1]
    assert [row[1:3] for row in summary.tables[0].rows[:3]] == [(1, 1)] * 3
    assert not any(map(results.is_error, range(5)))
    assert (summary.scores == 1).all()
    assert summary.confusion.most_confused(5) == []


def test_mistakes_are_told_and_painted():
    sample = samples_of(noise=0)[0]
    sample.gt_sem_seg.data[0, :2, :5] = 0
    sample.pred_sem_seg.data[0, :2, :5] = 1
    results = judged([sample])
    assert results.is_error(0)
    assert 'most confused: 10 pixels of road taken for tree' in results.describe(0)
    image = np.full((30, 40, 3), 100, np.uint8)
    pictures = {picture.text: picture.image for picture in results.draw(0, image, lambda: sample)}
    assert list(pictures) == ['image', 'truth', 'prediction', 'mistakes']
    orange = abs(pictures['mistakes'].astype(int) - (0.45 * 100 + 0.55 * np.array(WRONG))).max(axis=2) <= 1
    assert orange.sum() == 10
    assert orange[:2, :5].all()
