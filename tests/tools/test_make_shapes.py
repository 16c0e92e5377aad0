"""The synthetic data set: all formats are valid and describe the same pictures."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

SPLITS = {'train': ('training', 16), 'val': ('validation', 4)}


@pytest.mark.parametrize('split', SPLITS)
def test_instance_masks_and_label_maps_agree(shapes, split):
    folder, count = SPLITS[split]
    coco = COCO(str(shapes / 'annotations' / f'instances_{split}2017.json'))
    assert len(coco.getImgIds()) == count
    for image in coco.loadImgs(coco.getImgIds()):
        name = image['file_name']
        picture = cv2.imread(str(shapes / f'{split}2017' / name))
        assert picture.shape == (image['height'], image['width'], 3)
        assert np.array_equal(picture, cv2.imread(str(shapes / 'images' / folder / name)))
        label_file = (shapes / 'annotations' / folder / name).with_suffix('.png')
        labels = cv2.imread(str(label_file), cv2.IMREAD_GRAYSCALE)
        expected = np.ones_like(labels)
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert annotations
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert (expected[mask] == 1).all(), 'visible masks overlap'
            expected[mask] = annotation['category_id'] + 1
            assert mask.sum() == annotation['area']
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
            assert annotation['bbox'] == box
        assert np.array_equal(labels, expected)


@pytest.mark.parametrize('split', SPLITS)
def test_there_is_one_crop_per_shape_in_its_class_folder(split, shapes):
    content = json.loads((shapes / 'annotations' / f'instances_{split}2017.json').read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    expected = {(names[a['category_id']], f'{a["image_id"]:06d}_{a["id"]}') for a in content['annotations']}
    crops = list((shapes / split).glob('*/*.jpg'))
    assert {(crop.parent.name, crop.stem) for crop in crops} == expected
    assert all(min(cv2.imread(str(crop)).shape[:2]) > 8 for crop in crops)


def test_some_objects_overlap(shapes):
    boxes = {}
    for a in json.loads((shapes / 'annotations' / 'instances_train2017.json').read_text())['annotations']:
        x, y, width, height = a['bbox']
        boxes.setdefault(a['image_id'], []).append((x, y, x + width, y + height))

    def overlap(a, b):
        return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])

    pairs = [(a, b) for found in boxes.values() for i, a in enumerate(found) for b in found[:i]]
    assert any(overlap(a, b) for a, b in pairs)


def test_the_same_seed_writes_the_same_files(run_tool, shapes, tmp_path):
    assert run_tool('make_shapes.py', tmp_path, '--train', 16, '--val', 4).returncode == 0
    files = sorted(p.relative_to(shapes) for p in shapes.rglob('*') if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*') if p.is_file())
    assert all((shapes / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)
    other = tmp_path / 'other'
    assert run_tool('make_shapes.py', other, '--train', 16, '--val', 4, '--seed', 1).returncode == 0
    assert (shapes / 'val2017/000001.jpg').read_bytes() != (other / 'val2017/000001.jpg').read_bytes()
