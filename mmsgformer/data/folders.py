"""What somebody's own folder holds, and the words that layouts of data sets have in common."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsgformer.data.errors import DataError

SPLITS = ('train', 'val', 'test')
IMAGE_FOLDERS = {'images', 'image', 'imgs', 'img', 'img_dir', 'jpegimages'}
LABEL_FOLDERS = {'annotations', 'annotation', 'labels', 'label', 'masks', 'mask', 'ann_dir'}
_WORDS = {'training': 'train', 'valid': 'val', 'validation': 'val', 'testing': 'test'}
_WORDS |= {name: name for name in SPLITS}
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
IGNORED_LABEL = 255  # of a label map, where nothing else is said
Tree = dict[Path, list[str]]


@dataclass(frozen=True)
class Split:
    """The images of one split, and where their labels are.

    Args:
        images: The folder that `files` are relative to.
        annotation: The file or folder with the labels.
        files: The images.
        num_objects: None where it is not known yet, or where labels are no objects.
        map_suffix: With what a label map's name goes on after its image's name without ending.
        listing: The list of files that training reads instead of the folder.
    """

    images: Path
    annotation: Path
    files: tuple[str, ...]
    num_objects: int | None = None
    map_suffix: str = '.png'
    listing: Path | None = None


@dataclass(frozen=True)
class Found:
    """What is in a folder.

    Args:
        folder: The folder.
        task: 'detection', 'segmentation' or 'classification'.
        format: Its name.
        classes: In the order of their labels; empty where that takes reading all annotations.
        splits: By 'train', 'val', 'test'; those that there are.
        has_masks: Every object has a mask.
        most_objects: As many as the fullest image has.
        ignored: The id in label maps that is neither learned nor measured.
        ready: Training can take the annotation files as they are.
        notes: What else the user should know.
    """

    folder: Path
    task: str
    format: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    has_masks: bool = False
    most_objects: int = 0
    ignored: int = IGNORED_LABEL
    ready: bool = False
    notes: tuple[str, ...] = ()


def tree_of(root: Path) -> Tree:
    """The sorted names of the files in every folder below, links followed, hidden ones left out."""
    tree: Tree = {}

    def walk(folder: Path, above: tuple[str, ...]) -> None:
        real = os.path.realpath(root / folder)
        if real in above:  # a link to a folder that it is in
            return
        tree[folder] = []
        for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
            if entry.name.startswith(('.', '__')):
                continue
            if entry.is_dir():
                walk(folder / entry.name, (*above, real))
            else:
                tree[folder].append(entry.name)

    walk(Path(), ())
    return tree


def is_image(name: str) -> bool:
    """By its ending."""
    return name.lower().endswith(IMAGE_ENDINGS)


def images_below(tree: Tree, folder: Path = Path()) -> list[str]:
    """The images in a folder and its sub-folders, relative to it."""
    names = (
        one.relative_to(folder) / name
        for one in tree
        if one == folder or folder in one.parents
        for name in tree[one]
    )
    return sorted(str(name) for name in names if is_image(name.name))


def named_split(path: Path) -> str | None:
    """The split that a path is named after."""
    words = (word for part in reversed(path.parts) for word in re.findall('[a-z]+', part.lower()))
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def split_of(path: Path) -> str:
    """The split that a path is named after, 'train' if none."""
    return named_split(path) or 'train'


def names_split(name: str) -> bool:
    """Whether a folder is called as a split is."""
    return name.lower() in _WORDS


def add_split(splits: dict[str, Split], name: str, split: Split) -> None:
    """Add a split, in place.

    Raises:
        DataError: There is one of this name.
    """
    if name in splits:
        both = f'{splits[name].annotation} and {split.annotation}'
        raise DataError(f'{both} are both for {name}: give with --data a folder that has one of them')
    splits[name] = split


def images_of(labels: Path, tree: Tree) -> Path | None:
    """The folder with the images of a folder of labels: `a/images/b` of `a/masks/b`, `val` of `valannot`."""

    def is_pair(label: str, image: str) -> bool:
        words = label.lower() in LABEL_FOLDERS and image.lower() in IMAGE_FOLDERS
        return words or label.lower() == f'{image.lower()}annot'

    for folder, names in tree.items():
        if len(folder.parts) == len(labels.parts) and any(map(is_image, names)):
            differing = [pair for pair in zip(labels.parts, folder.parts, strict=True) if pair[0] != pair[1]]
            if len(differing) == 1 and is_pair(*differing[0]):
                return folder
    return None


def require_names(classes: Sequence[str], source: Path) -> None:
    """Check that a list of classes can be one.

    Raises:
        DataError: A class is named twice, or has an empty name.
    """
    for name, count in Counter(classes).items():
        if count > 1:
            raise DataError(f'{source} names the class {name!r} twice; give every class a name of its own')
        if not name.strip():
            raise DataError(f'{source} has a class without a name; name it')
