"""Pointing a config at other data, and finding out early that data is missing."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmsgformer.data.paths import check_dataset_paths, expand_paths, set_data_root

ROOT = Path(__file__).parents[2]
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


def test_paths_of_a_config_are_expanded(monkeypatch):
    """As a shell does it; a config has no shell."""
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setenv('SETS', '/mnt/sets')
    texts = ['~/coco', '$SETS/coco', '${SETS}/a~b', '$GONE/coco', 'a $SETS', 'b~', '$5']
    cfg = Config(dict(data=dict(data_root=texts[0], rest=texts[1:])))
    expand_paths(cfg)
    assert cfg.data == dict(
        data_root='/home/me/coco',
        rest=['/mnt/sets/coco', '/mnt/sets/a~b', '$GONE/coco', 'a $SETS', 'b~', '$5'],
    )


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


@pytest.mark.parametrize(
    ('evaluator', 'option'),
    [
        ({'ann_file': 'nowhere.json'}, 'val_evaluator.ann_file'),
        ([{'type': 'A'}, {'ann_file': 'nowhere.json'}], 'val_evaluator.1.ann_file'),
    ],
)
def test_an_evaluators_annotations_are_checked(evaluator, option):
    with pytest.raises(FileNotFoundError, match=rf'nowhere\.json .*{option}'):
        check_dataset_paths(Config({'val_evaluator': evaluator}), SPLITS)


@pytest.mark.parametrize(
    'dataset',
    [
        {'data_root': 's3://bucket/coco', 'ann_file': 'a.json'},
        {'data_root': '/no/such', 'ann_file': 'a.json', 'backend_args': {'backend': 'petrel'}},
        {'ann_file': '', 'data_prefix': {'img': None}},
        {'data_root': '/', 'ann_file': ['tmp', 'dev/null'], 'data_prefix': 'tmp'},
    ],
)
def test_what_is_not_a_missing_local_path_passes(dataset):
    check_dataset_paths(Config({'train_dataloader': {'dataset': dataset}}), SPLITS)


def test_a_root_alone_is_checked():
    cfg = Config(
        {'test_dataloader': {'dataset': {'type': 'ImageNet', 'data_root': '/no/such', 'split': 'val'}}}
    )
    with pytest.raises(FileNotFoundError, match=r'/no/such .*test_dataloader\.dataset\.data_root'):
        check_dataset_paths(cfg, SPLITS)


@pytest.mark.parametrize('root', [None, ''])
def test_no_data_root_to_replace(root):
    with pytest.raises(ValueError, match='--cfg-options'):
        set_data_root(Config({'data_root': root, 'model': {'type': 'A'}}), '/data')


def test_data_root_moves_whole_folders_only():
    cfg = Config(
        {'data_root': 'data/coco/', 'a': 'data/coco_panoptic/x', 'b': ['data/coco', {'c': 'data/coco/y'}]}
    )
    set_data_root(cfg, '/d/')
    assert cfg.to_dict() == {'data_root': '/d/', 'a': 'data/coco_panoptic/x', 'b': ['/d', {'c': '/d/y'}]}
