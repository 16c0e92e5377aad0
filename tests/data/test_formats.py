"""What a folder of own data is taken for, and what is said of one that cannot be trained on.

Whatever it is, nothing in it changes. What is read from each format: tests/data/test_own.py.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image

from mmsgformer.data import DataError
from mmsgformer.data.convert import prepare
from mmsgformer.data.formats import recognize

TRAIN, VAL = (f'annotations/instances_{split}2017.json' for split in ('train', 'val'))
FIRST = f'{layouts.PREFIX}000001'


def edit(data: Path, name: str, old: str, new: str) -> None:
    """Replace a text in a file that has it."""
    text = (data / name).read_text()
    assert old in text
    (data / name).write_text(text.replace(old, new))


def change(data: Path, name: str, apply: Callable[[dict], object]) -> None:
    """Change a JSON file."""
    content = json.loads((data / name).read_text())
    apply(content)
    (data / name).write_text(json.dumps(content))


def only_images(shapes: Path, data: Path) -> None:
    layouts.copy_images(shapes, 'train', data / 'photos')


def nothing(shapes: Path, data: Path) -> None:
    """An empty folder."""


def twice_voc(shapes: Path, data: Path) -> None:
    layouts.voc(shapes, data / 'VOC2007')
    layouts.voc(shapes, data / 'VOC2012')


def every_map(data: Path, apply: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change all label maps."""
    for path in (data / 'annotations').rglob('*.png'):
        Image.fromarray(apply(np.asarray(Image.open(path)))).save(path)


def one_image(data: Path) -> None:
    for path in sorted((data / 'images' / 'train').iterdir())[1:]:
        path.unlink()
        (data / 'labels' / 'train' / path.name).with_suffix('.txt').unlink()


def gone(name: str) -> Callable[[Path], object]:
    """Remove a file or a folder."""
    return lambda data: shutil.rmtree(data / name) if (data / name).is_dir() else (data / name).unlink()


def written(name: str, text: str) -> Callable[[Path], object]:
    """Write over a file."""
    return lambda data: (data / name).write_text(text)


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda data: edit(data, name, old, new)


def changed(name: str, apply: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda data: change(data, name, apply)


def named(name: str) -> dict:
    return {'classes': name}


BAD = {
    # what is wrong: (layout, its options, what is done to it, what is said)
    'no folder': (nothing, {}, lambda data: data.rmdir(), 'is not a folder'),
    'empty': (nothing, {}, None, 'is empty'),
    'images alone': (only_images, {}, None, r'has 16 images without labels.*16 \.jpg.*docs/own_data\.md'),
    'labels alone': (nothing, {}, written('a.txt', '0 .5 .5 .1 .1'), r'has no images.*1 \.txt'),
    'JSON without images': (layouts.coco, {}, gone('train2017'), r'lists 16 images, but 16 are not there'),
    'JSON, an image lacks': (
        layouts.coco,
        {}, gone(f'val2017/{FIRST}.jpg'),
        rf'1 are not there, as .*{FIRST}',
    ),
    'JSON without objects': (
        layouts.coco,
        {},
        changed(TRAIN, lambda c: c['annotations'].clear()),
        'lists 16 images and no object',
    ),
    'JSON cut short': (
        layouts.coco,
        {},
        lambda data: os.truncate(data / TRAIN, (data / TRAIN).stat().st_size - 9),
        rf'{TRAIN} is not JSON',
    ),
    'JSON, an entry without a name': (
        layouts.coco,
        {},
        changed(TRAIN, lambda c: c['categories'][0].pop('name')),
        r"instances_train2017\.json has an entry without 'name'",
    ),
    'JSON, other classes': (
        layouts.coco,
        {'val_order': layouts.NAMES, 'ids': (1, 2, 3, 4)},
        changed(VAL, lambda c: c['categories'][0].update(name='disk')),
        r"instances_val2017\.json and .*instances_train2017\.json have different classes: 'disc'",
    ),
    'JSON, a class twice': (
        layouts.coco,
        {},
        changed(TRAIN, lambda c: c['categories'][0].update(name='star')),
        r"instances_train2017\.json names the class 'star' twice",
    ),
    'JSON, a category that is not listed': (
        layouts.coco,
        {},
        changed(TRAIN, lambda c: c['annotations'][0].update(category_id=99)),
        r'instances_train2017\.json has objects of a category that it does not list',
    ),
    'two JSON for one split': (
        layouts.coco,
        {},
        lambda data: shutil.copy(data / TRAIN, data / 'annotations' / 'instances_train_new.json'),
        'are both for train',
    ),
    'YOLO without labels': (
        layouts.yolo,
        {}, gone('labels/train'),
        'no image of train has labels, as .*labels/train',
    ),
    'YOLO, an image lacks': (
        layouts.yolo,
        {}, gone(f'images/val/{FIRST}.jpg'),
        rf'1 label files have no image.*{FIRST}',
    ),
    'YOLO, nowhere': (
        layouts.yolo,
        {}, replaced('data.yaml', 'images/val', 'nowhere'),
        r"data\.yaml: val is 'nowhere'",
    ),
    'YOLO, an empty folder': (
        layouts.yolo,
        {},
        lambda data: (edit(data, 'data.yaml', 'images/val', 'none'), (data / 'none').mkdir()),
        r"data\.yaml: val is 'none', but .*/none has no images",
    ),
    'YOLO, a list of what is not there': (
        layouts.yolo,
        {'listed': True},
        gone(f'images/val/{FIRST}.jpg'),
        r'val\.txt lists .*000001\.jpg, which does not exist',
    ),
    'YOLO without names': (
        layouts.yolo,
        {}, written('data.yaml', 'train: images/train'),
        r'data\.yaml must have train and names',
    ),
    'YOLO, names are a text': (
        layouts.yolo,
        {},
        written('data.yaml', 'train: images/train\nnames: 7'),
        r'data\.yaml: names must be a list',
    ),
    'YOLO, broken': (layouts.yolo, {}, written('data.yaml', 'names: [a, b'), r'data\.yaml is not YAML'),
    'YOLO, a class twice': (
        layouts.yolo,
        {}, replaced('data.yaml', 'disc', 'star'),
        "names the class 'star' twice",
    ),
    'YOLO, no numbers': (
        layouts.yolo,
        {},
        written(f'labels/train/{FIRST}.txt', '0 a b c d'),
        rf'labels/train/{FIRST}\.txt, the labels of .*cannot be read',
    ),
    'YOLO, a class of no name': (
        layouts.yolo,
        {},
        written(f'labels/train/{FIRST}.txt', '9 .5 .5 .1 .1'),
        rf'labels/train/{FIRST}\.txt, .*cannot be read: .*class_id 9',
    ),
    'YOLO, a number that is left out': (
        layouts.yolo,
        {'gaps': True},
        written(f'labels/train/{FIRST}.txt', '1 .5 .5 .1 .1'),
        rf'labels/train/{FIRST}\.txt has the class 1, which .*data\.yaml does not name',
    ),
    'YOLO, no image': (
        layouts.yolo,
        {},
        written(f'images/train/{FIRST}.jpg', 'text'),
        rf'images/train/{FIRST}\.jpg, cannot be read',
    ),
    'YOLO, one image': (layouts.yolo, {'valid': False}, one_image, 'too few images'),
    'VOC, an image lacks': (
        layouts.voc,
        {}, gone(f'JPEGImages/train {FIRST}.jpg'),
        rf'1 of 20 XML files have no image, as train {FIRST}',
    ),
    'VOC, broken': (
        layouts.voc,
        {},
        written(f'Annotations/train {FIRST}.xml', '<annotation><object>'),
        rf'Annotations/train {FIRST}\.xml, .*cannot be read',
    ),
    'VOC, no box': (
        layouts.voc,
        {},
        written(f'Annotations/train {FIRST}.xml', '<annotation><object><name>a</name></object></annotation>'),
        rf'Annotations/train {FIRST}\.xml, .*cannot be read: .*bndbox',
    ),
    'VOC, a list of what is not there': (
        layouts.voc,
        {},
        written(f'{layouts.VOC_LISTS}/val.txt', 'nobody\n'),
        'ImageSets/Main lists nobody for val',
    ),
    'VOC without objects': (
        layouts.voc,
        {},
        lambda data: [path.write_text('<annotation/>') for path in (data / 'Annotations').glob('val*')],
        'the 4 val images .* have no labels',
    ),
    'two VOC': (twice_voc, {}, None, 'VOC2007.* and .*VOC2012.* are both for'),
    'maps, one lacks': (
        layouts.label_maps,
        {}, gone(f'annotations/training/{FIRST}.png'),
        '1 of 16 images have no label map',
    ),
    'maps, an image lacks': (
        layouts.label_maps,
        {}, gone(f'images/training/{FIRST}.jpg'),
        rf'1 label maps have no image.*{FIRST}',
    ),
    'maps, two endings': (
        layouts.label_maps,
        {},
        lambda data: (data / f'images/training/{FIRST}.jpg').rename(data / f'images/training/{FIRST}.JPG'),
        r'end in \.JPG, \.jpg',
    ),
    'maps, colours': (
        layouts.label_maps,
        {'palette': False},
        lambda data: every_map(data, lambda labels: np.stack([labels] * 3, -1)),
        'has 3 channels',
    ),
    'maps, 255 for the class': (
        layouts.label_maps,
        {'palette': False},
        lambda data: every_map(data, lambda labels: np.where(labels > 1, 255, 0).astype(np.uint8)),
        'nothing would be learned. Write 1',
    ),
    'maps, large ids': (
        layouts.label_maps,
        {'palette': False},
        lambda data: every_map(data, lambda labels: labels.astype(np.uint16) * 100),
        r'has the id [345]00',
    ),
    'maps, broken': (
        layouts.label_maps,
        {}, written(f'annotations/training/{FIRST}.png', 'text'),
        rf'{FIRST}\.png cannot be read',
    ),
    'maps, ids without names': (
        layouts.label_maps,
        named('a\nb\nc\n'), None,
        r'have ids \[3, 4, 5\], but .*classes\.txt names 3',
    ),
    'maps, a class twice': (
        layouts.label_maps,
        named('a\na\nb\nc\nd\ne\n'), None,
        r"classes\.txt names the class 'a' twice",
    ),
    'maps, two to ignore': (
        layouts.label_maps,
        named('void\nignore\nb\nc\nd\ne\n'), None,
        'ids 0 and 1 are both to be ignored',
    ),
    'maps, names in broken JSON': (
        layouts.label_maps,
        named(''), written('labels.json', '[1'),
        r'labels\.json names no classes',
    ),
    'class folders, two for one split': (
        layouts.class_folders,
        {},
        lambda data: shutil.copytree(data / 'val', data / 'valid'),
        'val and .*valid are both for val',
    ),
    'class folders, one is empty': (
        layouts.class_folders,
        {},
        lambda data: (data / 'train' / 'hexagon').mkdir(),
        'train/hexagon has no images',
    ),
    'class folders, another class in val': (
        layouts.class_folders,
        {},
        lambda data: (data / 'val' / 'star 形').rename(data / 'val' / 'disk'),
        "no class 'disk' in .*train",
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_bad_data(name, shapes, tmp_path):
    """One message names the file; nothing is written into the folder."""
    layout, options, damage, message = BAD[name]
    data = tmp_path / 'my data ü'
    data.mkdir()
    layout(shapes, data, **options)
    if damage:
        damage(data)
    before = layouts.listing(data)
    with pytest.raises(DataError, match=message):
        prepare(recognize(data), tmp_path / 'out')
    assert layouts.listing(data) == before


def test_a_folder_that_fits_two_formats(shapes):
    with pytest.raises(
        DataError, match=r'COCO JSON \(.*instances_train2017.*and images and label maps \(.*ln -s'
    ):
        recognize(shapes)


LAYOUTS = pytest.mark.parametrize(
    'layout', [layouts.coco, layouts.yolo, layouts.voc, layouts.label_maps, layouts.class_folders]
)


@LAYOUTS
def test_links(layout, shapes, tmp_path):
    """A folder of links to the parts of another one; a link to a folder above is not followed."""
    layout(shapes, tmp_path / 'data')
    (tmp_path / 'links').mkdir()
    for path in (tmp_path / 'data').iterdir():
        (tmp_path / 'links' / path.name).symlink_to(path)
    (tmp_path / 'links' / 'again').symlink_to(tmp_path / 'links')
    linked, plain = (
        prepare(recognize(tmp_path / name), tmp_path / f'{name} out') for name in ('links', 'data')
    )
    assert linked.classes == plain.classes
    assert {name: split.files for name, split in linked.splits.items()} == {
        name: split.files for name, split in plain.splits.items()
    }


@LAYOUTS
def test_a_read_only_folder(layout, shapes, tmp_path):
    layout(shapes, tmp_path / 'data')
    folders = [tmp_path / 'data', *(path for path in (tmp_path / 'data').rglob('*') if path.is_dir())]
    before = layouts.listing(tmp_path / 'data')
    try:
        for folder in folders:
            folder.chmod(0o555)
        assert prepare(recognize(tmp_path / 'data'), tmp_path / 'out').splits.keys() == {'train', 'val'}
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert layouts.listing(tmp_path / 'data') == before


def test_what_is_left_out_is_said(shapes, tmp_path):
    """A test set that is named but not there, as Roboflow's; images beside classes' folders."""
    layouts.yolo(shapes, tmp_path / 'yolo')
    edit(tmp_path / 'yolo', 'data.yaml', 'train: images', 'test: ../test/images\ntrain: images')
    (note,) = recognize(tmp_path / 'yolo').notes
    assert "test is '../test/images'" in note
    layouts.class_folders(shapes, tmp_path / 'folders', valid=False)
    shutil.copy(next((shapes / 'val2017').iterdir()), tmp_path / 'folders')
    (note,) = recognize(tmp_path / 'folders').notes
    assert note.startswith('1 images in ')


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('labels.json', '["x", "a", "b", "c", "d", "e"]'),
        ('label_map.json', '{"x": 0, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5}'),
        ('classes.json', '{"5": "e", "0": "x", "1": "a", "2": "b", "3": "c", "4": "d"}'),
        ('meta.json', '{"palette": [], "classes": ["x", "a", "b", "c", "d", "e"]}'),
        ('labels.json', json.dumps([{'id': i, 'name': 'xabcde'[i]} for i in (5, 0, 1, 2, 3, 4)])),
        ('label_map.txt', '0: x\n1: a\n2: b\n3: c\n4: d\n5: e\n'),
        ('labels.txt', '# comment\nx\na\nb\n\nc\nd\ne'),
    ],
)
def test_names_of_label_maps(name, text, shapes, tmp_path):
    layouts.label_maps(shapes, tmp_path, classes=None)
    (tmp_path / name).write_text(text)
    found = recognize(tmp_path)
    assert ''.join(found.classes) == 'xabcde'
    assert found.ignored == 255
