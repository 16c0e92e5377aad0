"""Every defect is found, named with its file, and nothing else is: broken copies of the synthetic data."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmsgformer.data.check import check_data
from mmsgformer.data.paths import set_data_root

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'detection': 'configs/demo/mask-rcnn_sgformer-tiny_fpn_shapes.py',
    'segmentation': 'configs/demo/sgformer-tiny_upernet_shapes.py',
    'classification': 'configs/demo/sgformer-tiny_shapes.py',
}


def check(task: str, data: Path, splits: tuple[str, ...] = ('train', 'val'), **options: object) -> list:
    """The problems of a task's demo config with this data, without how often each class occurs."""
    return without_counts(check_with_counts(task, data, splits, **options))


def without_counts(problems: list) -> list:
    return [p for p in problems if p.is_error or not p.file.endswith('_dataloader.dataset')]


def check_with_counts(task: str, data: Path, splits: tuple[str, ...], **options: object) -> list:
    cfg = Config.fromfile(ROOT / CONFIGS[task])
    set_data_root(cfg, str(data))
    cfg.merge_from_dict(options)
    return check_data(cfg, splits, lambda results, _: results)[0]


def expect(problems: list, expected: list[tuple[str, str, bool]]) -> None:
    """Exactly these problems: the end of a file's name, a part of the text, whether it is an error."""
    left = list(problems)
    for name, text, is_error in expected:
        fitting = [p for p in left if p.file.endswith(name) and text in p.text and p.is_error == is_error]
        assert len(fitting) == 1, f'{name}, {text!r} in {left}'
        left.remove(fitting[0])
    assert not left


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    """A copy of the synthetic data."""
    return Path(shutil.copytree(shapes, tmp_path / 'data'))


# Files that cannot be trained with, and ones that are read differently from what one may think.
BROKEN = {
    1: ('does not exist', True),
    2: ('0 bytes', True),
    3: ('is damaged', True),
    4: ('no image', True),
    5: ('turned by its EXIF data', False),
    6: ('three equal channels', False),
    7: ('CMYK', False),
    8: ('more than 8 bits', False),
    9: ('alpha channel, which is dropped', False),
    10: ('1 x 1 pixels', False),
    11: ('20000 x 40 pixels', False),
}


def break_images(folder: Path, suffix: str = '.jpg', annotate: bool = True) -> list[tuple[str, str, bool]]:
    """Put every defect of an image into a folder with 000001.jpg, ...; returns the problems to expect."""
    path = {number: folder / f'{number:06d}{suffix}' for number in BROKEN}
    path[1].unlink()
    path[2].write_bytes(b'')
    path[3].write_bytes(path[3].read_bytes()[:1500])
    path[4].write_text('not an image')
    picture = Image.open(path[5])
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path[5], exif=exif)
    for number, mode in [(6, 'L'), (7, 'CMYK'), (9, 'RGBA')]:
        picture = Image.open(path[number]).convert(mode)
        picture.save(path[number], format='PNG' if mode == 'RGBA' else 'JPEG')
    deep = cv2.imread(str(path[8]), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 257
    path[8].write_bytes(cv2.imencode('.png', deep)[1].tobytes())
    Image.new('RGB', (1, 1)).save(path[10])
    Image.new('RGB', (20000, 40)).save(path[11])
    return [(f'{number:06d}{suffix}', *expected) for number, expected in BROKEN.items()]


@pytest.mark.parametrize('task', CONFIGS)
def test_nothing_is_wrong_with_good_data(task, shapes):
    assert check(task, shapes) == []


def test_every_defect_of_detection_data_is_found(data, run_tool):
    """By the tool, in one pass."""
    expected = break_images(data / 'train2017')
    expected[-1] = ('000011.jpg', 'nothing is left of it', True)
    file = data / 'annotations' / 'instances_train2017.json'
    content = json.loads(file.read_text())
    images = {image['id']: image for image in content['images']}
    images[10].update(width=1, height=1)
    images[11].update(width=20000, height=40)
    images[12].update(width=64)
    unused = (10, 11, 12)
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] not in unused]
    first = {a['image_id']: a for a in reversed(content['annotations'])}
    first[13]['bbox'] = [200, 10, 20, 20]
    first[14]['bbox'] = [100, 10, 60, 20]
    first[15]['segmentation'] = {'size': [64, 64], 'counts': 'PPP2'}
    first[16]['segmentation'] = [[0, 0, 150, 0, 150, 20]]
    first[5]['bbox'] = [1, 2, 3]
    first[6]['bbox'] = [1, 2, 0.2, 20]
    del first[7]['segmentation']
    del first[8]['area']
    first[9]['category_id'] = 77
    content['annotations'] += [
        {**first[13], 'id': 1001, 'image_id': 99, 'bbox': [0, 0, 9, 9]},
        {**first[13], 'id': 1002, 'category_id': 5, 'bbox': [1, 1, 9, 9]},
        {**first[13], 'id': first[14]['id']},
    ]
    content['categories'].append({'id': 5, 'name': 'hexagon'})
    file.write_text(json.dumps(content))
    val = data / 'annotations' / 'instances_val2017.json'
    val.write_text(val.read_text().replace('"disc"', '"disk"'))

    expected += [
        ('000012.jpg', 'annotated as 64 x 112', True),
        ('000013.jpg', 'outside the image', True),
        ('000014.jpg', 'partly outside the image', True),
        ('000015.jpg', 'a mask of [64, 64]', True),
        ('000016.jpg', 'a mask that leaves the image', True),
        ('000005.jpg', 'no box', True),
        ('000006.jpg', 'smaller than a pixel', False),
        ('000007.jpg', 'no segmentation', True),
        (file.name, 'has no area', True),
        (file.name, 'category 77, which is not listed', True),
        (file.name, 'is of image 99', True),
        (file.name, "category 'hexagon' are left out", False),
        (file.name, 'is there twice', True),
        (val.name, "no category 'disc'", True),
    ]
    problems = check('detection', data)
    discs = [p for p in problems if "category 'disk' are left out" in p.text]
    expect([p for p in problems if p not in discs], expected)

    result = run_tool('check_dataset.py', CONFIGS['detection'], '--data-root', data)
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    for name, text, is_error in expected:
        assert any(
            line.startswith('error' if is_error else 'note') and name in line and text in line
            for line in result.stdout.splitlines()
        )
    assert f'20 images: {sum(e[2] for e in expected)} errors' in result.stdout


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"images": [', 'is not JSON'),
        ('[]', 'must be an object with the lists images, annotations, categories'),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', 'images[0] has no file_name'),
    ],
)
def test_an_annotation_file_that_is_none_is_named(text, message, data):
    (data / 'annotations' / 'instances_train2017.json').write_text(text)
    problems = check('detection', data, splits=('train',))
    assert any(p.file.endswith('instances_train2017.json') and message in p.text for p in problems)


@pytest.mark.parametrize(
    ('part', 'field', 'value', 'file', 'text'),
    [
        ('annotations', 'area', None, '.jpg', 'no number of pixels as area but None'),
        ('annotations', 'area', 'large', '.jpg', "no number of pixels as area but 'large'"),
        ('annotations', 'bbox', [1, 2, float('nan'), 4], '.jpg', 'no box'),
        ('annotations', 'segmentation', [[1, 1], [9, 1], [9, 9]], '.jpg', 'no list of numbers'),
        ('annotations', 'segmentation', [[[1, 1], [9, 1], [9, 9]] * 2], '.jpg', 'no list of numbers'),
        ('annotations', 'segmentation', [[1, 1, 9, 1, 9, float('nan')]], '.jpg', 'no list of numbers'),
        ('annotations', 'segmentation', [['1'] * 6], '.jpg', 'no list of numbers'),
        ('annotations', 'id', [1], '.json', 'annotations[0]: id [1] is no whole number'),
        ('annotations', 'image_id', {}, '.json', 'annotations[0]: image_id {} is no whole number'),
        ('annotations', 'category_id', [1], '.json', 'annotations[0]: category_id [1] is no'),
        ('images', 'id', None, '.json', 'images[0]: id None is no whole number'),
        ('categories', 'id', [1], '.json', 'categories[0]: id [1] is no whole number'),
        ('categories', 'name', ['disc'], '.json', "has no category 'disc'"),
    ],
)
def test_values_of_a_wrong_kind_are_named(part, field, value, file, text, data):
    """They do not end the check."""
    path = data / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    content[part][0][field] = value
    path.write_text(json.dumps(content))
    problems = [p for p in check('detection', data, splits=('train',)) if p.is_error]
    assert any(p.file.endswith(file) and text in p.text for p in problems)


@pytest.mark.parametrize(
    ('kind', 'labels', 'wrong'),
    [
        ('BaseDataset', [0, 3], []),
        ('BaseDataset', [0, 4], [4]),
        ('MultiLabelDataset', [[0, 1], [3]], []),
        ('MultiLabelDataset', [[0, 1], [2, 5]], [5]),
    ],
)
def test_mmpretrains_own_lists_are_read(kind, labels, wrong, data):
    """They end in .json as COCO's do; an image has one class or several."""
    images = sorted((data / 'train').rglob('*.jpg'))
    listed = [{'img_path': str(i), 'gt_label': label} for i, label in zip(images, labels, strict=False)]
    classes = ['disc', 'square', 'triangle', 'star']
    (data / 'list.json').write_text(json.dumps({'metainfo': {'classes': classes}, 'data_list': listed}))
    cfg = Config.fromfile(ROOT / CONFIGS['classification'])
    cfg.train_dataloader.dataset = dict(type=kind, ann_file=str(data / 'list.json'), pipeline=[])
    cfg.val_dataloader = cfg.test_dataloader = None
    problems, count = check_data(cfg, ('train',), lambda results, _: results)
    assert count == 2
    expect(without_counts(problems), [(images[1].name, f'class {label}, but', True) for label in wrong])


def test_a_large_image_is_sound(data):
    """Pillow's own limit is below OpenCV's."""
    path = next((data / 'train').rglob('*.jpg'))
    Image.new('1', (15000, 15000)).save(path, format='PNG')
    expect(check('classification', data, splits=('train',)), [(path.name, 'black and white', False)])


@pytest.mark.parametrize(
    ('mode', 'text'), [('I;16', 'the upper 8 of 16 are used'), ('F', 'has mode F, not 8-bit grey or RGB')]
)
def test_unusual_modes_are_noted(mode, text, data):
    path = next((data / 'train').rglob('*.jpg'))
    Image.new(mode, (64, 64)).save(path, format='TIFF')
    expect(check('classification', data, splits=('train',)), [(path.name, text, False)])


def test_every_defect_of_segmentation_data_is_found(data):
    expected = break_images(data / 'images' / 'training')[1:]  # what is not there is not listed
    maps = data / 'annotations' / 'training'
    for number, size in [(10, (1, 1)), (11, (20000, 40))]:
        Image.new('L', size, 1).save(maps / f'{number:06d}.png')
    (maps / '000012.png').unlink()
    (maps / '000013.png').write_bytes(b'')
    Image.new('L', (64, 112), 1).save(maps / '000014.png')
    Image.new('RGB', (112, 112)).save(maps / '000015.png')
    labels = np.asarray(Image.open(maps / '000016.png')).copy()
    labels[:2, :3] = 9
    Image.fromarray(labels).save(maps / '000016.png')
    expected += [
        ('000010.png', 'a side of one pixel', True),
        ('000012.png', 'does not exist', True),
        ('000013.png', '0 bytes', True),
        ('000014.png', '64 x 112 pixels, but its image', True),
        ('000015.png', '3 channels', True),
        ('000016.png', 'ids out of range: 9 (6 pixels)', True),
    ]
    expect(check('segmentation', data), expected)


def test_every_defect_of_classification_data_is_found(data):
    folder = data / 'train' / 'disc'
    for number, path in enumerate(sorted((data / 'train').rglob('*.jpg'))[: len(BROKEN)], 1):
        path.rename(folder / f'{number:06d}.jpg')
    expected = break_images(folder)[1:]
    expect(check('classification', data), expected)


def test_a_class_folder_too_many_is_named(data):
    shutil.copytree(data / 'val' / 'disc', data / 'val' / 'hexagon')
    problems = check('classification', data)
    assert all(problem.is_error for problem in problems)
    assert "has 5 folders, 'disc', 'hexagon', 'square', 'star', 'triangle', but" in problems[0].text


def test_a_model_of_too_few_classes_is_named(shapes):
    cfg = Config.fromfile(ROOT / CONFIGS['detection'])
    set_data_root(cfg, str(shapes))
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 3
    problems, _ = check_data(cfg, ('train',), lambda results, _: results)
    assert 'is 3, but train_dataloader.dataset has 4 classes' in problems[0].text


@pytest.mark.parametrize(
    ('task', 'total'), [('detection', 60), ('segmentation', 16 * 112 * 112), ('classification', 60)]
)
def test_how_often_each_class_occurs_is_counted(task, total, shapes):
    """Objects, pixels or images: all of the training data, and a word on a class that never does."""
    counts = [p.text for p in check_with_counts(task, shapes, ('train',)) if not p.is_error]
    numbers = [int(word.strip(',').replace(',', '')) for word in counts[0].split() if word[0].isdigit()]
    assert sum(numbers) == total
    assert not any('never has' in text for text in counts)


def test_a_class_without_any_pixel_is_noted(data):
    """Masks of 0 and 255, as image editors write them: 255 is ignored, and nothing is left to learn."""
    for path in (data / 'annotations' / 'training').iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path), np.where(labels > 1, 255, 1).astype(np.uint8))
    notes = [p.text for p in check_with_counts('segmentation', data, ('train',)) if not p.is_error]
    assert any('never has disc, square, triangle, star' in text for text in notes)


@pytest.mark.parametrize('everywhere', [True, False])
def test_another_ignored_label_than_255_is_as_the_heads_have_it(everywhere, data):
    """CamVid's void is 11."""
    for path in (data / 'annotations' / 'training').iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        labels[:9] = 11
        cv2.imwrite(str(path), labels)
    options = (
        {f'model.{head}.ignore_index': 11 for head in ('decode_head', 'auxiliary_head')} if everywhere else {}
    )
    problems = check('segmentation', data, ('train',), **options)
    assert len(problems) == (0 if everywhere else 16)
    assert all('ids out of range: 11' in problem.text for problem in problems)


def test_images_of_another_ending_are_named(data):
    for path in (data / 'images' / 'training').iterdir():
        path.rename(path.with_suffix('.png'))
    (problem,) = check('segmentation', data, ('train',))
    assert "that end in .jpg: there are 16 .png files; set img_suffix='.png'" in problem.text


def test_reduce_zero_label_in_one_place_is_named(data):
    cfg = {'train_dataloader.dataset.pipeline.1.reduce_zero_label': False}
    problems = check('segmentation', data, ('train',), **cfg)
    assert (
        'reduce_zero_label=True, but LoadAnnotations in its pipeline False; set both alike'
        in problems[0].text
    )


def edit_annotations(data: Path, change) -> None:
    file = data / 'annotations' / 'instances_train2017.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_an_annotation_with_id_0_is_an_error(data):
    """pycocotools takes 0 for "no match": the truth itself would not score 1.0."""
    edit_annotations(data, lambda c: [a.update(id=i) for i, a in enumerate(c['annotations'])])
    (problem,) = check('detection', data, ('train',))
    assert problem.is_error
    assert 'an annotation with id 0' in problem.text


def test_images_that_training_leaves_out_are_counted(data):
    """Those without objects, where the config says so."""

    def empty(content: dict) -> None:
        gone = {image['id'] for image in content['images'][:5]}
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] not in gone]

    edit_annotations(data, empty)
    assert not check('detection', data, ('train',))
    filtering = {'train_dataloader.dataset.filter_cfg': dict(_delete_=True, filter_empty_gt=True)}
    (problem,) = check('detection', data, ('train',), **filtering)
    assert not problem.is_error
    assert problem.text.startswith('5 of 16 images have no objects')


VOC = """<annotation><size><width>112</width><height>112</height></size>
<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>5</ymin><xmax>{right}</xmax><ymax>50</ymax></bndbox></object>
</annotation>"""


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({}, None),
        ({'name': 'sqare'}, "2 objects are called 'sqare', which is no class of the config"),
        ({'right': 900}, 'outside the image of 112 x 112'),
        ({'x': 99}, 'square has an empty box'),
        ({'x': 'left'}, 'cannot be read as VOC annotations'),
    ],
)
def test_vocs_annotations(values, message, data):
    """Names that are no class, and boxes that leave the image."""
    for folder in ('Annotations', 'JPEGImages'):
        (data / folder).mkdir()
    for name in ('000001', '000002'):
        shutil.copy(data / 'train2017' / f'{name}.jpg', data / 'JPEGImages')
        text = VOC.format(**{'name': 'square', 'x': 5, 'right': 60, **values})
        (data / 'Annotations' / f'{name}.xml').write_text(text)
    (data / 'list.txt').write_text('000001\n000002\n')
    voc = dict(
        _delete_=True,
        type='XMLDataset',
        ann_file='list.txt',
        data_root=str(data),
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=('disc', 'square', 'triangle', 'star')),
        pipeline=[],
    )
    problems = check('detection', data, ('train',), **{'train_dataloader.dataset': voc})
    assert bool(problems) == (message is not None)
    assert all(message in problem.text for problem in problems)
