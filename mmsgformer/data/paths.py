"""Where a config's data lies: move it elsewhere, and check that it is there before anything is built."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.config import Config


def expanded(path: str) -> str:
    """A path with `~` and `$VARIABLES` replaced, which a shell leaves as they are in --data-root=~/coco."""
    return os.path.expanduser(os.path.expandvars(path))


def expand_paths(cfg: Config) -> None:
    """`expanded` for every path of the config that begins with `~/` or a variable, in place."""
    _replace_texts(cfg, lambda text: expanded(text) if re.match(r'~(/|$)|\$\w|\$\{', text) else text)


def _replace_texts(cfg: Config, new: Callable[[str], str]) -> None:
    """Replace every text in a config, at any depth, in place."""

    def replaced(node: object) -> object:
        if isinstance(node, dict):
            return {key: replaced(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(replaced(value) for value in node)
        return new(node) if isinstance(node, str) else node

    for name in list(cfg):
        cfg[name] = replaced(cfg[name])


def set_data_root(cfg: Config, data_root: str) -> None:
    """Point every path of the config that lies under its `data_root` to another folder, in place.

    Raises:
        ValueError: The config has no `data_root`.
    """
    if not cfg.get('data_root'):
        raise ValueError(f"{cfg.filename} has no `data_root`; set its data sets' paths with --cfg-options")
    old, new = cfg.data_root.rstrip('/'), data_root.rstrip('/')
    _replace_texts(cfg, lambda text: new + text[len(old) :] if f'{text}/'.startswith(f'{old}/') else text)


def check_dataset_paths(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the annotation files and image folders of these splits exist.

    Paths that are not on the local disk (a URL, a data set with another file backend) are passed over.

    Args:
        cfg: A config with `{split}_dataloader` and perhaps `{split}_evaluator`.
        splits: Of 'train', 'val', 'test'. A split that the config does not have is passed over.

    Raises:
        FileNotFoundError: Names the first path that does not exist and the options that set it.
    """
    for split in splits:
        paths = []
        if cfg.get(f'{split}_dataloader'):
            option = f'{split}_dataloader.dataset'
            paths += _dataset_paths(cfg[f'{split}_dataloader']['dataset'], option)
        if cfg.get(f'{split}_evaluator'):
            paths += _evaluator_paths(cfg[f'{split}_evaluator'], f'{split}_evaluator')
        for option, path in paths:
            if '://' not in path and not Path(path).exists():
                raise FileNotFoundError(
                    f'{path} does not exist ({option}). Give the folder of the data set with --data-root, '
                    f'or this path with --cfg-options {option}=...'
                )


def _dataset_paths(dataset: dict, option: str) -> Iterator[tuple[str, str]]:
    """(option that sets it, path) for every path of a data set, wrapped ones (repeat, concat) included."""
    if 'dataset' in dataset:
        yield from _dataset_paths(dataset['dataset'], f'{option}.dataset')
    for i, inner in enumerate(dataset.get('datasets', [])):
        yield from _dataset_paths(inner, f'{option}.datasets.{i}')
    if (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
        return
    root = dataset.get('data_root') or ''
    if root:
        yield f'{option}.data_root', root
    prefixes = dataset.get('data_prefix') or {}
    prefixes = prefixes if isinstance(prefixes, dict) else {'': prefixes}
    options = {f'{option}.ann_file': dataset.get('ann_file')}
    options |= {f'{option}.data_prefix.{key}'.rstrip('.'): prefix for key, prefix in prefixes.items()}
    for name, value in options.items():
        for path in value if isinstance(value, (list, tuple)) else [value]:
            if path:
                yield name, os.path.join(root, path)


def _evaluator_paths(evaluator: dict | list | tuple, option: str) -> Iterator[tuple[str, str]]:
    """(option that sets it, path) for the annotation file of every metric."""
    if isinstance(evaluator, (list, tuple)):
        for i, inner in enumerate(evaluator):
            yield from _evaluator_paths(inner, f'{option}.{i}')
    elif (
        evaluator.get('ann_file') and (evaluator.get('backend_args') or {}).get('backend', 'local') == 'local'
    ):
        yield f'{option}.ann_file', evaluator['ann_file']
