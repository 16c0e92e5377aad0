"""What training makes of bad and of unusual data: the right column of the table in docs/robustness.md.

One defect at a time in the synthetic data, then the data set as tools/train.py builds it, and one training
step of the demo's model.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image, ImageOps

from mmsgformer.data import DataError
from mmsgformer.data.paths import set_data_root
from mmsgformer.engine.exact_resume import SeededIndex, enable_exact_resume

ROOT = Path(__file__).parents[2]
DETECTOR = ROOT / 'configs' / 'demo' / 'mask-rcnn_sgformer-tiny_fpn_shapes.py'
SEGMENTER = ROOT / 'configs' / 'demo' / 'sgformer-tiny_upernet_shapes.py'
IMAGES = {DETECTOR: 'train2017', SEGMENTER: 'images/training'}
TASKS = pytest.mark.parametrize('config', [DETECTOR, SEGMENTER], ids=['detection', 'segmentation'])
CROP = dict(type='RandomCrop', crop_size=(112, 112))


@pytest.fixture(scope='module')
def models() -> dict[Path, torch.nn.Module]:
    """The demo's detector and segmenter."""
    torch.manual_seed(0)
    built = {}
    for path in (DETECTOR, SEGMENTER):
        cfg = Config.fromfile(path)
        init_default_scope(cfg.default_scope)
        built[path] = MODELS.build(cfg.model)
        built[path].init_weights()
    return built


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    """A copy of the synthetic data."""
    return Path(shutil.copytree(shapes, tmp_path / 'data'))


def load(config: Path, data: Path) -> torch.utils.data.Dataset:
    """The training data as tools/train.py builds it; the segmenter's with a crop, as ADE20K's recipe has."""
    cfg = Config.fromfile(config)
    set_data_root(cfg, str(data))
    if config == SEGMENTER:
        cfg.train_dataloader.dataset.pipeline.insert(2, CROP)
    init_default_scope(cfg.default_scope)
    enable_exact_resume(cfg)
    return DATASETS.build(cfg.train_dataloader.dataset)


def train(model: torch.nn.Module, dataset: torch.utils.data.Dataset, index: int = 0) -> None:
    """Forward and backward of one sample; losses and gradients are numbers."""
    batch = model.data_preprocessor(
        pseudo_collate([dataset[SeededIndex(index, (index,))]] * 2), training=True
    )
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


def edit(data: Path, change: Callable[[dict], object]) -> list[dict]:
    """Change the training annotations; returns the first image's objects as they were."""
    file = data / 'annotations' / 'instances_train2017.json'
    content = json.loads(file.read_text())
    image = content['images'][0]['id']
    objects = [dict(entry) for entry in content['annotations'] if entry['image_id'] == image]
    change(content)
    file.write_text(json.dumps(content))
    return objects


def first(content: dict) -> list[dict]:
    """The first image's objects."""
    return [entry for entry in content['annotations'] if entry['image_id'] == content['images'][0]['id']]


@pytest.mark.parametrize('field', ['file_name', 'width', 'bbox', 'area', 'category_id', None])
def test_annotations_that_cannot_be_listed_end_the_run_at_once(field, data):
    file = data / 'annotations' / 'instances_train2017.json'
    if field is None:
        file.write_text('{"images": [')
    else:
        edit(data, lambda c: c['images' if field in ('file_name', 'width') else 'annotations'][0].pop(field))
    with pytest.raises(DataError, match=f'instances_train2017.json.*{field or "JSON"}'):
        load(DETECTOR, data)


def test_objects_outside_the_annotated_size_are_lost(data, models):
    """It is believed, not the image's: boxes are kept whole, or lost."""
    objects = edit(data, lambda c: c['images'][0].update(width=40, height=40))
    inside = [o for o in objects if o['bbox'][0] < 40 and o['bbox'][1] < 40]
    assert len(inside) < len(objects)
    dataset = load(DETECTOR, data)
    assert [i['bbox'] for i in dataset.get_data_info(0)['instances']] == [
        [x, y, x + w, y + h] for x, y, w, h in (o['bbox'] for o in inside)
    ]
    if inside:
        train(models[DETECTOR], dataset)


def test_a_box_outside_the_image_is_lost_and_one_partly_outside_is_cut(data, models):
    def change(content):
        first(content)[0]['bbox'] = [200, 10, 20, 20]
        first(content)[1]['bbox'] = [100, 10, 60, 20]

    objects = edit(data, change)
    dataset = load(DETECTOR, data)
    assert len(dataset.get_data_info(0)['instances']) == len(objects) - 1
    boxes = dataset[SeededIndex(0, (0,))]['data_samples'].gt_instances.bboxes.tensor
    assert boxes.min() >= 0
    assert boxes.max() <= 112
    train(models[DETECTOR], dataset)


def test_a_mask_outside_the_image_is_cut(data, models):
    edit(data, lambda c: first(c)[0].update(segmentation=[[0, 0, 250, 0, 250, 20]]))
    dataset = load(DETECTOR, data)
    assert dataset[SeededIndex(0, (0,))]['data_samples'].gt_instances.masks.masks.shape[1:] == (112, 112)
    train(models[DETECTOR], dataset)


@pytest.mark.parametrize('mask', [{'size': [64, 64], 'counts': [4096]}, None])
def test_a_mask_of_another_size_or_none_is_named(mask, data):
    edit(data, lambda c: first(c)[0].update(segmentation=mask))
    with pytest.raises(DataError, match=r'000001\.jpg'):
        load(DETECTOR, data)[SeededIndex(0, (0,))]


def test_a_class_that_the_annotations_lack_shifts_the_others(data):
    def change(content):
        (entry,) = (entry for entry in content['categories'] if entry['name'] == 'disc')
        entry['name'] = 'disk'

    objects = edit(data, change)
    names = ['disc', 'square', 'triangle', 'star']
    kept = [o for o in objects if o['category_id'] != 1]
    instances = load(DETECTOR, data).get_data_info(0)['instances']
    assert kept
    assert [names[i['bbox_label']] for i in instances] == [names[o['category_id'] - 2] for o in kept]


def test_objects_of_a_category_that_the_config_lacks_are_background(data, models):
    def change(content):
        content['categories'].append({'id': 5, 'name': 'hexagon'})
        first(content)[0]['category_id'] = 5

    objects = edit(data, change)
    dataset = load(DETECTOR, data)
    assert len(dataset.get_data_info(0)['instances']) == len(objects) - 1
    train(models[DETECTOR], dataset)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNREADABLE = {
    'missing': Path.unlink,
    'of 0 bytes': lambda path: path.write_bytes(b''),
    'cut short': cut_short,
    'no image': lambda path: path.write_text('not an image'),
}


@TASKS
@pytest.mark.parametrize('defect', UNREADABLE)
def test_an_unreadable_image_is_named(config, defect, data):
    dataset = load(config, data)  # a missing one that is listed
    UNREADABLE[defect](data / IMAGES[config] / '000001.jpg')
    with pytest.raises(DataError, match=r'000001\.jpg'):
        dataset[SeededIndex(0, (0,))]


LABEL_MAPS = UNREADABLE | {'a pixel wide': lambda path: Image.new('L', (1, 1)).save(path)}


@pytest.mark.parametrize('defect', LABEL_MAPS)
def test_a_label_map_that_is_none_is_named(defect, data):
    dataset = load(SEGMENTER, data)
    LABEL_MAPS[defect](data / 'annotations' / 'training' / '000001.png')
    with pytest.raises(DataError, match=r'000001.jpg, .*000001.png'):
        dataset[SeededIndex(0, (0,))]


def test_a_label_map_with_several_channels_fails_in_the_loss(data, models):
    Image.new('RGB', (112, 112), (1, 1, 1)).save(data / 'annotations' / 'training' / '000001.png')
    with pytest.raises(RuntimeError, match='targets of dimension: 4'):
        train(models[SEGMENTER], load(SEGMENTER, data))


@pytest.mark.parametrize('size', [(64, 112), (256, 256)])
def test_a_label_map_of_another_size_goes_unnoticed(size, data, models):
    Image.new('L', size, 1).save(data / 'annotations' / 'training' / '000001.png')
    train(models[SEGMENTER], load(SEGMENTER, data))


def test_labels_out_of_range_fail_in_the_loss(data, models):
    path = data / 'annotations' / 'training' / '000001.png'
    labels = np.asarray(Image.open(path)).copy()
    labels[:] = 9
    Image.fromarray(labels).save(path)
    with pytest.raises(IndexError, match='Target 8 is out of bounds'):
        train(models[SEGMENTER], load(SEGMENTER, data))


@TASKS
def test_fewer_outputs_than_classes_fail_in_the_loss(config, shapes):
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    heads = cfg.model.roi_head.values() if config == DETECTOR else cfg.model.values()
    for head in heads:
        if isinstance(head, dict) and 'num_classes' in head:
            head.num_classes = 2
    model = MODELS.build(cfg.model)
    dataset = load(config, shapes)
    with pytest.raises(IndexError, match='out of bounds'):
        [train(model, dataset, index) for index in range(len(dataset))]


@TASKS
def test_a_picture_that_exif_turns_is_turned(config, data):
    path = data / IMAGES[config] / '000001.jpg'
    picture = Image.open(path)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    loaded = loaded_rgb(config, data)
    assert np.abs(loaded.astype(int) - upright).mean() < 2
    assert np.abs(loaded.astype(int) - np.asarray(Image.open(path))).mean() > 10


def loaded_rgb(config: Path, data: Path) -> np.ndarray:
    """The first image as the pipeline's first step loads it."""
    dataset = load(config, data)
    return dataset.pipeline.transforms[0](dataset.get_data_info(0))['img'][..., ::-1]


@TASKS
@pytest.mark.parametrize('mode', ['L', '1', 'CMYK', 'RGBA', '16 bits', 'LA', 'P'])
def test_pictures_of_other_kinds_become_rgb(config, mode, data, models):
    path = data / IMAGES[config] / '000001.jpg'
    picture = Image.open(path).convert('L' if mode in ('1', '16 bits') else mode)
    expected = picture.convert('RGB')
    if mode == '16 bits':
        deep = np.asarray(picture).astype(np.uint16) * 256 + 77
        path.write_bytes(cv2.imencode('.png', deep)[1].tobytes())
    elif mode == 'CMYK':
        picture.save(path, format='JPEG', quality=95)
    else:
        if mode == 'RGBA':
            picture.putalpha(0)
        elif mode == '1':
            picture = picture.convert('1')
            expected = picture.convert('RGB')
        picture.save(path, format='PNG')
    loaded = loaded_rgb(config, data)
    assert loaded.dtype == np.uint8
    assert loaded.shape == (112, 112, 3)
    assert np.abs(loaded.astype(int) - np.asarray(expected)).mean() < (3 if mode == 'CMYK' else 0.01)
    train(models[config], load(config, data))


@pytest.mark.parametrize(
    ('config', 'size', 'scale'),
    [
        (DETECTOR, (1, 1), (112, 112)),
        (DETECTOR, (20000, 40), (1333, 800)),
        (DETECTOR, (20000, 40), (112, 112)),
        (SEGMENTER, (20000, 40), None),
    ],
)
def test_pictures_of_extreme_shapes(config, size, scale, data, models):
    """They are resized as any other; what would have no height left is named."""
    Image.new('RGB', size).save(data / IMAGES[config] / '000001.jpg')
    Image.new('L', size, 1).save(data / 'annotations' / 'training' / '000001.png')

    def change(content):
        content['images'][0].update(width=size[0], height=size[1])
        for entry in first(content):
            entry.update(bbox=[0, 0, *size], segmentation=[[0, 0, size[0], 0, *size, 0, size[1]]])

    edit(data, change)
    dataset = load(config, data)
    if scale:
        dataset.pipeline.transforms[2].scale = scale
    if size[0] == 20000 and scale == (112, 112):
        with pytest.raises(DataError, match=r'000001\.jpg'):
            dataset[SeededIndex(0, (0,))]
    else:
        train(models[config], dataset)
