"""Write what training reads for a recognised folder, in a folder of its own: the data stay as they are.

YOLO and VOC become COCO's JSON, label maps and folders of classes become lists of files. What is written
follows from the data alone, and a file appears whole, so that every process of a run may do it.
"""

import json
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from mmsgformer.data import yolo
from mmsgformer.data.errors import DataError
from mmsgformer.data.folders import Found, Split, require_names
from mmsgformer.data.formats import CLASS_FOLDERS, COCO, VOC, read_coco, used_categories

SEED, SHARE = 0, 0.2  # of the validation split that is made
# An image's entry in COCO's format, and those of its objects, with the name of the class as `category`.
Entry = tuple[dict[str, Any], list[dict[str, Any]]]


def prepare(found: Found, out: Path) -> Found:
    """What training reads, with every split that there is and a validation split.

    Args:
        found: What `recognize` found.
        out: The folder to write to; made if needed.

    Raises:
        DataError: Annotations cannot be read, or other files are there that a run has trained on.
    """
    splits = dict(found.splits)
    if 'train' in splits and 'val' not in splits:
        splits |= _divide(splits['train'], by_folder=found.format == CLASS_FOLDERS)
        text = f'no validation split: {SHARE:.0%} of the training images are one, drawn with seed {SEED}'
        text += f' and written down in {out.name}/ of the work dir'
        found = replace(found, notes=(*found.notes, text), ready=False)
    found = replace(found, splits=splits)
    if found.ready:
        return found
    if found.task == 'detection':
        return _as_coco(found, out)
    for name, split in splits.items():
        if found.format == CLASS_FOLDERS:
            lines = [f'{file} {found.classes.index(Path(file).parts[0])}' for file in split.files]
        else:
            lines = [os.path.splitext(file)[0] for file in split.files]
        splits[name] = replace(split, listing=out / f'{name}.txt')
        _write(splits[name].listing, ''.join(f'{line}\n' for line in lines))
    return found


def _divide(split: Split, by_folder: bool) -> dict[str, Split]:
    """A training and a validation split, drawn from all images or from each folder's."""
    groups = defaultdict(list)
    for name in split.files:
        groups[Path(name).parts[0] if by_folder else ''].append(name)
    drawn = random.Random(SEED)
    chosen: set[str] = set()
    for group in groups.values():
        count = max(1, round(SHARE * len(group))) if len(group) > 1 else 0
        chosen.update(drawn.sample(group, count))
    if not chosen:
        raise DataError(f'{split.images} has too few images to set some apart for validation; add some')
    train, val = ([name for name in split.files if (name in chosen) == held] for held in (False, True))
    return {'train': replace(split, files=tuple(train)), 'val': replace(split, files=tuple(val))}


def _as_coco(found: Found, out: Path) -> Found:
    """The splits as files in COCO's format, all with the same categories."""
    read = {COCO: _read_coco, yolo.FORMAT: _read_yolo, VOC: _read_voc}[found.format]
    entries = {name: list(read(split)) for name, split in found.splits.items()}
    objects = [one for listed in entries.values() for _, inside in listed for one in inside]
    classes = found.classes or tuple(sorted({one['category'] for one in objects}))
    require_names(classes, found.folder)
    unmasked = sum(not one.get('segmentation') for one in objects)
    notes = found.notes
    if 0 < unmasked < len(objects):
        notes += (f'{unmasked} of {len(objects)} objects have no mask: all are taken as boxes',)
    splits = {}
    for name, listed in entries.items():
        count = sum(len(inside) for _, inside in listed)
        if not count:
            raise DataError(f'the {len(listed)} {name} images in {found.splits[name].images} have no labels')
        path = out / f'{name}.json'
        _write(path, json.dumps(_content(listed, classes, with_masks=not unmasked)))
        splits[name] = replace(found.splits[name], annotation=path, num_objects=count)
    most = max(len(inside) for listed in entries.values() for _, inside in listed)
    return replace(
        found,
        classes=classes,
        splits=splits,
        has_masks=not unmasked,
        most_objects=most,
        ready=True,
        notes=notes,
    )


def _content(entries: list[Entry], classes: tuple[str, ...], with_masks: bool) -> dict[str, list]:
    """The content of a file in COCO's format; ids count from 1."""
    images, annotations = [], []
    for number, (image, objects) in enumerate(entries, 1):
        images.append({'id': number, **image})
        for one in objects:
            entry = {**one, 'id': len(annotations) + 1, 'image_id': images[-1]['id']}
            entry['category_id'] = classes.index(entry.pop('category')) + 1
            if not with_masks:
                entry.pop('segmentation', None)
            annotations.append(entry)
    categories = [{'id': number, 'name': name} for number, name in enumerate(classes, 1)]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def _read_coco(split: Split) -> Iterator[Entry]:
    content = read_coco(split.annotation)
    names, files = used_categories(content), set(split.files)
    objects = defaultdict(list)
    for entry in content['annotations']:
        if entry['category_id'] in names:
            objects[entry['image_id']].append({**entry, 'category': names[entry['category_id']]})
    for image in content['images']:
        if str(image['file_name']) in files:
            yield image, objects[image['id']]


def _read_yolo(split: Split) -> Iterator[Entry]:
    import supervision  # takes seconds

    names = yolo.names_in(split.annotation)
    # supervision numbers the names without gaps, whatever the numbers are that the label files have.
    listed = [names.get(number, '') for number in range(max(names) + 1)]
    options = {**yolo.read_yaml(split.annotation), 'names': listed}

    def read(folder: str) -> Any:
        Path(folder, 'data.yaml').write_text(yaml.safe_dump(options, allow_unicode=True), encoding='utf-8')
        return supervision.DetectionDataset.from_yolo(folder, folder, f'{folder}/data.yaml')

    for name in split.files:
        yield _one_image(split, name, yolo.label_of(split.images / name), read)


def _read_voc(split: Split) -> Iterator[Entry]:
    import supervision

    def read(folder: str) -> Any:
        return supervision.DetectionDataset.from_pascal_voc(folder, folder)

    for name in split.files:
        yield _one_image(split, name, split.annotation / f'{Path(name).stem}.xml', read)


def _one_image(split: Split, name: str, label: Path, read: Any) -> Entry:
    """An image and its objects, read by supervision.

    It reads whole folders and keeps all masks in memory, an image's size each. So it is given a folder with
    links to one image and its labels, and an error is that of one file.
    """
    image = split.images / name
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f'image{image.suffix.lower()}').symlink_to(image)
        if label.is_file():
            Path(folder, f'image{label.suffix}').symlink_to(label)
        try:
            dataset = read(folder)
            (detections,) = dataset.annotations.values()
            width, height = _size(image)
        except Exception as error:  # of many kinds: of XML, numbers, images
            text = ' '.join(str(error).split()).replace(f'{folder}/image', str(image.with_suffix('')))
            raise DataError(f'{label}, the labels of {image}, cannot be read: {text}; correct it') from error
    objects = []
    for i, number in enumerate(detections.class_id if len(detections) else ()):
        category = str(dataset.classes[number])
        if not category:
            raise DataError(
                f'{label} has the class {number}, which {split.annotation} does not name; name it'
            )
        left, top, right, bottom = (float(edge) for edge in detections.xyxy[i])
        entry = {'category': category, 'bbox': [left, top, right - left, bottom - top], 'iscrowd': 0}
        entry['area'] = entry['bbox'][2] * entry['bbox'][3]
        if detections.mask is not None and detections.mask[i].any():
            from pycocotools import mask as coco_mask  # comes with mmdet

            code = coco_mask.encode(np.asfortranarray(detections.mask[i], dtype=np.uint8))
            entry['area'] = int(detections.mask[i].sum())
            entry['segmentation'] = {'size': code['size'], 'counts': code['counts'].decode()}
        objects.append(entry)
    return {'file_name': name, 'width': width, 'height': height}, objects


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is loaded, turned as its EXIF data say."""
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        return image.size[::-1] if turned else image.size


def _write(path: Path, text: str) -> None:
    """Write a whole file, unless it is there; what a run has trained on is not replaced."""
    data = text.encode()
    if path.is_file() and path.read_bytes() == data:
        return
    run = path.parent.parent
    trained = [*run.glob('epoch_*.pth'), *run.glob('iter_*.pth')]
    if path.exists() and trained:
        raise DataError(
            f'{path} is of other data, and the run in {run} has trained on it; give another --work-dir'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
