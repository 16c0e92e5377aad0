"""What data a run used: which splits, how many images, and how often every class occurs."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from mmsgformer.data import DataError, check_dataset_paths
from mmsgformer.data.classes import SPLITS, plain_datasets

UNITS = {'mmdet': 'objects', 'mmseg': 'share of pixels', 'mmpretrain': 'images'}
_WHERE = ('data_root', 'ann_file', 'data_prefix')


class SplitCounts(NamedTuple):
    """What a split holds."""

    split: str
    folder: str
    images: int | None
    """None where the data are not here any more."""
    by_class: Counter

    def number(self, name: str) -> int | None:
        """How often a class occurs; None where the data are not here."""
        return None if self.images is None else self.by_class[name]

    def total(self) -> int | None:
        """How often all classes occur together."""
        return None if self.images is None else sum(self.by_class.values())

    def share(self, name: str) -> float | None:
        """Of everything that occurs, how much is of a class."""
        return self.by_class[name] / max(self.total(), 1) if self.images is not None else None


def split_to_report(cfg: Config) -> str:
    """'test' if the config has test data of its own with annotations, else 'val'.

    Raises:
        DataError: It has neither.
    """
    val, test = cfg.get('val_dataloader'), cfg.get('test_dataloader')
    evaluators = cfg.get('test_evaluator') or {}
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    hidden = any(evaluator.get('format_only') for evaluator in evaluators)
    if test and not hidden and not (val and _places(val) == _places(test)):
        return 'test'
    if not val:
        raise DataError(
            f'{cfg.filename or "the config"} has no val_dataloader and no annotated test data to report on'
        )
    return 'val'


def _places(loader: ConfigDict) -> list[tuple]:
    """Where the data of a loader lie."""
    return [tuple(map(plain.get, _WHERE)) for _, plain in plain_datasets(loader.dataset, '')]


def count_splits(cfg: Config) -> list[SplitCounts]:
    """Images and objects of every split; where test and validation have the same data, of the one alone."""
    init_default_scope(cfg.default_scope)
    counts, seen = [], []
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if not loader or _places(loader) in seen:
            continue
        seen.append(_places(loader))
        datasets = [plain for _, plain in plain_datasets(loader.dataset, '')]
        folder = ', '.join(dict.fromkeys(_folder(plain) for plain in datasets))
        try:
            check_dataset_paths(cfg, (split,))
        except FileNotFoundError:
            counts.append(SplitCounts(split, folder, None, Counter()))
            continue
        images, by_class = 0, Counter()
        for plain in datasets:
            number, found = _count(plain, cfg.default_scope)
            images += number
            by_class.update(found)
        counts.append(SplitCounts(split, folder, images, by_class))
    return counts


def _folder(plain: ConfigDict) -> str:
    """Where a data set's images are."""
    prefix = plain.get('data_prefix') or ''
    if isinstance(prefix, dict):
        prefix = prefix.get('img') or prefix.get('img_path') or ''
    return str(Path(plain.get('data_root') or '') / prefix)


def _count(config: ConfigDict, scope: str) -> tuple[int, Counter]:
    """The number of images that training or testing takes, and of objects, pixels or images by class."""
    labels = [step for step in config.get('pipeline', []) if str(step.type).endswith('LoadAnnotations')]
    dataset = DATASETS.build({**config, 'pipeline': labels if scope == 'mmseg' else []})
    classes = dataset.metainfo['classes']
    by_class = Counter(dict.fromkeys(classes, 0))
    for i in range(len(dataset)):
        if scope == 'mmseg':
            pixels = np.bincount(dataset[i]['gt_seg_map'].ravel(), minlength=len(classes))
            by_class.update(dict(zip(classes, pixels[: len(classes)].tolist(), strict=True)))
            continue
        info = dataset.get_data_info(i)
        found = [o['bbox_label'] for o in info.get('instances', []) if not o.get('ignore_flag')]
        found = found if scope == 'mmdet' else np.ravel(info['gt_label']).tolist()
        by_class.update(classes[label] for label in found)
    return len(dataset), by_class
