"""Which split is reported on, and how its images and objects are counted."""

import json
from collections import Counter

import pytest
from mmengine.config import Config

from mmsgformer.data import DataError
from mmsgformer.report.data import count_splits, split_to_report

PLAIN = dict(type='CocoDataset', data_root='data', data_prefix=dict(img='images'))


def config(**files: str) -> Config:
    """A config with these splits, each with an annotation file."""
    loaders = {
        f'{split}_dataloader': dict(dataset={**PLAIN, 'ann_file': file}) for split, file in files.items()
    }
    return Config({**loaders, 'test_evaluator': dict(type='CocoMetric')})


@pytest.mark.parametrize(
    ('cfg', 'split'),
    [
        (config(val='a.json', test='a.json'), 'val'),
        (config(val='a.json', test='b.json'), 'test'),
        (config(test='b.json'), 'test'),
        (config(val='a.json'), 'val'),
    ],
    ids=['the same data', 'other data', 'test alone', 'validation alone'],
)
def test_the_test_split_is_taken_if_there_is_one(cfg, split):
    assert split_to_report(cfg) == split


def test_test_data_without_annotations_are_not_taken():
    """As COCO's test-dev."""
    cfg = config(val='a.json', test='b.json')
    cfg.test_evaluator.format_only = True
    assert split_to_report(cfg) == 'val'
    cfg.val_dataloader = None
    with pytest.raises(DataError, match='no val_dataloader'):
        split_to_report(cfg)


@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_images_and_objects_are_counted(run_of, shapes, task):
    """The synthetic data are the same objects in all three formats."""
    (path,) = run_of(task).glob('*.py')
    cfg = Config.fromfile(path)
    cfg.train_dataloader.dataset.dataset.pop('indices', None)
    train, val = count_splits(cfg)
    assert (train.split, val.split) == ('train', 'val')
    content = json.loads((shapes / 'annotations' / 'instances_val2017.json').read_text())
    names = {entry['id']: entry['name'] for entry in content['categories']}
    objects = Counter(names[entry['category_id']] for entry in content['annotations'])
    areas = Counter()
    for entry in content['annotations']:
        areas[names[entry['category_id']]] += entry['area']
    if task == 'segmentation':
        assert {name: val.by_class[name] for name in areas} == areas
        assert val.total() == 4 * 112 * 112
        assert sum(map(val.share, val.by_class)) == pytest.approx(1)
    else:
        assert val.by_class == objects
    assert val.images == (sum(objects.values()) if task == 'classification' else 4)


def test_data_that_are_not_here_any_more_are_said(run_of, tmp_path):
    (path,) = run_of('detection').glob('*.py')
    cfg = Config.fromfile(path)
    cfg.train_dataloader.dataset.dataset.data_root = str(tmp_path / 'moved')
    train, val = count_splits(cfg)
    assert (train.images, train.total(), train.number('disc')) == (None, None, None)
    assert val.images == 4
