"""Where a config's data lies: move it elsewhere, and check that it is there before anything is built."""

from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config


def set_data_root(cfg: Config, data_root: str) -> None:
    """Point every path of the config that lies under its `data_root` to another folder, in place.

    Raises:
        ValueError: The config has no `data_root`.
    """
    if 'data_root' not in cfg:
        raise ValueError(f"{cfg.filename} has no `data_root`; set its data sets' paths with --cfg-options")
    old, new = cfg.data_root, data_root.rstrip('/') + '/'

    def replace(node: dict | list) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, str) and value.startswith(old):
                node[key] = new + value[len(old) :].lstrip('/')
            elif isinstance(value, (dict, list)):
                replace(value)

    for name in list(cfg):
        if isinstance(cfg[name], (dict, list)):
            replace(cfg[name])
    cfg.data_root = new


def check_dataset_paths(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the annotation files and image folders of these splits exist.

    Args:
        cfg: A config with `{split}_dataloader` and perhaps `{split}_evaluator`.
        splits: Of 'train', 'val', 'test'. A split that the config does not have is passed over.

    Raises:
        FileNotFoundError: Names the first path that does not exist and the options that set it.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        paths = list(_dataset_paths(loader['dataset'], f'{split}_dataloader.dataset')) if loader else []
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if evaluator.get('ann_file'):
                paths.append((f'{split}_evaluator.ann_file', evaluator['ann_file']))
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
    root = Path(dataset.get('data_root') or '')
    if dataset.get('ann_file'):
        yield f'{option}.ann_file', str(root / dataset['ann_file'])
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        yield f'{option}.data_prefix', str(root / prefixes)
    else:
        for key, prefix in prefixes.items():
            yield f'{option}.data_prefix.{key}', str(root / prefix)
