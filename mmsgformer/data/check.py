"""Find all that is wrong with the data of a config, in one pass and before training.

Lists are read as the frameworks read them: COCO's json for detection, folders or lists for segmentation and
classification. Errors are what training would fail on, or get wrong without a word; notes say what becomes
of unusual data.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from PIL import Image, ImageOps

from mmsgformer.data.classes import build_unread, check_classes, entries, outputs_of, plain_datasets
from mmsgformer.data.errors import Problem
from mmsgformer.data.folders import IGNORED_LABEL

# As many as OpenCV reads; Pillow refuses pictures of more than twice its own limit.
Image.MAX_IMAGE_PIXELS = 2**30 // 2
# COCO's own boxes end up to a pixel outside.
TOLERANCE = 1.0
_IDS = ('id', 'image_id', 'category_id')
SMALL = 8  # pixels
LONG = 50  # times as long as wide


@dataclass
class Item:
    """An image, and what the annotations say of it."""

    image: str
    size: tuple[int, int] | None = None  # (width, height) as annotated
    label_map: str | None = None
    scale: tuple[int, int] | None = None  # what it is resized to fit, with its proportions
    ignores_orientation: bool = False
    check_labels: Callable[[np.ndarray], tuple[str | None, Counter]] | None = None
    pixels: Counter = field(default_factory=Counter)  # by class
    problems: list[Problem] = field(default_factory=list)


def check_data(
    cfg: Config, splits: tuple[str, ...], track: Callable[[Iterable, int], Iterable]
) -> tuple[list[Problem], int]:
    """All problems of the data that these splits of a config use, and the number of images.

    Args:
        cfg: A config of mmdet (COCO's or VOC's format), mmseg or mmpretrain, its data on the local disk.
        splits: Of 'train', 'val' and 'test'; those that the config does not have are passed over.
        track: Called with the images' results and their number, iterates over them: a progress bar.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    problems, items = check_classes(cfg), []
    seen = []
    for split in splits:
        if cfg.get(f'{split}_dataloader'):
            for option, dataset in plain_datasets(
                cfg[f'{split}_dataloader'].dataset, f'{split}_dataloader.dataset'
            ):
                if dataset in seen:  # test data are often those of the validation
                    continue
                seen.append(dataset)
                found, listed, histogram = _list(dataset, cfg.model, option)
                problems += found
                items.append((option, listed, histogram))
    images = [item for _, listed, _ in items for item in listed]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in track(pool.map(_check_item, images), len(images)):
            problems += found
    for option, listed, histogram in items:
        for item in listed:
            histogram.update(item.pixels)
        problems += _describe(option, histogram)
    return list(dict.fromkeys(problems)), len(images)


def _describe(option: str, histogram: Counter) -> list[Problem]:
    """How often every class occurs, and a word on those that never do."""
    if not histogram:
        return []
    never = [name for name, count in histogram.items() if not count]
    counts = ', '.join(f'{name} {count:,}' for name, count in histogram.most_common(20) if count)
    text = f'has {counts or "nothing"}{", ..." if len(histogram) > 20 else ""}'
    problems = [Problem(option, text, is_error=False)]
    if never:
        text = (
            f'never has {", ".join(never[:8])}{", ..." if len(never) > 8 else ""}, which cannot be '
            'learned or measured so. Correct the labels or the classes if that is a mistake'
        )
        problems.append(Problem(option, text, is_error=False))
    return problems


def _list(config: ConfigDict, model: ConfigDict, option: str) -> tuple[list[Problem], list[Item], Counter]:
    """What is wrong with a data set's lists, its images, and how often they list each class."""
    steps = {step['type']: step for step in config.get('pipeline', [])}
    try:
        dataset = build_unread(config)
    except Exception:  # check_classes has reported it
        return [], [], Counter()
    if dataset is None:
        text = f'is a data set of type {config.type}, which cannot be checked here'
        return [Problem(option, text, is_error=False)], [], Counter()
    classes = dataset.metainfo.get('classes') or ()
    if isinstance(classes, str):
        return [], [], Counter()
    histogram = Counter(dict.fromkeys(classes, 0))
    if hasattr(dataset, 'COCOAPI'):  # mmdet's mark of COCO's format; mmpretrain has another in .json
        with_mask = bool(steps.get('LoadAnnotations', {}).get('with_mask'))
        filtered = config.get('filter_cfg') if not config.get('test_mode') else None
        folder = dataset.data_prefix['img']
        evaluated = bool(config.get('test_mode'))
        problems, items = _list_coco(
            dataset.ann_file, folder, classes, with_mask, filtered or {}, evaluated, histogram
        )
    elif hasattr(dataset, 'ann_subdir'):  # and of VOC's
        problems, items = _list_voc(dataset, classes, histogram)
    else:
        problems, items = _list_files(dataset, model, steps, histogram)
    ignores_orientation = 'ignore_orientation' in str(steps.get('LoadImageFromFile', {}).get('color_type'))
    resize, scale = steps.get('Resize', {}), None
    if resize.get('keep_ratio') and isinstance(resize.get('scale'), (tuple, list)):
        scale = resize['scale']
    for item in items:
        item.ignores_orientation = ignores_orientation
        item.scale = scale
    return problems, items, histogram


def _list_files(
    dataset: Any, model: ConfigDict, steps: dict[str, ConfigDict], histogram: Counter
) -> tuple[list[Problem], list[Item]]:
    """The images of a data set of mmseg, with label maps, or of mmpretrain."""
    folder = dataset.data_prefix.get('img_path') or dataset.data_prefix.get('img') or dataset.data_root
    source = str(dataset.ann_file or folder)
    try:
        samples = dataset.load_data_list()
    except Exception as error:
        return [Problem(source, f'{error}; correct the list, the folders or the config')], []
    if not samples:
        return [Problem(source, f'no images are found{_other_endings(dataset, folder)}')], []
    items, problems = [], []
    outputs = max((number for _, number in outputs_of(model, 'model')), default=0)
    loads = [step for kind, step in steps.items() if kind == 'LoadAnnotations']
    reduced = getattr(dataset, 'reduce_zero_label', False)
    if loads and loads[0].get('reduce_zero_label') not in (None, reduced):
        text = (
            f'its data set has reduce_zero_label={reduced}, but LoadAnnotations in its pipeline '
            f'{loads[0].reduce_zero_label}; set both alike'
        )
        problems.append(Problem(source, text))
    classes = list(dataset.metainfo.get('classes') or ())
    histogram.update(dict.fromkeys(classes, 0))
    for sample in samples:
        item = Item(sample['img_path'], label_map=sample.get('seg_map_path'))
        if item.label_map:
            mapping = sample.get('label_map')
            item.check_labels = _label_checker(classes, _ignored_labels(model), reduced, mapping)
        elif outputs:
            for label in np.ravel(sample.get('gt_label', 0)):  # one, or a list of several
                if not 0 <= label < outputs:
                    text = f'class {label}, but the model has num_classes={outputs}; correct one of them'
                    problems.append(Problem(item.image, text))
                elif label < len(classes):
                    histogram[classes[label]] += 1
        items.append(item)
    if not os.path.isfile(dataset.ann_file):
        problems += _left_out(folder, items)
    return problems, items


def _left_out(folder: str, items: list[Item]) -> list[Problem]:
    """A note on the pictures of a folder that a data set does not take."""
    taken = {os.path.normpath(path) for item in items for path in (item.image, item.label_map) if path}
    endings = Image.registered_extensions()
    paths = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    others = [
        path for path in paths if os.path.normpath(path) not in taken and Path(path).suffix.lower() in endings
    ]
    if not others:
        return []
    text = (
        f'{len(others)} pictures are left out for their place or ending, the first is {min(others)}; move or '
        'rename them if they belong to the data'
    )
    return [Problem(folder, text, is_error=False)]


def _other_endings(dataset: Any, folder: str) -> str:
    """What there is instead of images with the ending that a data set of mmseg looks for."""
    suffix = getattr(dataset, 'img_suffix', None)
    if not suffix or not os.path.isdir(folder):
        return '; see the layout in docs/training.md'
    endings = Counter(Path(name).suffix for _, _, files in os.walk(folder) for name in files)
    if not endings:
        return f': there are no files in {folder}'
    (ending, count), *_ = endings.most_common(1)
    return (
        f' that end in {suffix}: there are {count} {ending} files; set img_suffix={ending!r} of the data set'
    )


def _ignored_labels(model: ConfigDict) -> set[int]:
    """The ids that every head and loss of a segmenter ignores."""
    heads = [value for path, value in entries(model, 'model', 'ignore_index') if isinstance(value, int)]
    return set(heads) or {IGNORED_LABEL}


def _label_checker(
    classes: list[str], ignored: set[int], reduced: bool, mapping: dict | None
) -> Callable[[np.ndarray], tuple[str | None, Counter]]:
    """A function that says what is wrong with the ids of a label map, and counts the classes' pixels."""
    # As mmseg reads it: with reduce_zero_label 0 is ignored, and k is class k - 1.
    ids = dict(enumerate(classes, start=int(bool(reduced))))
    if mapping:
        ids = {old: classes[new] for old, new in mapping.items() if 0 <= new < len(classes)}
    valid = {*ids, *ignored, *(mapping or {}), *([0, IGNORED_LABEL] if reduced else [])}

    def check(labels: np.ndarray) -> tuple[str | None, Counter]:
        found, counts = np.unique(labels, return_counts=True)
        there = {int(i): int(n) for i, n in zip(found, counts, strict=True)}
        pixels = Counter({ids[i]: n for i, n in there.items() if i in ids and i not in ignored})
        bad = {i: n for i, n in there.items() if i not in valid}
        if not bad:
            return None, pixels
        shown = ', '.join(f'{i} ({n} pixels)' for i, n in list(bad.items())[:5])
        text = (
            f'ids out of range: {shown}; with {len(classes)} classes and reduce_zero_label={bool(reduced)} '
            f'they are 0-{max(ids, default=0)}, and {", ".join(map(str, sorted(ignored)))} is ignored. '
            'Correct the map or the config'
        )
        return text, pixels

    return check


def _list_voc(dataset: Any, classes: tuple, histogram: Counter) -> tuple[list[Problem], list[Item]]:
    """The images of a data set in VOC's format, and what is wrong with its XML files."""
    try:
        names = Path(dataset.ann_file).read_text().split()
    except OSError as error:
        return [Problem(dataset.ann_file, f'cannot be read: {error}; give another with --data-root')], []
    problems, items, unknown = [], [], Counter()
    for name in names:
        image = os.path.join(dataset.sub_data_root, dataset.img_subdir, f'{name}.jpg')
        path = os.path.join(dataset.sub_data_root, dataset.ann_subdir, f'{name}.xml')
        try:
            root = ElementTree.parse(path).getroot()
            size = tuple(int(root.findtext(f'size/{side}')) for side in ('width', 'height'))
            objects = [
                (entry.findtext('name'), [float(entry.findtext(f'bndbox/{edge}')) for edge in _EDGES])
                for entry in root.iter('object')
            ]
        except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
            problems.append(Problem(path, f'cannot be read as VOC annotations ({error}); correct it'))
            continue
        items.append(Item(image, size))
        for kind, (left, top, right, bottom) in objects:
            if kind not in classes:
                unknown[kind] += 1
                continue
            histogram[kind] += 1
            if right <= left or bottom <= top:
                problems.append(
                    Problem(path, f'{kind} has an empty box, {left, top, right, bottom}; correct it')
                )
            elif right > size[0] + TOLERANCE or bottom > size[1] + TOLERANCE or min(left, top) < 0:
                text = '{} has the box {}, outside the image of {} x {}; correct it'
                problems.append(Problem(path, text.format(kind, (left, top, right, bottom), *size)))
    for kind, count in unknown.items():
        text = (
            f'{count} objects are called {kind!r}, which is no class of the config, and are left out; '
            'correct the name or the classes'
        )
        problems.append(Problem(dataset.ann_file, text))
    return problems, items


_EDGES = ('xmin', 'ymin', 'xmax', 'ymax')


def _list_coco(
    path: str,
    folder: str,
    classes: tuple,
    with_mask: bool,
    filtered: dict,
    evaluated: bool,
    histogram: Counter,
) -> tuple[list[Problem], list[Item]]:
    """The images of an annotation file in COCO's format, and what is wrong with it."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        return [Problem(path, f'cannot be read: {error}; give another with --data-root')], []
    except ValueError as error:
        return [Problem(path, f'is not JSON ({error}); get or write it anew')], []
    parts = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        text = f'must be an object with the lists {", ".join(parts)}, as COCO has them; convert it'
        return [Problem(path, text)], []
    wanted = {
        'images': ('id', 'file_name', 'width', 'height'),
        'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
        'categories': ('id', 'name'),
    }
    problems, tables = [], {}
    for part, fields in wanted.items():
        tables[part] = {}
        for number, entry in enumerate(content[part]):
            lacking = [name for name in fields if not isinstance(entry, dict) or name not in entry]
            no_id = [name for name in _IDS if name in fields and name not in lacking]
            no_id = [name for name in no_id if not (isinstance(entry[name], str) or _is_whole(entry[name]))]
            if lacking:
                problems.append(Problem(path, f'{part}[{number}] has no {", ".join(lacking)}; add it'))
            elif no_id:
                text = f'{part}[{number}]: {no_id[0]} {entry[no_id[0]]!r} is no whole number; correct it'
                problems.append(Problem(path, text))
            elif entry['id'] in tables[part]:
                problems.append(Problem(path, f'{part}[{number}]: id {entry["id"]} is there twice; renumber'))
            else:
                tables[part][entry['id']] = entry
    names = {entry['id']: str(entry['name']) for entry in tables['categories'].values()}
    if 0 in tables['annotations']:
        text = 'has an annotation with id 0, which evaluation takes for "no match": number them from 1'
        problems.append(Problem(path, text))
    items = {}
    for key, entry in tables['images'].items():
        size = entry['width'], entry['height']
        if isinstance(entry['file_name'], str) and all(_is_whole(side) and side > 0 for side in size):
            items[key] = Item(os.path.join(folder, entry['file_name']), size)
        else:
            text = f'image {key} must have a text as file_name, width and height in pixels; correct it'
            problems.append(Problem(path, text))
    for image, count in Counter(os.path.normpath(item.image) for item in items.values()).items():
        if count > 1:
            text = (
                f'lists {image} {count} times, with other objects each time; give it one id and its objects'
            )
            problems.append(Problem(path, text))
    left_out, with_objects = Counter(), set()
    for key, entry in tables['annotations'].items():
        if entry['image_id'] in tables['images'] and entry['image_id'] not in items:
            continue
        if entry['image_id'] not in items:
            problems.append(
                Problem(
                    path, f'annotation {key} is of image {entry["image_id"]}, which is not listed; remove it'
                )
            )
            continue
        item, category = items[entry['image_id']], entry['category_id']
        if category not in names:
            problems.append(
                Problem(path, f'annotation {key} has category {category}, which is not listed; correct it')
            )
        elif names[category] not in classes:
            left_out[names[category]] += 1
        else:
            histogram[names[category]] += 1
            with_objects.add(entry['image_id'])
        text, is_error = _check_annotation(entry, *item.size, with_mask) or ('', False)
        if text:
            item.problems.append(
                Problem(item.image, f'annotation {key} ({Path(path).name}) {text}', is_error)
            )
    for name, count in left_out.items():
        text = f"{count} annotations of category '{name}' are left out: the config's classes do not have it"
        problems.append(Problem(path, f'{text}. Add it there if it is to be learned', is_error=False))
    entries_there = tables['annotations'].values()
    without = sum('iscrowd' not in entry for entry in entries_there)
    if without:
        text = f'{without} annotations have no iscrowd, without which evaluation fails; add "iscrowd": 0'
        problems.append(Problem(path, text, is_error=evaluated))
    ignored = sum(bool(entry.get('ignore')) for entry in entries_there)
    if ignored:
        text = f'{ignored} annotations have "ignore" set and are left out; remove it if that is a mistake'
        problems.append(Problem(path, text, is_error=False))
    if filtered.get('filter_empty_gt') and len(with_objects) < len(items):
        text = (
            f'{len(items) - len(with_objects)} of {len(items)} images have no objects of the classes and are '
            'left out of training (filter_cfg.filter_empty_gt)'
        )
        problems.append(Problem(path, text, is_error=False))
    return problems, list(items.values())


def _check_annotation(entry: dict, width: int, height: int, with_mask: bool) -> tuple[str, bool] | None:
    """What is wrong with an object's box and mask, and whether it is an error."""
    box = entry['bbox']
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return f'has no box [x, y, width, height] but {box!r}; correct it', True
    if not _is_number(entry['area']):
        return f'has no number of pixels as area but {entry["area"]!r}; correct it', True
    if entry.get('iscrowd', 0) not in (0, 1):
        return f'has iscrowd {entry["iscrowd"]!r}, which is taken for a crowd; write 0 or 1', True
    x, y, w, h = box
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return f'has the box {box} outside the image of {width} x {height}, and is lost; correct it', True
    if w < 1 or h < 1 or entry['area'] <= 0:
        return f'is smaller than a pixel, box {box}, area {entry["area"]}, and is left out', False
    if min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        return f'has the box {box}, partly outside the image of {width} x {height}; correct it', True
    mask = entry.get('segmentation')
    if not with_mask:
        return None
    if isinstance(mask, dict):
        if mask.get('size') != [height, width]:
            return f'has a mask of {mask.get("size")} for an image of {[height, width]}; correct it', True
    elif isinstance(mask, list) and mask:
        for polygon in mask:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)) or len(polygon) == 2:
                return 'has a polygon that is no list of numbers [x1, y1, x2, y2, ...]; correct it', True
            if len(polygon) < 6 or len(polygon) % 2:
                return 'has a polygon of less than three points, which is left out', False
            xs, ys = polygon[::2], polygon[1::2]
            if min(*xs, *ys) < -TOLERANCE or max(xs) > width + TOLERANCE or max(ys) > height + TOLERANCE:
                return f'has a mask that leaves the image of {width} x {height}; correct it', True
        share = _overlap(box, mask)
        if share < 0.5:
            text = f'has a box {box} and a mask that share {share:.0%} of their extents; correct one of them'
            return f'{text}{" if that is a mistake" if share else ""}', not share
    else:
        return 'has no segmentation, which this config trains with; add it, or take a config of boxes', True
    return None


def _overlap(box: list, polygons: list) -> float:
    """Intersection over union of a box and the extents of a mask."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    x, y, w, h = box
    inner = max(min(x + w, max(xs)) - max(x, min(xs)), 0) * max(min(y + h, max(ys)) - max(y, min(ys)), 0)
    return inner / max(w * h + (max(xs) - min(xs)) * (max(ys) - min(ys)) - inner, 1e-9)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, float)) and float(value).is_integer()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _check_item(item: Item) -> list[Problem]:
    """What is wrong with an image and its label map, and with what is annotated."""
    problems, size = _check_image(item)
    problems += item.problems
    if item.label_map:
        try:
            labels = _decoded(item.label_map)
        except _UnreadableError as error:
            return [*problems, Problem(item.label_map, f'{error}; it is the label map of {item.image}')]
        array = np.asarray(labels)
        if array.ndim != 2:
            text = f'is a label map with {array.shape[-1]} channels ({labels.mode}); write one with class ids'
            return [*problems, Problem(item.label_map, text)]
        if min(labels.size) == 1:
            text = 'has a side of one pixel, which mmseg cannot read; take it and its image away'
            problems.append(Problem(item.label_map, text))
        if size and labels.size != size:
            text = '{} x {} pixels, but its image {} has {} x {}; make them equal'
            problems.append(Problem(item.label_map, text.format(*labels.size, item.image, *size)))
        if labels.format == 'JPEG':
            text = 'is stored as JPEG, which changes ids at the edges; write it as PNG from the original'
            problems.append(Problem(item.label_map, text))
        if labels.mode == '1':
            text = 'is black and white: white is id 1; write ids of 8 bits if it stands for another'
            problems.append(Problem(item.label_map, text, is_error=False))
        wrong, item.pixels = item.check_labels(array)
        if wrong:
            problems.append(Problem(item.label_map, wrong))
    return problems


class _UnreadableError(Exception):
    """An image that cannot be decoded; the message says why."""


def _decoded(path: str) -> Image.Image:
    """A picture, wholly decoded: some versions of OpenCV, which the frameworks use, fill gaps with grey."""
    if not os.path.isfile(path):
        raise _UnreadableError('does not exist; get it, or take it off the list')
    if os.path.getsize(path) == 0:
        raise _UnreadableError('is empty, 0 bytes; get it again')
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # Pillow's readers raise many kinds
        raise _UnreadableError(f'is damaged or no image ({error}); get it again') from error


# What the frameworks' default loader makes of pictures that are not 8-bit RGB.
_MODES = {
    'L': 'is grey: it becomes three equal channels',
    '1': 'is black and white: it becomes three equal channels',
    'LA': 'is grey with alpha: alpha is dropped, it becomes three equal channels',
    'RGBA': 'has an alpha channel, which is dropped: what it hides shows',
    'P': 'has a palette, from which its colours are read',
    'CMYK': 'is CMYK: it becomes RGB without its colour profile, colours can differ; better convert it',
}


def _check_image(item: Item) -> tuple[list[Problem], tuple[int, int] | None]:
    """What is wrong with an image, and its size (width, height) as it is trained with."""
    try:
        image = _decoded(item.image)
    except _UnreadableError as error:
        return [Problem(item.image, str(error))], None
    problems, size = [], image.size
    turns = image.format in ('JPEG', 'MPO', 'PNG') and not item.ignores_orientation
    if turns and image.getexif().get(0x0112, 1) != 1:  # EXIF's orientation
        size = ImageOps.exif_transpose(image).size
        text = (
            'is turned by its EXIF data when it is read: annotations must fit the turned picture of {} x {}'
        )
        problems.append(Problem(item.image, text.format(*size), is_error=False))
    if item.size and tuple(item.size) != size:
        text = '{} x {} pixels, but annotated as {} x {}; correct width and height, and check the boxes'
        problems.append(Problem(item.image, text.format(*size, *item.size)))
    if image.mode in _MODES:
        problems.append(Problem(item.image, _MODES[image.mode], is_error=False))
    elif image.mode != 'RGB':
        text = f'has mode {image.mode}, not 8-bit grey or RGB; convert it'
        if image.mode.startswith('I'):  # I;16 and its like
            text = f'has mode {image.mode}, more than 8 bits: the upper 8 of 16 are used; convert it if dark'
        problems.append(Problem(item.image, text, is_error=False))
    if item.scale and min(size) * max(item.scale) < 0.5 * max(size):  # as mmcv rounds
        text = '{} x {} pixels: nothing is left of it when it is resized to fit {} x {}; take it off the list'
        problems.append(Problem(item.image, text.format(*size, *item.scale)))
    elif min(size) < SMALL or max(size) > LONG * min(size):
        text = '{} x {} pixels, of which resizing leaves little; take it off the list if that is a mistake'
        problems.append(Problem(item.image, text.format(*size), is_error=False))
    return problems, size
