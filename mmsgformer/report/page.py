"""A run's report: gather everything, and put it into one file that needs no other."""

import contextlib
from collections.abc import Callable
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from pycocotools.coco import COCO

from mmsgformer.data import DataError
from mmsgformer.report.classification import ClassificationResults
from mmsgformer.report.data import UNITS, count_splits
from mmsgformer.report.detection import DetectionResults
from mmsgformer.report.figures import as_uri, draw_panels
from mmsgformer.report.logs import training_cost
from mmsgformer.report.results import SHOWN_CLASSES, Results, predict_all
from mmsgformer.report.run import Run, describe_training
from mmsgformer.report.segmentation import SegmentationResults
from mmsgformer.visualization.drawing import as_image, draw_map, seen_part
from mmsgformer.visualization.maps import makes_significance
from mmsgformer.visualization.predictions import Predictor

NUM_WORST, NUM_BEST, NUM_MAPS = 6, 4, 3
NUM_CONFUSED = 20
SPLIT_NAMES = {'train': 'training', 'val': 'validation', 'test': 'test'}


class Shown(NamedTuple):
    """A picture on the page."""

    text: str
    uri: str


class Example(NamedTuple):
    """An image on the page."""

    name: str
    text: str
    pictures: list[Shown]


def make_page(run: Run, cfg: Config, split: str, track: Callable = lambda items, count: items) -> str:
    """The report as HTML.

    Args:
        run: What the work dir holds.
        cfg: Its config, the paths of its data checked.
        split: 'val' or 'test', on which the model is judged.
        track: As of `predict_all`.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
        DataError: The classes do not agree, or the data are of a kind that is not reported on.
    """
    predictor = Predictor(cfg, run.checkpoint)
    loader = Runner.build_dataloader(cfg[f'{split}_dataloader'])
    dataset = loader.dataset
    results = make_results(cfg, split, dataset)
    speed = predict_all(predictor.model, loader, results, track)
    summary = results.summary()
    order = [int(i) for i in np.argsort(summary.scores, kind='stable')]
    worst = [i for i in order if results.is_error(i)][:NUM_WORST]
    best = [i for i in order[::-1] if i not in worst and summary.scores[i] > 0][:NUM_BEST]
    examples = {i: _example(results, predictor, dataset, i) for i in worst + best}
    environment = Environment(
        loader=PackageLoader('mmsgformer.report', ''),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['number'] = _number
    return environment.get_template('page.html').render(
        title=f'{run.config.stem} on {SPLIT_NAMES[split]} data',
        made=datetime.now().strftime('%Y-%m-%d %H:%M'),
        split=SPLIT_NAMES[split],
        split_names=SPLIT_NAMES,
        facts=describe_training(run, cfg, sum(p.numel() for p in predictor.model.parameters())),
        counts=count_splits(cfg),
        trained_on=trained_on if (trained_on := _data_root(run.config)) != cfg.get('data_root') else None,
        unit=UNITS[cfg.default_scope],
        classes=results.classes,
        panels=draw_panels(run.curves, run.metrics),
        summary=summary,
        confused=summary.confusion.most_confused(NUM_CONFUSED),
        shown_classes=SHOWN_CLASSES,
        worst=[examples[i] for i in worst],
        best=[examples[i] for i in best],
        maps=_maps(predictor, [_path(dataset, i) for i in _alternate(worst, best)[:NUM_MAPS]]),
        speed=speed,
        cost=training_cost(run.curves),
    )


def _data_root(config: Path) -> str | None:
    """The folder of the data that a run was trained on."""
    return Config.fromfile(config).get('data_root')


def make_results(cfg: Config, split: str, dataset: BaseDataset) -> Results:
    """Empty results for the task of a config.

    Args:
        cfg: The config.
        split: 'val' or 'test'.
        dataset: The split's.

    Raises:
        DataError: The data set is of a kind that is not reported on.
    """
    evaluator = cfg[f'{split}_evaluator']
    evaluator = evaluator[0] if isinstance(evaluator, (list, tuple)) else evaluator
    classes = dataset.metainfo['classes']
    if cfg.default_scope == 'mmpretrain':
        return ClassificationResults(classes)
    if cfg.default_scope == 'mmseg':
        return SegmentationResults(classes, dataset.metainfo['palette'], evaluator.get('ignore_index', 255))
    if not hasattr(dataset, 'COCOAPI'):
        raise DataError(
            f'{split}_dataloader.dataset is a {type(dataset).__name__}: a report needs one data set with '
            "annotations in COCO's format, as CocoDataset reads them"
        )
    with contextlib.redirect_stdout(None):  # pycocotools reports its progress there
        truth = COCO(evaluator.get('ann_file') or dataset.ann_file)
    return DetectionResults(classes, truth, evaluator.get('proposal_nums', (100, 300, 1000)))


def _path(dataset: BaseDataset, index: int) -> str:
    return dataset.get_data_info(index)['img_path']


def _example(results: Results, predictor: Predictor, dataset: BaseDataset, index: int) -> Example:
    """An image with what is right and wrong with it."""
    path = _path(dataset, index)

    def predict() -> BaseDataElement:
        return predictor.model.test_step(pseudo_collate([dataset[index]]))[0].cpu()

    pictures = results.draw(index, predictor.read(path), predict)
    shown = [Shown(text, as_uri(image)) for text, image in pictures]
    return Example(Path(path).name, results.describe(index), shown)


def _alternate(one: list[int], other: list[int]) -> list[int]:
    """The items of two lists in turn."""
    return [item for pair in zip_longest(one, other) for item in pair if item is not None]


def _maps(predictor: Predictor, paths: list[str]) -> list[Example]:
    """Where the model looks: the significance of the last block of each stage that has one."""
    if not makes_significance(getattr(predictor.model, 'backbone', None)):
        return []
    examples = []
    for path in paths:
        seen = seen_part(predictor.read(path), predictor.predict(path))
        last = {m.stage: m for m in predictor.maps(path)}
        pictures = [Shown('image', as_uri(seen))]
        for stage, significance in last.items():
            text = f'stage {stage + 1}, block {significance.block + 1}'
            pictures.append(Shown(text, as_uri(as_image(draw_map(seen, significance)))))
        examples.append(Example(Path(path).name, '', pictures))
    return examples


def _number(value: object) -> str:
    """A share as a percentage, a count with separators, a dash where there is nothing to measure."""
    if isinstance(value, (bool, str)) or value is None:
        return str(value or '')
    if isinstance(value, (int, np.integer)):
        return f'{value:,}'
    return '\N{EN DASH}' if np.isnan(value) else f'{100 * value:.1f}'
