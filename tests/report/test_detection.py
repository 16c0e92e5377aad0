"""A detector's numbers are those of mmdet's CocoMetric on the same predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmsgformer.report.detection import DetectionResults

CLASSES = ('disc', 'square', 'triangle', 'star')
NUM_IMAGES = 12
MIXED = {1: 7, 2: 3, 3: 90, 4: 1}  # ids with gaps, in another order than the list


@pytest.fixture(scope='module')
def scenes(tmp_path_factory, run_tool) -> Path:
    """Enough images that every class is in some."""
    out = tmp_path_factory.mktemp('scenes')
    assert run_tool('make_shapes.py', out, '--train', 1, '--val', NUM_IMAGES).returncode == 0
    return out


def annotations(data: Path, folder: Path, ids: dict[int, int] | None = None, crowd: bool = False) -> Path:
    """The validation annotations with other category ids, or the largest object of each image as a crowd."""
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    for entry in [*content['annotations'], *content['categories']]:
        key = 'id' if 'name' in entry else 'category_id'
        entry[key] = (ids or {}).get(entry[key], entry[key])
    if crowd:
        for image in content['images']:
            of_image = [entry for entry in content['annotations'] if entry['image_id'] == image['id']]
            max(of_image, key=lambda entry: entry['area'])['iscrowd'] = 1
    path = folder / 'annotations.json'
    path.write_text(json.dumps(content))
    return path


def samples_of(truth: COCO, noise: float) -> list[DetDataSample]:
    """Predictions: the objects, and with noise moved, some lost, some of another class and some invented."""
    rng = np.random.default_rng(0)
    categories = truth.getCatIds(catNms=CLASSES)
    samples = []
    for image in truth.getImgIds():
        boxes, labels, scores, masks = [], [], [], []
        for entry in truth.loadAnns(truth.getAnnIds([image])):
            for _ in range(2 if noise and rng.random() < 0.4 else 1):
                if noise and rng.random() < 0.2:
                    continue
                shift = np.round(rng.normal(0, 2 * noise, 2)).astype(int)
                left, top, width, height = entry['bbox']
                boxes.append(
                    [left + shift[0], top + shift[1], left + width + shift[0], top + height + shift[1]]
                )
                label = categories.index(entry['category_id'])
                labels.append((label + 1) % 4 if noise and rng.random() < 0.2 else label)
                scores.append(round(float(rng.uniform(0.1, 1)), 3) if noise else 1.0)
                mask = truth.annToMask(entry).astype(bool)
                masks.append(np.roll(mask, shift[::-1], (0, 1)))
        sample = DetDataSample(metainfo={'img_id': image, 'ori_shape': (112, 112)})
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.long),
            scores=torch.tensor(scores),
            masks=torch.from_numpy(np.array(masks, bool).reshape(-1, 112, 112)),
        )
        samples.append(sample)
    return samples


def judged(path: Path, samples: list[DetDataSample]) -> DetectionResults:
    results = DetectionResults(CLASSES, COCO(str(path)))
    for sample in samples:
        results.add(sample)
    return results


@pytest.mark.parametrize('crowd', [False, True])
def test_numbers_are_those_of_cocometric(scenes, tmp_path, crowd):
    """Overall by size and by class, for boxes and masks."""
    path = annotations(scenes, tmp_path, crowd=crowd)
    samples = samples_of(COCO(str(path)), noise=1)
    overall, *per_class = judged(path, samples).summary().tables
    for kind, row, table in zip(('bbox', 'segm'), overall.rows, per_class, strict=True):
        metric = CocoMetric(ann_file=str(path), metric=kind, classwise=True)
        metric.dataset_meta = dict(classes=CLASSES)
        metric.process({}, [sample.to_dict() for sample in samples])
        expected = metric.evaluate(size=len(samples))
        names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
        for name, value in zip(names, row[1:], strict=True):
            logged = expected[f'coco/{kind}_{name}']
            assert np.isnan(value) if logged == -1 else value == pytest.approx(logged, abs=5e-4)
        assert 0.1 < row[1] < 0.9
        for name, average, *_ in table.rows:
            assert average == pytest.approx(expected[f'coco/{name}_precision'], abs=5e-4)


@pytest.mark.parametrize('ids', [None, MIXED], ids=['ids of the file', 'ids with gaps, mixed'])
def test_the_truth_is_perfect(scenes, tmp_path, ids):
    """1 everywhere, and nothing false or missed."""
    path = annotations(scenes, tmp_path, ids)
    results = judged(path, samples_of(COCO(str(path)), noise=0))
    summary = results.summary()
    numbers = [value for table in summary.tables for row in table.rows for value in row[1:7]]
    numbers = [value for value in numbers if not np.isnan(value)]
    assert numbers == pytest.approx([1] * len(numbers))
    assert len(numbers) > 30
    assert not any(map(results.is_error, range(NUM_IMAGES)))
    counts = summary.confusion.counts
    assert counts.sum() == np.trace(counts) == len(results.truth.anns)
    assert summary.confusion.most_confused(5) == []


def test_what_is_on_a_crowd_is_neither_right_nor_false(scenes, tmp_path):
    """As COCO has it; and crowds are not missed."""
    path = annotations(scenes, tmp_path, crowd=True)
    results = judged(path, samples_of(COCO(str(path)), noise=0))
    summary = results.summary()
    single = sum(not entry['iscrowd'] for entry in results.truth.anns.values())
    assert len(results.truth.anns) - single == NUM_IMAGES
    assert not any(map(results.is_error, range(NUM_IMAGES)))
    assert summary.confusion.counts.sum() == np.trace(summary.confusion.counts) == single
    assert sum(row[-1] for row in summary.tables[1].rows) == single


def test_classes_are_told_apart_by_their_ids(scenes, tmp_path):
    """One class alone is found: its row has 1, also where ids are in another order than the classes."""
    path = annotations(scenes, tmp_path, MIXED)
    samples = samples_of(COCO(str(path)), noise=0)
    for sample in samples:
        sample.pred_instances = sample.pred_instances[sample.pred_instances.labels == 2]
    table = judged(path, samples).summary().tables[1]
    assert {row[0]: row[1] for row in table.rows} == {'disc': 0, 'square': 0, 'triangle': 1, 'star': 0}


def test_what_is_false_and_missed_is_told(scenes, tmp_path):
    """An image: an object of another class, one that is lost, one that is invented."""
    path = annotations(scenes, tmp_path)
    truth = COCO(str(path))
    samples = samples_of(truth, noise=0)
    at = next(i for i, sample in enumerate(samples) if len(sample.pred_instances) >= 4)
    found = samples[at].pred_instances
    objects = len(found)
    was = int(found.labels[0])
    found.labels[0] = (was + 1) % 4
    found = InstanceData.cat([found[:-1], found[1:2]])
    found.bboxes[-1] = torch.tensor([0.0, 0.0, 3.0, 3.0])
    samples[at].pred_instances = found
    results = judged(path, samples)
    summary = results.summary()
    right, false, missed = map(len, results.matches[at])
    assert (right, false, missed) == (objects - 2, 2, 2)
    assert results.describe(at) == f'{objects - 2} right, 2 false positives, 2 missed'
    counts = summary.confusion.counts
    assert counts[was, (was + 1) % 4] == 1  # a confusion, where COCO has a false and a missed one
    assert counts[:4, 4].sum() == counts[4, :4].sum() == 1
    assert summary.scores.argmin() == at
    pictures = results.draw(at, np.zeros((112, 112, 3), np.uint8), lambda: None)
    assert [picture.image.shape for picture in pictures] == [(480, 480, 3)] * 2
    assert all(picture.image.any() for picture in pictures)


def test_the_score_that_is_shown_has_the_best_f1(scenes, tmp_path):
    """Right ones have 0.8, as many false ones 0.3: with 0.8 F1 is 1."""
    path = annotations(scenes, tmp_path)
    samples = samples_of(COCO(str(path)), noise=0)
    for sample in samples:
        false = sample.pred_instances.clone()
        false.bboxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(false), 1)
        false.scores = false.scores * 0.3
        sample.pred_instances.scores *= 0.8
        sample.pred_instances = InstanceData.cat([sample.pred_instances, false])
    results = judged(path, samples)
    results.summary()
    assert results.threshold == 0.8
    assert not any(map(results.is_error, range(NUM_IMAGES)))


def test_a_detector_that_finds_nothing(scenes, tmp_path):
    path = annotations(scenes, tmp_path)
    samples = samples_of(COCO(str(path)), noise=0)
    for sample in samples:
        sample.pred_instances = sample.pred_instances[:0]
    results = judged(path, samples)
    summary = results.summary()
    assert [value for _, value in summary.headline] == [0, 0, 0, 0]
    assert sum(len(match.missed) for match in results.matches) == len(results.truth.anns)
    assert (summary.scores < 0).all()


def test_more_than_100_objects_are_noted(tmp_path):
    """mmdet logs AP with 100 predictions an image at most; the page has all of them, and says so."""
    corners = [(10 * i, 10 * j) for i in range(12) for j in range(12)]
    square = np.zeros((120, 120), np.uint8)
    square[:8, :8] = 1
    content = {'images': [{'id': 1, 'width': 120, 'height': 120}], 'categories': [], 'annotations': []}
    content['categories'] = [{'id': i, 'name': name} for i, name in enumerate(CLASSES, 1)]
    for i, (left, top) in enumerate(corners, 1):
        rle = coco_mask.encode(np.asfortranarray(np.roll(square, (top, left), (0, 1))))
        shape = {'size': rle['size'], 'counts': rle['counts'].decode()}
        entry = {
            'id': i,
            'image_id': 1,
            'category_id': 1,
            'bbox': [left, top, 8, 8],
            'area': 64,
            'iscrowd': 0,
        }
        content['annotations'].append({**entry, 'segmentation': shape})
    path = tmp_path / 'many.json'
    path.write_text(json.dumps(content))
    boxes = torch.tensor([[left, top, left + 8, top + 8] for left, top in corners], dtype=torch.float32)
    sample = DetDataSample(metainfo={'img_id': 1})
    sample.pred_instances = InstanceData(
        bboxes=boxes, labels=torch.zeros(144, dtype=torch.long), scores=torch.linspace(1, 0.5, 144)
    )
    summary = judged(path, [sample]).summary()
    assert summary.headline == [('box AP', pytest.approx(1)), ('box AP50', pytest.approx(1))]
    assert 'with 100 predictions an image' in summary.notes[0]
