"""The truth, fed back as a prediction, scores 1.0 and carries the names that its files give it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from mmsgformer.data.classes import check_classes
from mmsgformer.data.paths import set_data_root

CONFIGS = Path(__file__).parents[2] / 'configs' / 'demo'
VAL = 'annotations/instances_val2017.json'
NAMES = ('disc', 'square', 'triangle', 'star')


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    """A copy of the synthetic data."""
    return Path(shutil.copytree(shapes, tmp_path / 'data'))


def val_data(cfg: Config, data: Path):
    """The validation data set and its metric, after a check of the classes."""
    set_data_root(cfg, str(data))
    assert not check_classes(cfg)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    return dataset, metric


def as_prediction(truth: InstanceData) -> InstanceData:
    """Annotated objects as objects that were found for sure."""
    return InstanceData(
        bboxes=truth.bboxes.tensor,
        labels=truth.labels,
        scores=torch.ones(len(truth.labels)),
        masks=torch.from_numpy(truth.masks.to_ndarray()).bool(),
    )


@pytest.mark.parametrize('order', [NAMES, NAMES[::-1], ('square',), ('star', 'disc')], ids=str)
@pytest.mark.parametrize('ids', [(1, 2, 3, 4), (90, 7, 33, 1), (0, 1, 2, 3)], ids=str)
def test_detection(order, ids, data):
    """Categories in any order, ids with gaps or from 0, some of the classes, one class alone."""
    content = json.loads((data / VAL).read_text())
    old = {category['id']: category['name'] for category in content['categories']}
    new = dict(zip(order, ids, strict=False))
    content['categories'] = [{'id': new[name], 'name': name} for name in order]
    content['annotations'] = [a for a in content['annotations'] if old[a['category_id']] in new]
    truth = {}
    for entry in content['annotations']:
        name = old[entry['category_id']]
        entry['category_id'] = new[name]
        truth.setdefault(entry['image_id'], []).append((name, entry['bbox']))
    for split in ('train', 'val'):
        (data / f'annotations/instances_{split}2017.json').write_text(json.dumps(content))
    cfg = Config.fromfile(CONFIGS / 'mask-rcnn_sgformer-tiny_fpn_shapes.py')
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = len(order)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo.classes = order
    dataset, metric = val_data(cfg, data)
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        found = sample.gt_instances
        named = [dataset.metainfo['classes'][label] for label in found.labels]
        assert sorted(named) == sorted(name for name, _ in truth.get(sample.img_id, []))
        sample.pred_instances = as_prediction(found)
        metric.process({}, [sample.to_dict()])
    results = metric.evaluate(len(dataset))
    assert results['coco/bbox_mAP'] == results['coco/segm_mAP'] == 1.0


def test_detection_of_one_image(data):
    content = json.loads((data / VAL).read_text())
    image = content['images'][0]
    content['images'] = [image]
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] == image['id']]
    (data / VAL).write_text(json.dumps(content))
    dataset, metric = val_data(Config.fromfile(CONFIGS / 'mask-rcnn_sgformer-tiny_fpn_shapes.py'), data)
    assert len(dataset) == 1
    sample = dataset[0]['data_samples']
    found = sample.gt_instances
    assert len(found.labels) == len(content['annotations']) > 0
    sample.pred_instances = as_prediction(found)
    metric.process({}, [sample.to_dict()])
    results = metric.evaluate(1)
    assert results['coco/bbox_mAP'] == results['coco/segm_mAP'] == 1.0


@pytest.mark.parametrize('images', [1, None], ids=['one image', 'all images'])
@pytest.mark.parametrize('order', [(0, 1, 2, 3, 4), (4, 2, 0, 1, 3)], ids=str)
def test_segmentation(order, images, data):
    """Whatever the order of the classes in the label maps and the config, and with one image alone."""
    cfg = Config.fromfile(CONFIGS / 'sgformer-tiny_upernet_shapes.py')
    names = cfg.val_dataloader.dataset.metainfo.classes
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo.classes = [names[i] for i in order]
    place = np.array([0, *(order.index(i) + 1 for i in range(5))], np.uint8)  # 0 is not labelled
    for path in sorted((data / 'annotations' / 'validation').iterdir())[images:] if images else []:
        path.unlink()
        (data / 'images' / 'validation' / f'{path.stem}.jpg').unlink()
    for path in (data / 'annotations' / 'validation').iterdir():
        Image.fromarray(place[np.asarray(Image.open(path))]).save(path)
    dataset, metric = val_data(cfg, data)
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        sample.pred_sem_seg = sample.gt_sem_seg.clone()
        metric.process({}, [sample.to_dict()])
        file = np.asarray(Image.open(sample.seg_map_path))
        read = sample.gt_sem_seg.data[0].numpy()
        for name, old in zip(names, range(1, 6), strict=True):
            label = dataset.metainfo['classes'].index(name)
            assert np.array_equal(read == label, file == place[old])
    assert len(dataset) == (images or 4)
    assert metric.evaluate(len(dataset))['mIoU'] == 100.0


@pytest.mark.parametrize('images', [1, None], ids=['one photo a class', 'all photos'])
def test_classification(images, data):
    """The class that a photo's label stands for is called as its folder is."""
    for folder in (data / 'val').iterdir():
        for path in sorted(folder.iterdir())[images:] if images else []:
            path.unlink()
    cfg = Config.fromfile(CONFIGS / 'sgformer-tiny_shapes.py')
    dataset, metric = val_data(cfg, data)
    for i in range(len(dataset)):
        sample = pseudo_collate([dataset[i]])['data_samples'][0]
        folder = Path(dataset.get_data_info(i)['img_path']).parent.name
        assert dataset.metainfo['classes'][int(sample.gt_label)] == folder
        scores = torch.zeros(len(dataset.metainfo['classes']))
        scores[sample.gt_label] = 1.0
        sample.set_pred_score(scores).set_pred_label(sample.gt_label)
        metric.process({}, [sample.to_dict()])
    assert metric.evaluate(len(dataset))['accuracy/top1'] == 100.0
