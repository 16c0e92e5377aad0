"""YOLO's data.yaml: what it names, and where the images and label files are."""

import os
from pathlib import Path
from typing import Any

import yaml

from mmsgformer.data.errors import DataError
from mmsgformer.data.folders import SPLITS, Found, Split, Tree, images_below, tree_of

FORMAT = 'YOLO'


def recognize(root: Path, tree: Tree) -> Found | None:
    """The splits that a data.yaml in the folder names; None if there is no such file."""
    found = []
    for name in tree[Path()]:
        if name.endswith(('.yaml', '.yml')):
            data = read_yaml(root / name)
            if 'names' in data and data.keys() & set(SPLITS):
                found.append((root / name, data))
            elif Path(name).stem == 'data':
                raise DataError(f'{root / name} must have train and names; add what is missing')
    if len(found) > 1:
        raise DataError(f'{found[0][0]} and {found[1][0]} both describe data; leave one of them there')
    if not found:
        return None
    ((path, data),) = found
    splits, notes = {}, []
    for name in SPLITS:
        entries = data.get(name) or []
        try:
            images = [
                image
                for entry in (entries if isinstance(entries, list) else [entries])
                for image in _located(str(entry), path, data, name)
            ]
        except FileNotFoundError as error:
            if name != 'test':
                raise DataError(str(error)) from error
            notes.append(f'{error}: left out')  # Roboflow names a test set whether there is one or not
            continue
        if not images:
            continue
        if not any(label_of(image).is_file() for image in images):
            text = f'no image of {name} has labels, as {label_of(images[0])} for {images[0]}; add them'
            raise DataError(f'{path}: {text}')
        folder = Path(os.path.commonpath([image.parent for image in images]))
        splits[name] = Split(folder, path, tuple(str(image.relative_to(folder)) for image in images))
    _require_images(path, [split.images / name for split in splits.values() for name in split.files])
    return Found(root, 'detection', FORMAT, tuple(names_in(path).values()), splits, notes=tuple(notes))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty for another content."""
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f'{path} is not YAML ({" ".join(str(error).split())}); correct it') from error
    return data if isinstance(data, dict) else {}


def names_in(path: Path) -> dict[int, str]:
    """The names of a data.yaml by the number that label files have, in their order."""
    names = read_yaml(path)['names']
    try:
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return dict(sorted((int(number), str(name)) for number, name in pairs))
    except (TypeError, ValueError) as error:
        raise DataError(f'{path}: names must be a list, or names by their numbers ({error})') from error


def label_of(image: Path) -> Path:
    """The label file of an image: in `labels` where the image is in `images`, else beside it."""
    parts = list(image.parts)
    if 'images' in parts:
        parts[len(parts) - 1 - parts[::-1].index('images')] = 'labels'
    return Path(*parts).with_suffix('.txt')


def _located(entry: str, path: Path, data: dict, key: str) -> list[Path]:
    """The images that an entry of a data.yaml names: a folder, or a list of them in a text file."""
    base = path.parent / str(data.get('path') or '')  # perhaps of another machine
    tried = [base / entry, path.parent / entry, path.parent / entry.removeprefix('../')]  # Roboflow's
    place = next((Path(os.path.normpath(one)) for one in tried if one.exists()), None)
    if place is None:
        raise FileNotFoundError(f'{path}: {key} is {entry!r}, but {tried[0]} does not exist; correct it')
    if place.is_dir():
        images = [place / name for name in images_below(tree_of(place))]
    else:
        lines = [line.strip() for line in place.read_text(encoding='utf-8').splitlines() if line.strip()]
        images = [Path(os.path.normpath(place.parent / line)) for line in lines]
        for image in images:
            if not image.is_file():
                raise FileNotFoundError(f'{place} lists {image}, which does not exist; correct it')
    if not images:
        raise FileNotFoundError(f'{path}: {key} is {entry!r}, but {place} has no images; correct it')
    return images


def _require_images(path: Path, images: list[Path]) -> None:
    """Check that no label file is without an image."""
    labels = {label_of(image) for image in images}
    folders = {label.parent for label in labels} - {image.parent for image in images}
    there = {file for folder in folders for file in folder.glob('*.txt') if file.name != 'classes.txt'}
    lone = sorted(there - labels)
    if lone:
        raise DataError(f'{path}: {len(lone)} label files have no image, as {lone[0]}; add or remove them')
