"""Own data in every format: what a run reads is what is in the files, under the right names.

The truth fed back as predictions scores 1.0 with the metric that the config gets, and names and boxes are
those that the test wrote: classes, their order and offsets are right.
"""

from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from layouts import NAMES
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from mmsgformer.data import DataError
from mmsgformer.data.classes import check_classes
from mmsgformer.data.convert import prepare
from mmsgformer.data.folders import Found
from mmsgformer.data.formats import recognize
from mmsgformer.data.own import describe, use_data
from mmsgformer.engine.exact_resume import enable_exact_resume

CONFIGS = Path(__file__).parents[2] / 'configs'
DETECTOR = CONFIGS / 'demo' / 'mask-rcnn_sgformer-tiny_fpn_shapes.py'
SEGMENTER = CONFIGS / 'demo' / 'sgformer-tiny_upernet_shapes.py'
CLASSIFIER = CONFIGS / 'demo' / 'sgformer-tiny_shapes.py'
SOME = ('star', 'disc')
DETECTION = {
    # name: (layout, its options, has masks, classes in order)
    'coco': (layouts.coco, {}, True, NAMES),
    'coco, ids with gaps, shuffled': (layouts.coco, {'ids': (90, 7, 33, 1)}, True, NAMES),
    'coco, ids from 0': (layouts.coco, {'ids': (0, 1, 2, 3), 'first': 0}, True, NAMES),
    'coco, another order in val': (layouts.coco, {'val_order': NAMES[::-1]}, True, NAMES),
    'coco, two classes': (layouts.coco, {'order': SOME, 'ids': (8, 3)}, True, SOME),
    'coco, one class': (layouts.coco, {'order': ('square',), 'ids': (5,)}, True, ('square',)),
    'one json beside the images': (layouts.coco_beside, {}, True, NAMES),
    'one json beside images/': (layouts.coco_beside, {'images': 'images'}, True, NAMES),
    'roboflow': (layouts.roboflow, {}, False, NAMES),
    'yolo boxes': (layouts.yolo, {}, False, NAMES),
    'yolo, exported by Roboflow': (layouts.yolo, {'export': True}, False, NAMES),
    'yolo, lists of images': (layouts.yolo, {'listed': True}, False, NAMES),
    'yolo, numbers with gaps, no val': (layouts.yolo, {'gaps': True, 'valid': False}, False, NAMES),
    'yolo polygons': (layouts.yolo, {'polygons': True}, True, NAMES),
    'voc': (layouts.voc, {}, False, tuple(sorted(NAMES))),
    'voc beside the images': (layouts.voc, {'beside': True}, False, tuple(sorted(NAMES))),
}


def set_up(config: Path, data: Path, out: Path) -> tuple[Config, Found]:
    """A config set to a folder, whose classes agree everywhere; the folder is as it was."""
    before = layouts.listing(data)
    found = prepare(recognize(data), out)
    cfg = Config.fromfile(config)
    use_data(cfg, found)
    assert not check_classes(cfg)
    init_default_scope(cfg.default_scope)
    assert layouts.listing(data) == before
    return cfg, found


def val_data(cfg: Config):
    """The validation data set and its metric."""
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    return dataset, metric


@pytest.mark.parametrize('name', DETECTION)
def test_detection(name, shapes, tmp_path):
    layout, options, has_masks, classes = DETECTION[name]
    data = tmp_path / 'my data ü'
    data.mkdir()
    if layout is layouts.coco_beside and not options:
        data.rmdir()
    layout(shapes, data, **options)
    cfg, found = set_up(DETECTOR, data, tmp_path / 'out')
    assert (found.task, found.has_masks, found.classes) == ('detection', has_masks, classes)
    dataset, metric = val_data(cfg)
    split = 'val' if 'val' in recognize(data).splits else 'train'
    expected = layouts.truth_of(shapes, split)
    num_objects = 0
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        truth = sample.gt_instances
        info = dataset.get_data_info(i)['instances']
        file = Path(sample.img_path).name.removeprefix(f'{split} ')
        wanted = sorted(one for one in expected[file] if one[0] in classes)
        read = sorted((dataset.metainfo['classes'][one['bbox_label']], one['bbox']) for one in info)
        assert [label for label, _ in read] == [label for label, _ in wanted]
        corners = [[x, y, x + w, y + h] for _, (x, y, w, h) in wanted]
        # Polygons go through the middle of the border's pixels; the others are exact.
        tolerance = 1.01 if 'polygons' in name else 0.01
        assert np.allclose([box for _, box in read], corners or [], atol=tolerance)
        num_objects += len(wanted)
        predicted = InstanceData(
            bboxes=truth.bboxes.tensor, labels=truth.labels, scores=torch.ones(len(truth.labels))
        )
        if has_masks:
            predicted.masks = torch.from_numpy(truth.masks.to_ndarray()).bool()
        sample.pred_instances = predicted
        metric.process({}, [sample.to_dict()])
    assert num_objects == found.splits['val'].num_objects > 0
    results = metric.evaluate(len(dataset))
    assert results['coco/bbox_mAP'] == 1.0
    assert results.get('coco/segm_mAP', 1.0) == 1.0
    assert ('coco/segm_mAP' in results) == has_masks


def test_masks_are_off_in_the_whole_model_where_there_are_boxes_alone(shapes, tmp_path):
    layouts.yolo(shapes, tmp_path / 'data')
    cfg, _ = set_up(DETECTOR, tmp_path / 'data', tmp_path / 'out')
    assert not MODELS.build(cfg.model).roi_head.with_mask
    assert 'gt_masks' not in DATASETS.build(cfg.train_dataloader.dataset)[0]['data_samples'].gt_instances
    with pytest.raises(DataError, match=r'learns from masks.*retinanet'):
        use_data(Config.fromfile(CONFIGS / 'swap' / 'mmdet_mask2former.py'), prepare_again(tmp_path))


def prepare_again(folder: Path) -> Found:
    return prepare(recognize(folder / 'data'), folder / 'out')


@pytest.mark.parametrize(
    ('options', 'classes', 'ignored'),
    [
        ({}, 'void background disc square triangle star', 0),
        ({'layout': 'annot', 'palette': False}, 'void background disc square triangle star', 0),
        ({'layout': 'flat', 'classes': None}, '0 1 2 3 4 5', 255),
        ({'classes': 'a\nb\nc\nd\ne\n'}, 'a b c d e', 5),
        ({'classes': 'a\nb\nc\nd\ne\nvoid\n'}, 'a b c d e', 5),
        ({'classes': '5 e\n0 a\n1 b\n3 d\n'}, 'a b 2 d 4 e', 255),
    ],
    ids=lambda value: str(value).replace('\n', ' '),
)
def test_segmentation(options, classes, ignored, shapes, tmp_path):
    layouts.label_maps(shapes, tmp_path / 'data', **options)
    cfg, found = set_up(SEGMENTER, tmp_path / 'data', tmp_path / 'out')
    assert (' '.join(found.classes), found.ignored) == (classes, ignored)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        assert (head.num_classes, head.get('ignore_index', 255)) == (len(found.classes), ignored)
    assert cfg.model.data_preprocessor.seg_pad_val == ignored  # what is padded is ignored too
    dataset, metric = val_data(cfg)
    assert len(dataset) == len(found.splits['val'].files) == (3 if options.get('layout') == 'flat' else 4)
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        read = sample.gt_sem_seg.data[0].numpy()
        assert np.array_equal(read, np.asarray(Image.open(sample.seg_map_path)))
        assert Path(sample.seg_map_path).stem == Path(sample.img_path).stem
        predicted = sample.gt_sem_seg.data.clone()
        predicted[predicted == ignored] = 1  # whatever it is
        sample.pred_sem_seg = PixelData(data=predicted)
        metric.process({}, [sample.to_dict()])
    assert metric.evaluate(len(dataset))['mIoU'] == 100.0


@pytest.mark.parametrize('valid', [True, False])
def test_classification(valid, shapes, tmp_path):
    """Every class has its share in the validation split that is made."""
    layouts.class_folders(shapes, tmp_path / 'data', valid)
    if valid:  # a class that is not in the validation images does not shift the others
        for path in (tmp_path / 'data' / 'val' / 'disc 形').iterdir():
            path.unlink()
        (tmp_path / 'data' / 'val' / 'disc 形').rmdir()
    cfg, found = set_up(CLASSIFIER, tmp_path / 'data', tmp_path / 'out')
    assert found.classes == tuple(sorted(f'{name} 形' for name in NAMES))
    dataset, metric = val_data(cfg)
    folders = []
    for i in range(len(dataset)):
        sample = pseudo_collate([dataset[i]])['data_samples'][0]
        folders.append(Path(dataset.get_data_info(i)['img_path']).parent.name)
        assert dataset.metainfo['classes'][int(sample.gt_label)] == folders[-1]
        scores = torch.zeros(len(found.classes))
        scores[sample.gt_label] = 1.0
        sample.set_pred_score(scores).set_pred_label(sample.gt_label)
        metric.process({}, [sample.to_dict()])
    assert len(set(folders)) == (3 if valid else 4)
    assert metric.evaluate(len(dataset))['accuracy/top1'] == 100.0


@pytest.mark.parametrize(
    ('layout', 'options', 'config'),
    [
        (layouts.yolo, {'valid': False}, DETECTOR),
        (layouts.coco_beside, {'images': 'images'}, DETECTOR),
        (layouts.label_maps, {'layout': 'flat'}, SEGMENTER),
        (layouts.class_folders, {'valid': False}, CLASSIFIER),
    ],
)
def test_a_validation_split_is_a_fifth_and_always_the_same(layout, options, config, shapes, tmp_path):
    """Written down, in all processes and runs alike, a fifth of each class where images have one."""
    layout(shapes, tmp_path / 'data', **options)
    cfg, found = set_up(config, tmp_path / 'data', tmp_path / 'out')
    set_up(config, tmp_path / 'data', tmp_path / 'elsewhere')
    for file in (tmp_path / 'out').iterdir():
        assert file.read_bytes() == (tmp_path / 'elsewhere' / file.name).read_bytes()
    assert 'no validation split: 20%' in describe(found, cfg)
    files = recognize(tmp_path / 'data').splits['train'].files
    read = {}
    for name in ('train', 'val'):
        dataset = DATASETS.build(cfg[f'{name}_dataloader'].dataset)
        paths = [Path(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
        read[name] = [str(path.relative_to(found.splits[name].images)) for path in paths]
        assert sorted(read[name]) == sorted(found.splits[name].files)
    assert sorted(read['train'] + read['val']) == sorted(files)
    folders = {Path(file).parent for file in files}
    for folder in folders:
        counts = [sum(Path(file).parent == folder for file in listed) for listed in (files, read['val'])]
        assert counts[1] == round(counts[0] / 5) > 0


@pytest.mark.parametrize('layout', [layouts.coco, layouts.yolo])
def test_more_objects_than_a_model_finds_are_said(layout, shapes, tmp_path):
    layout(shapes, tmp_path / 'data')
    cfg, found = set_up(DETECTOR, tmp_path / 'data', tmp_path / 'out')
    most = max(
        len(objects) for split in ('train', 'val') for objects in layouts.truth_of(shapes, split).values()
    )
    cfg.model.test_cfg.rcnn.max_per_img = most
    assert 'note' not in describe(found, cfg)
    cfg.model.test_cfg.rcnn.max_per_img = most - 1
    assert f'has {most} objects' in describe(found, cfg)
    assert 'raise model.test_cfg.rcnn.max_per_img with --cfg-options' in describe(found, cfg)


def test_a_test_split_is_for_tests_alone(shapes, tmp_path):
    layouts.coco(shapes, tmp_path / 'data')
    (tmp_path / 'data' / 'val2017').rename(tmp_path / 'data' / 'test2017')
    path = tmp_path / 'data' / 'annotations' / 'instances_val2017.json'
    path.rename(path.with_name('instances_test2017.json'))
    cfg, _ = set_up(DETECTOR, tmp_path / 'data', tmp_path / 'out')
    for name in ('val', 'test'):
        assert Path(cfg[f'{name}_dataloader'].dataset.ann_file).stem == name
        assert Path(cfg[f'{name}_evaluator'].ann_file).stem == name
        images = {'val': 'train2017', 'test': 'test2017'}[name]
        assert Path(cfg[f'{name}_dataloader'].dataset.data_prefix.img).name == images


CONFIG_FILES = [
    'coco/cascade-mask-rcnn_sgformer-s_fpn_ms-3x_coco.py',
    'coco/retinanet_sgformer-s_fpn_1x_coco.py',
    'swap/mmdet_dino.py',
    'swap/mmdet_mask2former.py',
    'ade20k/sgformer-s_semantic-fpn_8xb2-80k_ade20k-512x512.py',
    'swap/mmseg_mask2former.py',
    'imagenet/sgformer-s_8xb128_in1k.py',
    'swap/mmpretrain_classifier.py',
]


@pytest.mark.parametrize('wrapped', [False, True], ids=['plain', 'wrapped'])
@pytest.mark.parametrize('config', CONFIG_FILES)
def test_every_head_and_loss_of_other_configs(config, wrapped, shapes, tmp_path):
    """Lists of stages, weights of classes, labels of padding, ranks; also within wrappers."""
    task = {'ade20k': 'segmentation', 'imagenet': 'classification'}.get(config.partition('/')[0], 'detection')
    task = {'mmseg': 'segmentation', 'mmpre': 'classification'}.get(config[5:10], task)
    layout = {'segmentation': layouts.label_maps, 'classification': layouts.class_folders}.get(
        task, layouts.coco
    )
    layout(shapes, tmp_path / 'data')
    found = prepare_again(tmp_path)
    cfg = Config.fromfile(CONFIGS / config)
    if wrapped:
        enable_exact_resume(cfg)
        cfg.train_dataloader.dataset.dataset = dict(
            type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset.dataset
        )
    use_data(cfg, found)
    assert not check_classes(cfg)
    init_default_scope(cfg.default_scope)
    text = cfg.pretty_text
    assert not any(f'num_classes={number}' in text for number in (80, 150, 1000))
    assert DATASETS.build(cfg.val_dataloader.dataset)[0] is not None
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 16 * (1 + wrapped) or task == 'classification'
    METRICS.build(cfg.val_evaluator)
    assert cfg.val_evaluator.get('topk', (1,)) == (1,)  # there are no five classes


def test_weights_of_classes_are_the_users_to_give(shapes, tmp_path):
    layouts.label_maps(shapes, tmp_path / 'data')
    cfg = Config.fromfile(SEGMENTER)
    cfg.model.decode_head.loss_decode.class_weight = [1.0, 2.0, 2.0, 2.0, 2.0]
    use_data(cfg, prepare_again(tmp_path))
    (problem,) = check_classes(cfg)
    assert problem.file == 'model.decode_head.loss_decode.class_weight'


@pytest.mark.parametrize('config', sorted((CONFIGS / 'camvid').glob('*-t_*.py')), ids=lambda p: p.stem)
def test_a_selection_of_the_configs_own_images_is_not_made_of_others(config, shapes, tmp_path):
    """The study's configs hold images out by their places in the list."""
    assert Config.fromfile(config).val_dataloader.dataset.indices
    layouts.label_maps(shapes, tmp_path / 'data')
    cfg, found = set_up(config, tmp_path / 'data', tmp_path / 'out')
    assert len(DATASETS.build(cfg.val_dataloader.dataset)) == len(found.splits['val'].files)


@pytest.mark.parametrize('config', [SEGMENTER, CLASSIFIER])
def test_data_for_another_task(config, shapes, tmp_path):
    layouts.voc(shapes, tmp_path / 'data')
    with pytest.raises(
        DataError, match=r'for detection .*is for (segm|class).*configs/coco/mask-rcnn'
    ) as error:
        use_data(Config.fromfile(config), prepare_again(tmp_path))
    named = str(error.value).rpartition(' ')[2]
    assert (CONFIGS.parent / named).is_file()


def test_what_a_run_has_trained_on_is_not_replaced(shapes, tmp_path):
    layouts.yolo(shapes, tmp_path / 'data')
    prepare(recognize(tmp_path / 'data'), tmp_path / 'run' / 'data')
    next((tmp_path / 'data' / 'labels' / 'train').iterdir()).write_text('')
    prepare(recognize(tmp_path / 'data'), tmp_path / 'run' / 'data')  # nothing was trained: written anew
    (tmp_path / 'run' / 'iter_1.pth').touch()
    next((tmp_path / 'data' / 'labels' / 'train').iterdir()).write_text('0 0.5 0.5 0.5 0.5')
    before = layouts.listing(tmp_path / 'run')
    with pytest.raises(DataError, match='has trained on it; give another --work-dir'):
        prepare(recognize(tmp_path / 'data'), tmp_path / 'run' / 'data')
    assert layouts.listing(tmp_path / 'run') == before
