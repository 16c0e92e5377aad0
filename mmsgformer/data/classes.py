"""One notion of the classes: names, order and number agree in a config, its data and a checkpoint.

Only lists are read, no image, so that every run can afford it.
"""

import codecs
import json
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope

from mmsgformer.data.errors import DataError, Problem

SPLITS = ('train', 'val', 'test')


def check_classes(cfg: Config, checkpoint: Sequence[str] | None = None) -> list[Problem]:
    """Every place where the classes of a config, its data and a checkpoint do not agree.

    Compared are the data sets of all splits with their annotation files or folders, the files that the
    evaluators read, every head and loss, the palettes, and the checkpoint. Files that do not exist are passed
    over: a run checks those that it needs.

    Args:
        cfg: A config of mmdet, mmseg or mmpretrain.
        checkpoint: The classes that a checkpoint was trained on, None to leave it out.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    problems: list[Problem] = []
    named: dict[str, tuple[str, ...]] = {}
    seen: list[ConfigDict] = []
    for split in SPLITS:
        if not cfg.get(f'{split}_dataloader'):
            continue
        annotations = []
        for option, config in plain_datasets(
            cfg[f'{split}_dataloader'].dataset, f'{split}_dataloader.dataset'
        ):
            try:
                dataset = build_unread(config)
            except Exception as error:  # a framework's own checks, of many kinds
                problems.append(Problem(option, f'{error}; set the data set right in the config'))
                continue
            if dataset is None:
                continue
            classes, found = _classes_of(dataset, config, option)
            if classes:
                named[option] = classes
                found += _check_palette(dataset, len(classes), option)
            if config not in seen:  # test data are often those of the validation
                problems += found
                seen.append(config)
            if hasattr(dataset, 'COCOAPI'):  # mmdet's mark of COCO's format
                annotations.append(dataset.ann_file)
        for option, metric in _metrics(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
            if metric.get('ann_file') and annotations:
                problems += _check_evaluator(metric.ann_file, annotations, option)
    if not named:
        return problems
    first, classes = next(iter(named.items()))
    others = {**named, 'the checkpoint': tuple(checkpoint)} if checkpoint else named
    for option, names in others.items():
        difference = same_classes(names, classes)
        if difference:
            text = f'{difference} than {first}; give both the same classes in the same order'
            problems.append(Problem(option, text))
    return problems + _check_outputs(cfg.model, len(classes), first, cfg.get('default_scope'))


def require_agreement(cfg: Config, checkpoint: Sequence[str] | None = None) -> None:
    """`check_classes` for a run that should not start where anything disagrees.

    Raises:
        DataError: Names every place, a line each.
    """
    problems = check_classes(cfg, checkpoint)
    if problems:
        lines = [f'{problem.file} {problem.text}' for problem in problems]
        raise DataError('the classes do not agree:\n' + '\n'.join(lines))


def same_classes(names: Sequence[str] | None, expected: Sequence[str] | None) -> str | None:
    """In what two lists of classes differ, None if they do not or one of them is not known."""
    if not names or not expected or tuple(names) == tuple(expected):
        return None
    return _difference(tuple(names), tuple(expected))


def plain_datasets(dataset: ConfigDict, option: str) -> Iterator[tuple[str, ConfigDict]]:
    """(option, config) of the data sets in wrappers that repeat or join them."""
    if 'dataset' in dataset:
        yield from plain_datasets(dataset.dataset, f'{option}.dataset')
    for i, inner in enumerate(dataset.get('datasets', [])):
        yield from plain_datasets(inner, f'{option}.datasets.{i}')
    if 'dataset' not in dataset and 'datasets' not in dataset:
        yield option, dataset


def build_unread(config: ConfigDict) -> BaseDataset | None:
    """A data set that has read nothing and has no transforms; None if its type is none of MMEngine's."""
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = config.type if isinstance(config.type, type) else registry.get(config.type)
    if kind is None or not issubclass(kind, BaseDataset):
        return None
    return DATASETS.build({**config, 'pipeline': [], 'lazy_init': True})


def _classes_of(dataset: Any, config: ConfigDict, option: str) -> tuple[tuple[str, ...], list[Problem]]:
    """The classes that a data set has, and what is wrong with them and with the files that they are in."""
    classes = dataset.metainfo.get('classes')
    key = f'{option}.{"classes" if config.get("classes") else "metainfo.classes"}'
    if isinstance(classes, str):
        text = f'is the text {classes!r}, not a list of names: write ({classes!r},), with a comma'
        return (), [Problem(key, text)]
    problems = []
    if classes:
        # A framework's own lists are as they are: ImageNet has two kinds of crane.
        own = 'classes' in config or 'classes' in (config.get('metainfo') or {})
        twice = [name for name, count in Counter(classes).items() if count > 1 and own]
        no_text = [name for name in classes if not isinstance(name, str)]
        if twice:
            problems.append(Problem(key, f'names {_quoted(twice)} twice; name every class once'))
        if no_text:
            problems.append(Problem(key, f'has {_quoted(no_text)}, which are no texts; write names'))
    if hasattr(dataset, 'COCOAPI') and Path(dataset.ann_file).is_file():
        problems += _check_categories(dataset.ann_file, tuple(classes or ()), key)
    elif _are_folders(dataset):
        folders = sorted(entry.name for entry in os.scandir(dataset.img_prefix) if entry.is_dir())
        problems += _check_folders(dataset.img_prefix, folders, classes, key)
        classes = classes or folders
    return tuple(classes or ()), problems


def _are_folders(dataset: Any) -> bool:
    """Whether a data set of mmpretrain takes its classes from folders."""
    by_folder = hasattr(dataset, 'with_label') and dataset.with_label and not dataset.ann_file
    return by_folder and os.path.isdir(dataset.img_prefix)


def read_categories(path: str) -> tuple[str, ...] | str:
    """The names of the categories in a file of COCO's format, in its order, or what is wrong with it.

    Where it can be, only this list is parsed: all of COCO's own file takes 3 GB and 20 seconds.
    """
    with open(path, 'rb') as file:
        if file.read(3) == codecs.BOM_UTF8:
            return 'begins with a BOM, which training cannot read; write it anew without'
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                content = _list_alone(data, b'"categories"') or json.loads(data[:])
            return tuple(str(entry['name']) for entry in content['categories'])
        except ValueError as error:
            return f'is not JSON ({error}); get or write it anew'
        except (KeyError, TypeError) as error:
            return f'has no list of categories with names ({error!r}); add it'


def _list_alone(data: mmap.mmap, key: bytes) -> dict | None:
    """The one entry with this key of a JSON object, its value a list; None if that takes a parser to find."""
    start = data.find(key)
    if start < 0 or data.find(key, start + 1) >= 0:
        return None
    end = data.find(b']', start) + 1
    while end and data[start:end].count(b'[') > data[start:end].count(b']'):
        end = data.find(b']', end) + 1
    try:
        return json.loads(b'{%s}' % data[start:end])
    except ValueError:  # a bracket within a name, or no list
        return None


def read_images(path: str) -> dict[object, int]:
    """By the id of each image that a file of COCO's format lists, a hash of its name and its objects."""
    content = json.loads(Path(path).read_bytes())
    images = {entry['id']: hash(entry['file_name']) for entry in content['images']}
    for entry in content.get('annotations', []):
        if entry['image_id'] in images:
            images[entry['image_id']] += hash((entry['category_id'], *entry['bbox']))
    return images


def _check_categories(path: str, classes: tuple[str, ...], key: str) -> list[Problem]:
    """Labels follow the order of the categories in the file, names that of the config: they must be one."""
    categories = read_categories(path)
    if isinstance(categories, str):
        return [Problem(path, categories)]
    twice = [name for name, count in Counter(categories).items() if count > 1]
    if twice:
        return [
            Problem(path, f'has categories {_quoted(twice)} twice; give every category a name of its own')
        ]
    absent = [name for name in classes if name not in categories]
    if absent:
        text = (
            f'has no category {_quoted(absent)} of the {len(classes)} classes in {key}, but '
            f'{_quoted(categories)}; set metainfo.classes of the data sets and num_classes of the heads to '
            'those'
        )
        return [Problem(path, text)]
    in_file = tuple(name for name in categories if name in classes)
    if in_file != classes:
        text = (
            f'names the classes in the order {_quoted(classes)}, but {path} lists {_quoted(in_file)}, and '
            'labels follow the file: set metainfo.classes of every data set to the order of the file'
        )
        return [Problem(key, text)]
    return []


def _check_folders(root: str, folders: list[str], classes: Sequence[str] | None, key: str) -> list[Problem]:
    """Folders are classes in the order of their names."""
    strange = [name for name in folders if name.startswith(('.', '__'))]
    if strange:
        return [Problem(os.path.join(root, strange[0]), 'is a folder that is taken for a class; remove it')]
    if not classes:
        return []
    if len(folders) != len(classes):
        text = f'has {len(folders)} folders, {_quoted(folders)}, but {key} names {len(classes)} classes'
        return [Problem(root, f'{text}, {_quoted(classes)}; make them as many')]
    # Where no folder is called as a class is, as in ImageNet, the order cannot be judged.
    if set(folders) & set(classes) and list(folders) != list(classes):
        text = (
            f'names {_quoted(classes)}, but the folders of {root} are, in the order of their labels, '
            f'{_quoted(folders)}: name the classes in that order'
        )
        return [Problem(key, text)]
    return []


def _check_palette(dataset: Any, num_classes: int, option: str) -> list[Problem]:
    palette = dataset.metainfo.get('palette')
    if isinstance(palette, (list, tuple)) and palette and len(palette) < num_classes:
        text = f'has {len(palette)} colours for {num_classes} classes; give every class one'
        return [Problem(f'{option}.metainfo.palette', text)]
    return []


def _metrics(evaluator: Any, option: str) -> Iterator[tuple[str, ConfigDict]]:
    if isinstance(evaluator, (list, tuple)):
        for i, inner in enumerate(evaluator):
            yield from _metrics(inner, f'{option}.{i}')
    elif evaluator:
        yield option, evaluator


def _check_evaluator(path: str, annotations: list[str], option: str) -> list[Problem]:
    """The evaluator's file lists the images, objects and categories of the data set's."""
    if not os.path.isfile(path) or any(not os.path.isfile(other) for other in annotations):
        return []
    if any(os.path.samefile(path, other) for other in annotations):
        return []
    try:
        theirs = read_images(path)
        same = all(
            read_categories(path) == read_categories(other) and read_images(other).items() <= theirs.items()
            for other in annotations
        )
    except (ValueError, KeyError, TypeError) as error:
        return [Problem(f'{option}.ann_file', f'is {path}, which is no sound annotation file ({error!r})')]
    if same:
        return []
    text = f'is {path}, which does not list what {annotations[0]} does; give it the same file'
    return [Problem(f'{option}.ann_file', text)]


def _check_outputs(model: ConfigDict, num_classes: int, source: str, scope: str | None) -> list[Problem]:
    """Every head and loss is made for as many classes as the data have."""
    problems = []
    for option, outputs in outputs_of(model, 'model'):
        if outputs != num_classes:
            text = f'is {outputs}, but {source} has {num_classes} classes; set it to {num_classes}'
            problems.append(Problem(option, text))
        elif scope == 'mmseg' and outputs == 1:
            text = (
                'is 1: the softmax of one output is 1 everywhere, and nothing is learned. Use two classes, '
                'the background and yours'
            )
            problems.append(Problem(option, text))
    for option, weights in entries(model, 'model', 'class_weight'):
        # Some heads have one output more, for no object.
        if isinstance(weights, (list, tuple)) and len(weights) not in (num_classes, num_classes + 1):
            text = f'has {len(weights)} weights, but {source} has {num_classes} classes; give each a weight'
            problems.append(Problem(option, text))
    return problems


def outputs_of(model: ConfigDict, option: str) -> Iterator[tuple[str, int]]:
    """(option, number) of every part of a model that is made for a number of classes."""
    for path, value in entries(model, option, 'num_classes'):
        # A region proposal network tells objects from the background, whatever their class.
        if isinstance(value, int) and '.rpn_head.' not in path:
            yield path, value
    for path, things in entries(model, option, 'num_things_classes'):
        parent = path.rpartition('.')[0]
        stuff = dict(entries(model, option, 'num_stuff_classes')).get(f'{parent}.num_stuff_classes', 0)
        yield f'{path} + num_stuff_classes', things + stuff


def entries(node: Any, option: str, key: str) -> Iterator[tuple[str, Any]]:
    """(option, value) of every entry with this key, at any depth."""
    if isinstance(node, dict):
        for name, child in node.items():
            if name == key:
                yield f'{option}.{name}', child
            else:
                yield from entries(child, f'{option}.{name}', key)
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from entries(child, f'{option}.{i}', key)


def _difference(names: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """In what two lists of names differ, in a few words."""
    if len(names) != len(expected):
        return f'has {len(names)} classes ({_quoted(names)}), others ({len(expected)}: {_quoted(expected)})'
    place = next(i for i, pair in enumerate(zip(names, expected, strict=True)) if pair[0] != pair[1])
    return f'has {names[place]!r} as class {place}, another ({expected[place]!r})'


def _quoted(names: Sequence[object]) -> str:
    """The first few names."""
    return ', '.join(repr(name) for name in list(names)[:8]) + (', ...' if len(names) > 8 else '')
