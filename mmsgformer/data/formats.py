"""Recognise the format of somebody's own folder. Nothing is written.

The formats, each with the tree of its folder, are in docs/own_data.md.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mmsgformer.data import label_maps, yolo
from mmsgformer.data.errors import DataError
from mmsgformer.data.folders import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    SPLITS,
    Found,
    Split,
    Tree,
    add_split,
    images_below,
    images_of,
    is_image,
    named_split,
    names_split,
    require_names,
    split_of,
    tree_of,
)

COCO, VOC, CLASS_FOLDERS = 'COCO JSON', 'Pascal VOC XML', 'a folder per class'


def recognize(folder: str | Path) -> Found:
    """What is in a folder, by the names of its files, and by the files that name classes.

    Raises:
        DataError: It has none of the formats or two, or what it has cannot be right; names the file.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise DataError(f'{folder} is not a folder; give that of your data with --data')
    tree = tree_of(root)
    readers = (_coco, yolo.recognize, _voc, label_maps.recognize)
    found = [one for read in readers if (one := read(root, tree))]
    if len(found) > 1:
        seen = ' and '.join(f'{one.format} ({next(iter(one.splits.values())).annotation})' for one in found)
        raise DataError(
            f'{folder} holds {seen}: give with --data a sub-folder that holds one of them, or a folder of '
            'links (ln -s) to its parts'
        )
    if not found:
        found = [one for one in [_class_folders(root, tree)] if one]
    if not found:
        raise DataError(f'{folder} {_what_is_there(tree)}')
    require_names(found[0].classes, root)
    return found[0]


def _what_is_there(tree: Tree) -> str:
    """What a folder holds that has no format."""
    endings = Counter(os.path.splitext(name)[1].lower() for names in tree.values() for name in names)
    if not endings:
        return 'is empty; give the folder of your data with --data'
    images = sum(is_image(name) for names in tree.values() for name in names)
    listed = ', '.join(f'{count} {ending or "without ending"}' for ending, count in endings.most_common(5))
    return (
        f'has {f"{images} images without labels" if images else "no images"} of a format that is known '
        f'(files: {listed}). Known are COCO JSON, YOLO with a data.yaml, Pascal VOC XML, images with label '
        'maps, and a folder per class: docs/own_data.md shows each'
    )


def _coco(root: Path, tree: Tree) -> Found | None:
    paths = [folder / name for folder, names in tree.items() for name in names if name.endswith('.json')]
    instances = {path.parent for path in paths if path.name.startswith('instances_')}  # not the captions
    paths = [path for path in paths if path.parent not in instances or path.name.startswith('instances_')]
    splits: dict[str, Split] = {}
    names: dict[Path, tuple[str, ...]] = {}
    has_masks = ready = True
    most = 0
    for path in paths:
        content = read_coco(root / path)
        if content is None:
            continue
        try:
            categories = used_categories(content)
            objects = [entry for entry in content['annotations'] if entry['category_id'] in categories]
            files = tuple(str(entry['file_name']) for entry in content['images'])
            ids = {entry['id'] for entry in content['annotations']}
        except (KeyError, TypeError) as error:
            raise DataError(f'{root / path} has an entry without {error}; add it') from error
        if len(objects) < len(content['annotations']):
            raise DataError(f'{root / path} has objects of a category that it does not list; list all')
        if not objects:
            raise DataError(f'{root / path} lists {len(files)} images and no object; label some')
        names[root / path] = tuple(categories.values())
        require_names(names[root / path], root / path)
        most = max(most, *Counter(entry['image_id'] for entry in objects).values())
        has_masks &= all(entry.get('segmentation') for entry in objects)
        ready &= len(ids) == len(content['annotations']) and 0 not in ids  # 0: "no match" for pycocotools
        images = root / _folder_with(files, path, tree)
        missing = [name for name in files if not (images / name).is_file()]
        if missing:
            raise DataError(
                f'{root / path} lists {len(files)} images, but {len(missing)} are not there, as '
                f'{images / missing[0]}; add them or take them out of the list'
            )
        add_split(splits, split_of(path), Split(images, root / path, files, len(objects)))
    if not splits:
        return None
    first = next(split.annotation for name in SPLITS if (split := splits.get(name)))
    for path, other in names.items():
        odd = sorted(set(other) ^ set(names[first]))
        if odd:
            raise DataError(
                f'{path} and {first} have different classes: {odd[0]!r} is in one alone; list all'
            )
    ready &= all(other == names[first] for other in names.values())
    return Found(root, 'detection', COCO, names[first], splits, has_masks, most, ready=ready)


def read_coco(path: Path) -> dict[str, Any] | None:
    """The content of a file in COCO's format, None if it is something else."""
    data = path.read_bytes()
    if b'"images"' not in data or b'"annotations"' not in data:
        return None
    try:
        content = json.loads(data)
    except ValueError as error:
        raise DataError(f'{path} is not JSON ({error}); get or write it anew') from error
    lists = ('images', 'annotations', 'categories')
    is_coco = isinstance(content, dict) and all(isinstance(content.get(part), list) for part in lists)
    return content if is_coco else None


def used_categories(content: dict[str, Any]) -> dict[int, str]:
    """Names by id, in the file's order, without the group that Roboflow puts before its classes."""
    labels = {entry['category_id'] for entry in content['annotations']}
    groups = {entry.get('supercategory') for entry in content['categories']}
    return {
        entry['id']: str(entry['name'])
        for entry in content['categories']
        if entry['id'] in labels or entry.get('supercategory') != 'none' or entry['name'] not in groups
    }


def _folder_with(files: tuple[str, ...], path: Path, tree: Tree) -> Path:
    """The folder with the images that a file of COCO's format lists: called after the same split, or near."""

    split = named_split(path)

    def rank(folder: Path) -> tuple:
        there = sum((folder / name).name in tree.get((folder / name).parent, ()) for name in files[:20])
        alike = bool(folder.name) and folder.name in path.stem, named_split(folder) == split
        return there, *alike, folder == path.parent, folder.name.lower() in IMAGE_FOLDERS, -len(folder.parts)

    # Another split's images often have the same names.
    return max((folder for folder in tree if not split or named_split(folder) in (None, split)), key=rank)


def _voc(root: Path, tree: Tree) -> Found | None:
    splits: dict[str, Split] = {}
    notes = []
    for folder, names in tree.items():
        xml = {Path(name).stem for name in names if name.endswith('.xml')}
        if not xml or b'<annotation' not in (root / folder / f'{min(xml)}.xml').read_bytes():
            continue
        images = folder if any(map(is_image, names)) else images_of(folder, tree)
        files = {Path(name).stem: name for name in tree.get(images, ()) if is_image(name)}
        lone = sorted(xml - files.keys())
        if lone:
            text = f'{len(lone)} of {len(xml)} XML files have no image, as {lone[0]}.xml'
            raise DataError(f'{root / folder}: {text}; add the images or remove them')
        lists = _voc_lists(root / folder.parent / 'ImageSets' / 'Main')
        for name, stems in (lists or {split_of(folder): sorted(files)}).items():
            lost = [stem for stem in stems if stem not in files]
            if lost and name == 'test':
                notes.append(
                    f'ImageSets/Main/test.txt lists images that are not there, as {lost[0]}: left out'
                )
                continue
            if lost:
                raise DataError(
                    f'ImageSets/Main lists {lost[0]} for {name}, but {root / images} lacks it; add it'
                )
            listed = tuple(files[stem] for stem in stems)
            add_split(splits, name, Split(root / images, root / folder, listed))
    return Found(root, 'detection', VOC, (), splits, notes=tuple(notes)) if splits else None


def _voc_lists(folder: Path) -> dict[str, list[str]]:
    """The images of each split; what is for training and validation together is for training."""
    lists = {}
    for name in ('train', 'val', 'test', 'trainval'):
        if (folder / f'{name}.txt').is_file():
            lines = (folder / f'{name}.txt').read_text(encoding='utf-8').splitlines()
            lists[name] = [line.strip() for line in lines if line.strip()]
    together = lists.pop('trainval', None)
    return {'train': together, **lists} if together and 'train' not in lists else lists


def _class_folders(root: Path, tree: Tree) -> Found | None:
    bases = [folder for folder in tree if len(folder.parts) == 1 and names_split(folder.name)] or [Path()]
    splits: dict[str, Split] = {}
    folders: dict[str, set[str]] = {}
    notes = []
    for base in bases:
        images, name = images_below(tree, base), split_of(base)
        inside = [image for image in images if len(Path(image).parts) > 1]
        classes = {Path(image).parts[0] for image in inside}
        alone = not base.parts and len(classes) == 1  # a folder of images, more likely
        if not classes or alone or {word.lower() for word in classes} & (IMAGE_FOLDERS | LABEL_FOLDERS):
            notes.append(f'{root / base} has no folders of classes: left out')
            continue
        empty = [one.name for one in tree if one.parent == base != one and one.name not in classes]
        if empty and name == 'train' and base.parts:
            raise DataError(f'{root / base / empty[0]} has no images; add some or remove the folder')
        if len(inside) < len(images):
            number = len(images) - len(inside)
            notes.append(f'{number} images in {root / base} are in no folder of a class: left out')
        add_split(splits, name, Split(root / base, root / base, tuple(inside)))
        folders[name] = classes
    first = next((name for name in SPLITS if name in splits), None)
    if first is None:
        return None
    for name, classes in folders.items():
        odd = sorted(classes - folders[first])
        if odd:
            raise DataError(f'{splits[name].images / odd[0]}: no class {odd[0]!r} in {splits[first].images}')
    classes = tuple(sorted(folders[first]))
    return Found(root, 'classification', CLASS_FOLDERS, classes, splits, notes=tuple(notes))
