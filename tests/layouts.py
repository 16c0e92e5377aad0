"""The synthetic shapes in every layout that somebody's own data may have, and what is in them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

NAMES = ('disc', 'square', 'triangle', 'star')
PREFIX = 'Straße 形 '  # of every image: a space and letters beyond ASCII
SIZE = 112
VOC_LISTS = Path('ImageSets/Main')


def content_of(shapes: Path, split: str) -> dict:
    """The annotations of a split, with the images' names prefixed."""
    content = json.loads((shapes / f'annotations/instances_{split}2017.json').read_text())
    for image in content['images']:
        image['file_name'] = PREFIX + image['file_name']
    return content


def truth_of(shapes: Path, split: str) -> dict[str, list[tuple[str, list[int]]]]:
    """(class, box as x, y, w, h) of all objects of each image, by its file's name."""
    content = content_of(shapes, split)
    files = {image['id']: image['file_name'] for image in content['images']}
    truth = {name: [] for name in files.values()}
    for entry in content['annotations']:
        box = [round(edge) for edge in entry['bbox']]
        truth[files[entry['image_id']]].append((NAMES[entry['category_id'] - 1], box))
    return truth


def copy_images(shapes: Path, split: str, folder: Path, suffix: str = '.jpg') -> None:
    folder.mkdir(parents=True)
    for path in (shapes / f'{split}2017').iterdir():
        shutil.copy(path, folder / f'{PREFIX}{path.stem}{suffix}')


def write_json(
    content: dict, path: Path, order: Sequence[str] = NAMES, ids: Sequence[int] = (1, 2, 3, 4), first: int = 1
) -> None:
    """COCO's file with these categories alone, under these ids; annotations count from `first`."""
    new = dict(zip(order, ids, strict=True))
    kept = [one for one in content['annotations'] if NAMES[one['category_id'] - 1] in new]
    for number, one in enumerate(kept, first):
        one.update(id=number, category_id=new[NAMES[one['category_id'] - 1]])
    content['annotations'] = kept
    content['categories'] = [{'id': new[name], 'name': name} for name in order]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(shapes: Path, out: Path, val_order: Sequence[str] | None = None, **options) -> None:
    """COCO's own layout."""
    for split in ('train', 'val'):
        copy_images(shapes, split, out / f'{split}2017')
        order = {'order': val_order} if val_order and split == 'val' else {}
        path = out / f'annotations/instances_{split}2017.json'
        write_json(content_of(shapes, split), path, **{**options, **order})


def coco_beside(shapes: Path, out: Path, images: str = '') -> None:
    """One file beside the images or their folder, and no validation split."""
    copy_images(shapes, 'train', out / images) if images else copy_images(shapes, 'train', out)
    write_json(content_of(shapes, 'train'), out / 'labels.json')


def roboflow(shapes: Path, out: Path) -> None:
    """Roboflow's layout: a group before the classes, annotations that count from 0, boxes alone."""
    for split, name in {'train': 'train', 'val': 'valid'}.items():
        copy_images(shapes, split, out / name)
        content = content_of(shapes, split)
        for one in content['annotations']:
            one['segmentation'] = []
        path = out / name / '_annotations.coco.json'
        write_json(content, path, first=0)
        content['categories'] = [{**one, 'supercategory': 'shapes'} for one in content['categories']]
        content['categories'].insert(0, {'id': 0, 'name': 'shapes', 'supercategory': 'none'})
        path.write_text(json.dumps(content))


def yolo(
    shapes: Path,
    out: Path,
    polygons: bool = False,
    gaps: bool = False,
    valid: bool = True,
    listed: bool = False,
    export: bool = False,
) -> None:
    """YOLO's layout, images/SPLIT beside labels/SPLIT; with numbers that are left out; as lists of images.

    `export` is as Roboflow writes it: SPLIT/images, named from a folder beside.
    """
    numbers = (0, 2, 5, 11) if gaps else (0, 1, 2, 3)
    names = dict(zip(numbers, NAMES, strict=True))
    data = {'path': '/of/another/machine', 'names': names if gaps else list(NAMES), 'nc': 4}
    for split in ('train', 'val')[: 1 + valid]:
        images = f'{split}/images' if export else f'images/{split}'
        copy_images(shapes, split, out / images)
        data[split] = f'{split}.txt' if listed else f'../{images}' if export else images
        content = content_of(shapes, split)
        labels = out / images.replace('images', 'labels')
        labels.mkdir(parents=True)
        for image in content['images']:
            lines = []
            for one in (one for one in content['annotations'] if one['image_id'] == image['id']):
                x, y, width, height = one['bbox']
                values = [x + width / 2, y + height / 2, width, height]
                if polygons:
                    mask = coco_mask.decode(one['segmentation'])
                    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
                    values = max(contours, key=len).ravel()
                numbers_in_line = ' '.join(f'{value / SIZE:.6f}' for value in values)
                lines.append(f'{numbers[one["category_id"] - 1]} {numbers_in_line}\n')
            (labels / Path(image['file_name']).with_suffix('.txt')).write_text(''.join(lines))
        if listed:
            paths = [f'./images/{split}/{image["file_name"]}\n' for image in content['images']]
            (out / f'{split}.txt').write_text(''.join(paths))
    (out / 'data.yaml').write_text(yaml.safe_dump(data))


def voc(shapes: Path, out: Path, beside: bool = False) -> None:
    """VOC's own layout, or XML files beside the images in train and valid."""
    for split, name in {'train': 'train', 'val': 'valid'}.items():
        content = content_of(shapes, split)
        xml = out / name if beside else out / 'Annotations'
        images = xml if beside else out / 'JPEGImages'
        for folder in (xml, images, *([] if beside else [out / VOC_LISTS])):
            folder.mkdir(parents=True, exist_ok=True)
        stems = []
        for image in content['images']:
            stem = f'{split} {Path(image["file_name"]).stem}'
            source = shapes / f'{split}2017' / image['file_name'].removeprefix(PREFIX)
            shutil.copy(source, images / f'{stem}.jpg')
            objects = ''
            for one in (one for one in content['annotations'] if one['image_id'] == image['id']):
                x, y, width, height = map(round, one['bbox'])
                edges = {'xmin': x + 1, 'ymin': y + 1, 'xmax': x + width, 'ymax': y + height}
                box = ''.join(f'<{edge}>{value}</{edge}>' for edge, value in edges.items())
                name_of = escape(NAMES[one['category_id'] - 1])
                objects += f'<object><name>{name_of}</name><bndbox>{box}</bndbox></object>'
            (xml / f'{stem}.xml').write_text(f'<annotation>{objects}</annotation>')
            stems.append(stem)
        if not beside:
            (out / VOC_LISTS / f'{split}.txt').write_text('\n'.join(stems))


def label_maps(
    shapes: Path,
    out: Path,
    layout: str = 'ade',
    palette: bool = True,
    classes: str | None = 'void\nbackground\ndisc\nsquare\ntriangle\nstar\n',
) -> None:
    """Images and label maps: 0 is not labelled, 1 background, then the shapes."""
    pattern = {
        'ade': ('images/{}', 'annotations/{}'),
        'annot': ('{}', '{}annot'),
        'flat': ('images', 'masks'),
    }[layout]
    splits = (
        {'train': 'training', 'val': 'validation'} if layout == 'ade' else {'train': 'train', 'val': 'val'}
    )
    for split, name in list(splits.items())[: 1 if layout == 'flat' else 2]:
        images, maps = (out / part.format(name) for part in pattern)
        copy_images(shapes, split, images)
        maps.mkdir(parents=True)
        source = shapes / 'annotations' / {'train': 'training', 'val': 'validation'}[split]
        for path in source.iterdir():
            labels = np.asarray(Image.open(path)).copy()
            labels[:4] = 0
            image = Image.fromarray(labels, mode='P' if palette else 'L')
            if palette:
                image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
            image.save(maps / f'{PREFIX}{path.name}')
    if classes:
        (out / 'classes.txt').write_text(classes)


def class_folders(shapes: Path, out: Path, valid: bool = True) -> None:
    """A folder per class, in train and val or alone."""
    for split in ('train', 'val') if valid else ('train',):
        for name in NAMES:
            shutil.copytree(shapes / split / name, (out / split if valid else out) / f'{name} 形')


def listing(folder: Path) -> dict[str, tuple]:
    """All files and folders, with what would change if they were written to."""
    paths = sorted(folder.rglob('*'))
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size, path.is_dir()) for path in paths}
