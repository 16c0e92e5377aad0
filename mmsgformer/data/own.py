"""Set a config to somebody's own data: data sets, classes, heads, losses, masks, ignored labels, metrics."""

import colorsys
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmsgformer.data.classes import entries, outputs_of
from mmsgformer.data.errors import DataError
from mmsgformer.data.folders import IGNORED_LABEL, SPLITS, Found, Split

_TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
_FITTING = {
    'detection': 'configs/coco/mask-rcnn_sgformer-s_fpn_1x_coco.py',
    'segmentation': 'configs/ade20k/sgformer-s_upernet_8xb2-160k_ade20k-512x512.py',
    'classification': 'configs/imagenet/sgformer-s_8xb128_in1k.py',
}
# What is evaluated where a split is missing; a run that trains has been given a validation split.
_INSTEAD = {'train': SPLITS, 'val': ('val', 'test'), 'test': ('test', 'val')}
_KEPT = ('pipeline', 'filter_cfg', 'test_mode')  # of a data set: not what and where the data are


def use_data(cfg: Config, found: Found) -> None:
    """Set a config to data that `prepare` has made ready, in place.

    Raises:
        DataError: The config is for another task, or its model for another kind of labels.
    """
    task = _TASKS.get(cfg.get('default_scope'))
    if task != found.task:
        raise DataError(
            f'{found.folder} has data for {found.task} ({found.format}), but {cfg.filename} is for {task}; '
            f'take e.g. {_FITTING[found.task]}'
        )
    with_masks = found.has_masks and _learns_masks(cfg)
    if task == 'detection' and not with_masks:
        _leave_out_masks(cfg, found)
    palette = _palette(len(found.classes))
    for name in SPLITS:
        split = found.splits[next(other for other in _INSTEAD[name] if other in found.splits)]
        if cfg.get(f'{name}_dataloader'):
            _set_data(cfg[f'{name}_dataloader'].dataset, found, split, palette)
        if cfg.get(f'{name}_evaluator'):
            cfg[f'{name}_evaluator'] = _evaluator(cfg[f'{name}_evaluator'], found, split, with_masks)
    _set_outputs(cfg, len(found.classes))
    if task == 'segmentation':
        _set_labels(cfg, found.ignored)
    cfg.data_root = str(found.folder)


def describe(found: Found, cfg: Config) -> str:
    """What was found, in a few lines, and what of the config does not suit it."""
    what = {'detection': 'boxes and masks' if found.has_masks else 'boxes'}.get(found.task)
    lines = [f'{found.folder}: {found.task}{f" ({what})" if what else ""}, {found.format}']
    for name in SPLITS:
        split = found.splits.get(name)
        if split:
            objects = '' if split.num_objects is None else f', {split.num_objects:,} objects'
            lines.append(f'  {name:<6}{len(split.files):,} images{objects}')
        else:
            other = next((other for other in _INSTEAD[name] if other in found.splits), None)
            lines.append(f'  {name:<6}none{f": tests run on {other}" if name == "test" and other else ""}')
    shown = ', '.join(found.classes[:20]) + (', ...' if len(found.classes) > 20 else '')
    lines.append(f'  {len(found.classes)} class{"es" if len(found.classes) > 1 else ""}: {shown}')
    notes = list(found.notes)
    for option, number in entries(cfg.model.get('test_cfg'), 'model.test_cfg', 'max_per_img'):
        if number < found.most_objects:
            text = f'an image has {found.most_objects} objects, but the model finds {number} at most'
            notes.append(f'{text}: raise {option} with --cfg-options')
    return '\n'.join([*lines, *(f'  note: {note}' for note in notes)])


def _steps(node: Any, *types: str) -> Iterator[ConfigDict]:
    """The parts of a config that have one of these types, at any depth."""
    if isinstance(node, dict):
        if str(node.get('type')).rpartition('.')[2] in types:
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _steps(child, *types)


def _learns_masks(cfg: Config) -> bool:
    """Whether the training data are loaded with masks."""
    loaders = [cfg.get('train_dataloader') or cfg.get('test_dataloader')]
    return any(step.get('with_mask') for step in _steps(loaders, 'LoadAnnotations'))


def _leave_out_masks(cfg: Config, found: Found) -> None:
    """Make a detector one of boxes alone."""
    if _learns_masks(cfg) and not (cfg.model.get('roi_head') or {}).get('mask_head'):
        raise DataError(
            f'{found.folder} has boxes without masks, but the model of {cfg.filename} learns from masks; '
            'take one that needs boxes alone, e.g. configs/coco/retinanet_sgformer-s_fpn_1x_coco.py'
        )
    for key in ('mask_head', 'mask_roi_extractor'):
        (cfg.model.get('roi_head') or {}).pop(key, None)
    for step in _steps([value for _, value in cfg.items()], 'LoadAnnotations'):
        step.with_mask = False


def _set_data(dataset: ConfigDict, found: Found, split: Split, palette: list) -> None:
    """Put a split into the data set of a loader, within what repeats or mixes it, in place."""
    if 'dataset' in dataset:
        return _set_data(dataset.dataset, found, split, palette)
    if 'datasets' in dataset:  # joined: one takes the place of all
        dataset.datasets = dataset.datasets[:1]
        return _set_data(dataset.datasets[0], found, split, palette)
    kept = {key: dataset[key] for key in _KEPT if key in dataset}
    folder, listing = str(split.images), str(split.listing)
    own = {
        'detection': dict(type='CocoDataset', ann_file=str(split.annotation), data_prefix=dict(img=folder)),
        'segmentation': dict(
            type='BaseSegDataset',
            ann_file=listing,
            data_prefix=dict(img_path=folder, seg_map_path=str(split.annotation)),
            img_suffix=Path(split.files[0]).suffix,
            seg_map_suffix=split.map_suffix,
            reduce_zero_label=False,
            ignore_index=found.ignored,
        ),
        'classification': dict(type='CustomDataset', ann_file=listing, data_prefix=folder),
    }[found.task]
    dataset.clear()
    metainfo = dict(classes=list(found.classes), palette=palette)
    dataset.update({**own, 'data_root': str(found.folder), 'metainfo': metainfo, **kept})
    return None


def _set_outputs(cfg: Config, num_classes: int) -> None:
    """Give every head and loss as many outputs as there are classes."""
    for option, value in list(entries(cfg.model, 'model', 'num_stuff_classes')):
        if value:
            raise DataError(f'{option} is {value}: {cfg.filename} is for panoptic data; take another config')
    old = {number for _, number in outputs_of(cfg.model, 'model')}
    for option, _ in list(outputs_of(cfg.model, 'model')):
        cfg.merge_from_dict({option.partition(' + ')[0]: num_classes})
    # Beside the model mmpretrain's configs have its preprocessor, and mmdet's the numbers that others repeat.
    for part in (cfg, cfg.get('data_preprocessor') or {}):
        for key in ('num_classes', 'num_things_classes'):
            if part.get(key):
                part[key] = num_classes
    for option, weights in list(entries(cfg.model, 'model', 'class_weight')):
        # Of classes that weigh alike there can be more; others are the user's to say, as a check does later.
        rest = next((list(weights[number:]) for number in old if len(weights) - number in (0, 1)), None)
        if rest is not None and len(set(weights[: len(weights) - len(rest)])) == 1:
            cfg.merge_from_dict({option: [weights[0]] * num_classes + rest})


def _set_labels(cfg: Config, ignored: int) -> None:
    """Take the ids of label maps as they are, and have one ignored by every head and loss, and in padding."""
    everything = [value for _, value in cfg.items()]
    for step in _steps(everything, 'LoadAnnotations'):
        step.reduce_zero_label = False
    if ignored == IGNORED_LABEL:
        return
    for option, _ in list(outputs_of(cfg.model, 'model')):
        if re.fullmatch(r'model\.\w*head(\.\d+)?\.num_classes', option):
            cfg.merge_from_dict({f'{option.rpartition(".")[0]}.ignore_index': ignored})
    for option, _ in list(entries(cfg.model, 'model', 'ignore_index')):
        cfg.merge_from_dict({option: ignored})
    for step in _steps(everything, 'SegDataPreProcessor', 'RandomRotate', 'RandomMosaic'):
        step.seg_pad_val = ignored
    for step in _steps(everything, 'Pad'):
        step.pad_val = dict(img=0, seg=ignored)


def _evaluator(evaluator: Any, found: Found, split: Split, with_masks: bool) -> Any:
    """The metric for a task, with the options that the config's own of that type has."""
    kind = {'detection': 'CocoMetric', 'segmentation': 'IoUMetric', 'classification': 'Accuracy'}[found.task]
    metric = copy.deepcopy(next(_steps(evaluator, kind), ConfigDict(type=kind)))
    if found.task == 'detection':
        for key in ('format_only', 'outfile_prefix'):
            metric.pop(key, None)
        metric.ann_file, metric.metric = str(split.annotation), ['bbox', 'segm'] if with_masks else 'bbox'
    elif found.task == 'segmentation':
        metric.ignore_index = found.ignored
    else:
        ranks = metric.get('topk', (1,))
        ranks = [ranks] if isinstance(ranks, int) else ranks
        metric.topk = tuple(rank for rank in ranks if rank <= len(found.classes)) or (1,)
    return metric


def _palette(count: int) -> list[tuple[int, int, int]]:
    """Colours (RGB, 0-255) as different as possible: hues by the golden angle, in three shades."""
    shades = [(0.85, 0.95), (0.6, 0.75), (0.95, 0.6)]
    colours = [colorsys.hsv_to_rgb(i * 0.618034 % 1, *shades[i % 3]) for i in range(count)]
    return [tuple(round(255 * channel) for channel in colour) for colour in colours]
