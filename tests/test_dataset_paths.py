"""Pointing a config at other data, and finding out early that data is missing."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmsgformer.dataset_paths import check_dataset_paths, set_data_root

ROOT = Path(__file__).parents[1]
COCO = ROOT / 'configs' / 'coco' / 'mask-rcnn_sgformer-s_fpn_1x_coco.py'
ADE = ROOT / 'configs' / 'ade20k' / 'sgformer-s_upernet_8xb2-160k_ade20k-512x512.py'
SPLITS = ('train', 'val', 'test')


@pytest.mark.parametrize('config', [COCO, ADE])
@pytest.mark.parametrize('slash', ['', '/'])
def test_data_root_moves_every_path(config, slash, shapes):
    cfg = Config.fromfile(config)
    set_data_root(cfg, f'{shapes}{slash}')
    check_dataset_paths(cfg, SPLITS)
    assert 'data/coco' not in cfg.pretty_text
    assert 'data/ade' not in cfg.pretty_text


@pytest.mark.parametrize(
    ('config', 'missing', 'option'),
    [
        (COCO, 'annotations/instances_train2017.json', 'train_dataloader.dataset.ann_file'),
        (COCO, 'train2017', 'train_dataloader.dataset.data_prefix.img'),
        (COCO, 'val2017', 'val_dataloader.dataset.data_prefix.img'),
        (ADE, 'annotations/training', 'train_dataloader.dataset.data_prefix.seg_map_path'),
        (ADE, 'images/validation', 'val_dataloader.dataset.data_prefix.img_path'),
    ],
)
def test_a_missing_path_is_named_with_its_option(config, missing, option, shapes, tmp_path):
    for path in shapes.rglob('*'):
        relative = path.relative_to(shapes)
        if not str(relative).startswith(missing) and path.is_file():
            (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / relative).symlink_to(path)
    cfg = Config.fromfile(config)
    set_data_root(cfg, str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        check_dataset_paths(cfg, SPLITS)
    assert str(tmp_path / missing) in str(error.value)
    assert option in str(error.value)
    assert '--data-root' in str(error.value)


def test_paths_inside_wrapped_data_sets_are_checked(tmp_path):
    inner = {'type': 'CocoDataset', 'data_root': str(tmp_path), 'ann_file': 'none.json'}
    wrapped = {'type': 'RepeatDataset', 'dataset': {'type': 'ConcatDataset', 'datasets': [inner]}}
    cfg = Config({'train_dataloader': {'dataset': wrapped}})
    with pytest.raises(FileNotFoundError, match=r'none\.json .*dataset\.dataset\.datasets\.0\.ann_file'):
        check_dataset_paths(cfg, SPLITS)


def test_an_evaluators_annotations_are_checked(shapes):
    cfg = Config.fromfile(COCO)
    set_data_root(cfg, str(shapes))
    cfg.val_evaluator.ann_file = 'nowhere.json'
    with pytest.raises(FileNotFoundError, match=r'nowhere\.json .*val_evaluator\.ann_file'):
        check_dataset_paths(cfg, SPLITS)


def test_no_data_root_to_replace():
    with pytest.raises(ValueError, match='--cfg-options'):
        set_data_root(Config({'model': {}}), '/data')
