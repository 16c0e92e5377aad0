"""Folders of images and of label maps, PNG files whose pixels hold the numbers of their classes."""

import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsgformer.data.errors import DataError
from mmsgformer.data.folders import (
    IGNORED_LABEL,
    Found,
    Split,
    Tree,
    add_split,
    images_below,
    images_of,
    names_split,
    require_names,
    split_of,
)

FORMAT = 'images and label maps'
_NAME_FILES = {'classes', 'labels', 'label_map', 'labelmap', 'meta'}
_VOID = {'void', 'unlabelled', 'unlabeled', 'ignore', 'ignored'}


def recognize(root: Path, tree: Tree) -> Found | None:
    """Pairs of folders, and the classes that a file names or the pixels have; None if there are no pairs."""
    pairs = {}
    for labels, names in tree.items():
        images = images_of(labels, tree) if any(name.lower().endswith('.png') for name in names) else None
        while images and labels.name == images.name and not names_split(images.name):
            labels, images = labels.parent, images.parent  # sub-folders of one split
        if images:
            pairs[labels] = images
    splits: dict[str, Split] = {}
    for labels, images in pairs.items():
        add_split(splits, split_of(images), _paired(root, images, labels, tree))
    if not splits:
        return None
    ids = _ids(path for split in splits.values() for path in map_paths(split))
    source, names = _names(root, tree)
    classes = tuple(names.get(i, str(i)) for i in range(max(names or ids - {IGNORED_LABEL}, default=0) + 1))
    require_names(classes, source)
    if ids == {0, IGNORED_LABEL}:
        raise DataError(
            f'the label maps of {root} hold 0 and 255 alone, and 255 is ignored: nothing would be learned. '
            'Write 1 for the class that is 255 now'
        )
    ignored = [i for i, name in enumerate(classes) if name.lower() in _VOID]
    unnamed = sorted(i for i in ids - {IGNORED_LABEL} if i >= len(classes))
    notes = []
    if unnamed == [len(classes)] and not ignored:
        ignored = unnamed
        notes.append(f'id {ignored[0]} has no name in {source.name}: ignored in training and testing')
    elif unnamed:
        raise DataError(
            f'the label maps have ids {unnamed[:5]}, but {source} names {len(classes)} classes, '
            f'0-{len(classes) - 1}; name them there, void what should be ignored'
        )
    elif ignored:
        notes.append(f'id {ignored[0]}, {classes[ignored[0]]!r}: ignored in training and testing')
    if len(ignored) > 1 or (ignored and IGNORED_LABEL in ids):
        both = [*ignored, IGNORED_LABEL][:2]
        raise DataError(f'{source}: ids {both[0]} and {both[1]} are both to be ignored; write one for both')
    if ignored == [len(classes) - 1]:
        classes = classes[:-1]
    if not names:
        notes.append('the classes have no names: list them in classes.txt beside the images, one a line')
    (ignored_id,) = ignored or [IGNORED_LABEL]
    return Found(root, 'segmentation', FORMAT, classes, splits, ignored=ignored_id, notes=tuple(notes))


def map_paths(split: Split) -> list[Path]:
    """The label maps, in the order of the images."""
    return [split.annotation / f'{os.path.splitext(name)[0]}{split.map_suffix}' for name in split.files]


def _paired(root: Path, images: Path, labels: Path, tree: Tree) -> Split:
    """A split of which every image has a label map and the reverse."""
    files, maps = images_below(tree, images), images_below(tree, labels)
    stem = os.path.splitext(files[0])[0]
    suffix = min((name[len(stem) :] for name in maps if name.startswith(stem)), key=len, default='.png')
    split = Split(root / images, root / labels, tuple(files), map_suffix=suffix)
    endings = sorted({Path(name).suffix for name in files})
    if len(endings) > 1:
        raise DataError(f'{split.images} has images that end in {", ".join(endings)}; give all one ending')
    expected = map_paths(split)
    lacking = [path for path in expected if not path.is_file()]
    if lacking:
        text = f'{len(lacking)} of {len(files)} images have no label map, as {lacking[0]}'
        raise DataError(f'{split.images}: {text}; add them or remove the images')
    lone = sorted({split.annotation / name for name in maps} - set(expected))
    if lone:
        raise DataError(f'{len(lone)} label maps have no image, as {lone[0]}; add the images or remove them')
    return split


def _ids(paths: Iterable[Path]) -> set[int]:
    """The ids that occur in label maps."""

    def read(path: Path) -> set[int]:
        try:
            with Image.open(path) as image:
                labels = np.asarray(image)
        except (OSError, SyntaxError) as error:
            raise DataError(f'{path} cannot be read ({error}); replace it') from error
        if labels.ndim != 2:
            raise DataError(
                f'{path} has {labels.shape[2]} channels: a label map has one, with the number of each '
                "pixel's class (or a palette); convert colours to numbers"
            )
        found = {int(i) for i in np.unique(labels)}
        if min(found) < 0 or max(found) > IGNORED_LABEL:
            raise DataError(f'{path} has the id {max(found)}; labels are 0-254, and 255 is ignored')
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return set().union(*pool.map(read, paths))


def _names(root: Path, tree: Tree) -> tuple[Path, dict[int, str]]:
    """The file that names the classes, and the names by id; the folder and nothing if there is none."""
    for folder in sorted(tree, key=lambda folder: len(folder.parts))[:20]:
        for name in tree[folder]:
            stem, suffix = os.path.splitext(name.lower())
            if stem in _NAME_FILES and suffix in ('.txt', '.json'):
                path = root / folder / name
                try:
                    text = path.read_text(encoding='utf-8-sig')
                    return path, _from_json(json.loads(text)) if suffix == '.json' else _from_lines(text)
                except (ValueError, TypeError, KeyError) as error:
                    text = 'a name a line, a list of names in JSON, or names by their numbers'
                    raise DataError(f'{path} names no classes ({error!r}); write {text}') from error
    return root, {}


def _from_lines(text: str) -> dict[int, str]:
    """`name` a line, or `number name` in all of them."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith('#')]
    numbered = [re.fullmatch(r'(\d+)[\s:,]+(.+)', line) for line in lines]
    if all(numbered):
        return {int(match[1]): match[2] for match in numbered}
    return dict(enumerate(lines))


def _from_json(content: Any) -> dict[int, str]:
    """A list of names or of entries with `id` and `name`, names by number, numbers by name, or one of these
    as `classes`, `names` or `labels`."""
    if isinstance(content, list):
        entries = [one if isinstance(one, dict) else {'name': one} for one in content]
        return {int(entry.get('id', i)): str(entry['name']) for i, entry in enumerate(entries)}
    for key in ('classes', 'names', 'labels'):
        if isinstance(content.get(key), (list, dict)):
            return _from_json(content[key])
    if all(str(key).isdigit() for key in content):
        return {int(key): str(value) for key, value in content.items()}
    return {int(value): str(key) for key, value in content.items()}
