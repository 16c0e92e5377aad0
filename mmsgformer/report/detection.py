"""Results of a detector, with masks or without: COCO's metrics, and what was found, invented and missed."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import supervision as sv
from mmengine.structures import BaseDataElement
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmsgformer.report.results import Confusion, Picture, Summary, Table

KINDS = {'bbox': 'box', 'segm': 'mask'}
PLURALS = {'bbox': 'boxes', 'segm': 'masks'}
AREAS = ('all', 'small', 'medium', 'large')  # COCOeval's, in its order
WIDTH = (480, 800)  # of a picture in pixels, so that labels can be read
MAX_LABELS = 12
# Of Okabe and Ito: told apart by colour-blind readers too. RGB.
COLORS = {'right': '#56B4E9', 'false': '#D55E00', 'missed': '#F0E442'}


class Match(NamedTuple):
    """What became of the predictions and objects of one image; entries of COCO's format."""

    right: list[dict]
    false: list[dict]
    missed: list[dict]


class DetectionResults:
    """`Results` of a detector.

    Args:
        classes: Their names.
        truth: The annotations, in COCO's format.
        max_dets: As of `CocoMetric.proposal_nums`: the last one is how many predictions of an image count.
    """

    def __init__(
        self, classes: Sequence[str], truth: COCO, max_dets: Sequence[int] = (100, 300, 1000)
    ) -> None:
        self.classes = tuple(classes)
        self.truth = truth
        self.max_dets = list(max_dets)
        self.categories = truth.getCatIds(catNms=self.classes)
        self.images: list[int] = []
        self.predictions: list[dict] = []
        self.has_masks = False
        self.threshold = 0.0
        self.matches: list[Match] = []

    def add(self, sample: BaseDataElement) -> None:
        """Take a sample's boxes and masks, as COCO's results."""
        found = sample.pred_instances.numpy()
        self.images.append(sample.img_id)
        masks = found.get('masks')
        self.has_masks |= masks is not None
        for i, (label, score, box) in enumerate(zip(found.labels, found.scores, found.bboxes, strict=True)):
            left, top, right, bottom = box.tolist()
            entry = {
                'image_id': sample.img_id,
                'category_id': self.categories[label],
                'bbox': [left, top, right - left, bottom - top],
                'score': float(score),
            }
            if masks is not None:
                entry['segmentation'] = coco_mask.encode(np.asfortranarray(masks[i], np.uint8))
            self.predictions.append(entry)

    def summary(self) -> Summary:
        """COCO's metrics by class and size; what is right, false and missed at the score of the best F1."""
        kinds = ['bbox', 'segm'] if self.has_masks else ['bbox']
        judged = {kind: self._judge(kind) for kind in kinds}
        self.threshold = _best_threshold(judged['bbox'])
        self.matches = [self._match(judged['bbox'], image) for image in self.images]
        overall, headline, notes = [], [], []
        for kind, judge in judged.items():
            name, at_100 = KINDS[kind], _mean(judge, limit=100)
            values = [_mean(judge), _mean(judge, iou=0.5), _mean(judge, iou=0.75)]
            overall.append((name, *values, *(_mean(judge, area=area) for area in AREAS[1:])))
            headline += [(f'{name} AP', values[0]), (f'{name} AP50', values[1])]
            if abs(at_100 - values[0]) > 1e-3:
                notes.append(
                    f'{name} AP with 100 predictions an image at most, as training logs it: {at_100:.1%}'
                )
        columns = ('', 'AP', 'AP50', 'AP75', *AREAS[1:])
        sizes = 'Small: below 32 x 32 pixels, large: above 96 x 96.'
        return Summary(
            headline,
            [
                Table('Overall', columns, overall, sizes),
                *(self._per_class(kind, judge) for kind, judge in judged.items()),
            ],
            self._confusion(),
            np.array([_order(match) for match in self.matches]),
            f'Shown are predictions with a score of at least {self.threshold:.2f}, where F1 is best. Right '
            'is a box that meets an object of its class with an IoU of 0.5 or more.',
            list(zip(('right', 'false positive', 'missed'), COLORS.values(), strict=True)),
            notes,
        )

    def _judge(self, kind: str) -> COCOeval:
        """COCO's evaluation of the boxes or masks, as mmdet's CocoMetric sets it up."""
        results = [dict(entry) for entry in self.predictions]  # pycocotools adds to them
        if kind == 'segm':
            for entry in results:  # or the size of an object is that of its box
                del entry['bbox']
        with contextlib.redirect_stdout(None):  # pycocotools reports its progress there
            if results:
                found = self.truth.loadRes(results)
            else:
                found = COCO()
                found.dataset = {**self.truth.dataset, 'annotations': []}
                found.createIndex()
            judge = COCOeval(self.truth, found, kind)
            judge.params.catIds, judge.params.imgIds = self.categories, self.truth.getImgIds()
            judge.params.maxDets = self.max_dets
            judge.evaluate()
            judge.accumulate()
        return judge

    def _per_class(self, kind: str, judge: COCOeval) -> Table:
        """A row for every class."""
        rows = []
        for name, category in zip(self.classes, self.categories, strict=True):
            values = [_mean(judge, iou, category=category) for iou in (None, 0.5, 0.75)]
            values += [_mean(judge, area=area, category=category) for area in AREAS[1:]]
            objects = sum(not entry['iscrowd'] for entry in self._objects(category))
            rows.append((name, *values, objects))
        columns = ('class', 'AP', 'AP50', 'AP75', *AREAS[1:], 'objects')
        return Table(f'Per class, {PLURALS[kind]}', columns, rows)

    def _objects(self, category: int) -> list[dict]:
        return self.truth.loadAnns(self.truth.getAnnIds(catIds=[category]))

    def _match(self, judge: COCOeval, image: int) -> Match:
        """COCO's matches of an image at an IoU of 0.5, of predictions with the score that is shown."""
        match = Match([], [], [])
        for entry in _entries(judge, [judge.params.imgIds.index(image)]):
            shown = np.array(entry['dtScores']) >= self.threshold
            counted = shown & ~entry['dtIgnore'][0].astype(bool)
            taken = entry['dtMatches'][0] > 0
            ids = np.array(entry['dtIds'], int)
            found = set(ids[shown & taken].tolist())
            match.right.extend(judge.cocoDt.loadAnns(ids[counted & taken].tolist()))
            match.false.extend(judge.cocoDt.loadAnns(ids[counted & ~taken].tolist()))
            objects = zip(entry['gtIds'], entry['gtMatches'][0], entry['gtIgnore'], strict=True)
            missed = [id_ for id_, by, ignored in objects if not ignored and by not in found]
            match.missed.extend(judge.cocoGt.loadAnns(missed))
        return match

    def _confusion(self) -> Confusion:
        """supervision's, of what is shown."""
        predictions, targets = [], []
        for image, match in zip(self.images, self.matches, strict=True):
            predictions.append(self._detections([*match.right, *match.false]))
            objects = self.truth.loadAnns(self.truth.getAnnIds([image], self.categories, iscrowd=False))
            targets.append(self._detections(objects))
        matrix = sv.ConfusionMatrix.from_detections(
            predictions, targets, list(self.classes), conf_threshold=0.0, iou_threshold=0.5
        ).matrix
        return Confusion(
            matrix,
            (*self.classes, 'nothing there'),
            (*self.classes, 'missed'),
            'objects',
            f'Predictions with a score of at least {self.threshold:.2f}; boxes meet with an IoU above 0.5.',
        )

    def _detections(self, entries: Sequence[dict], scale: float = 1.0) -> sv.Detections:
        """Entries of COCO's format as supervision has them."""
        boxes = np.array([entry['bbox'] for entry in entries], np.float64).reshape(-1, 4) * scale
        boxes[:, 2:] += boxes[:, :2]
        return sv.Detections(
            xyxy=boxes,
            confidence=np.array([entry.get('score', 1.0) for entry in entries]),
            class_id=np.array([self.categories.index(entry['category_id']) for entry in entries], int),
        )

    def describe(self, index: int) -> str:
        """How many objects are right, false and missed."""
        right, false, missed = map(len, self.matches[index])
        return f'{right} right, {false} false positive{"s" * (false != 1)}, {missed} missed'

    def is_error(self, index: int) -> bool:
        """Whether anything is false or missed."""
        return bool(self.matches[index].false or self.matches[index].missed)

    def draw(self, index: int, image: np.ndarray, predict: Callable[[], BaseDataElement]) -> list[Picture]:
        """Right, false and missed boxes; and the masks that are shown."""
        match = self.matches[index]
        scale = np.clip(image.shape[1], *WIDTH) / image.shape[1]
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        plain = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), cv2.COLOR_RGB2BGR)
        marked = plain.copy()
        line = 2 if sum(map(len, match)) <= 5 * MAX_LABELS else 1
        for name, entries in match._asdict().items():
            color, boxes = sv.Color.from_hex(COLORS[name]), self._detections(entries, scale)
            if name != 'right':  # these have a black edge, to be seen on any ground
                marked = sv.BoxAnnotator(sv.Color.BLACK, thickness=line + 2).annotate(marked, boxes)
            marked = sv.BoxAnnotator(color, thickness=line).annotate(marked, boxes)
        if len(match.false) + len(match.missed) <= MAX_LABELS:
            for name in ('false', 'missed'):
                entries = getattr(match, name)
                style = dict(text_scale=0.45, text_padding=3, text_color=sv.Color.BLACK, smart_position=True)
                marker = sv.LabelAnnotator(sv.Color.from_hex(COLORS[name]), **style)
                marked = marker.annotate(
                    marked, self._detections(entries, scale), [self._label(entry) for entry in entries]
                )
        pictures = [Picture('right, false and missed boxes', cv2.cvtColor(marked, cv2.COLOR_BGR2RGB))]
        if self.has_masks:
            pictures.append(Picture('predicted masks', self._draw_masks(match, image, size)))
        return pictures

    def _label(self, entry: dict) -> str:
        """The class of a prediction with its score, or of a missed object."""
        name = self.classes[self.categories.index(entry['category_id'])]
        return f'{name} {entry["score"]:.2f}' if 'score' in entry else f'{name} missed'

    def _draw_masks(self, match: Match, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The masks of right and false predictions over the image, in the colours of the boxes."""
        grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC)
        painted = grey.copy()
        for name in ('right', 'false'):
            for entry in getattr(match, name):
                mask = cv2.resize(
                    coco_mask.decode(entry['segmentation']), size, interpolation=cv2.INTER_LINEAR
                )
                painted[mask > 0] = sv.Color.from_hex(COLORS[name]).as_rgb()
                edge, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(painted, edge, -1, (255, 255, 255), 1)
        return cv2.addWeighted(grey, 0.5, painted, 0.5, 0)


def _mean(
    judge: COCOeval,
    iou: float | None = None,
    area: str = 'all',
    category: int | None = None,
    limit: int | None = None,
) -> float:
    """Average precision, of one IoU, size or category or over all; not-a-number without objects."""
    params = judge.params
    ious = slice(None) if iou is None else int(np.argmin(abs(params.iouThrs - iou)))
    categories = slice(None) if category is None else params.catIds.index(category)
    limits = params.maxDets.index(limit) if limit in params.maxDets else -1
    precision = judge.eval['precision'][ious, :, categories, AREAS.index(area), limits]
    precision = precision[precision > -1]
    return float(precision.mean()) if precision.size else float('nan')


def _entries(judge: COCOeval, images: Iterable[int]) -> Iterator[dict]:
    """COCOeval's matches of objects of any size, of every category in the images at these places."""
    step = len(judge.params.areaRng) * len(judge.params.imgIds)
    for start in range(0, len(judge.evalImgs), step):  # a category's; the first of its sizes is "all"
        for image in images:
            if judge.evalImgs[start + image] is not None:
                yield judge.evalImgs[start + image]


def _best_threshold(judge: COCOeval) -> float:
    """The score, cut to two digits, above which predictions have the best F1 at an IoU of 0.5."""
    scores, right, objects = [], [], 0
    for entry in _entries(judge, range(len(judge.params.imgIds))):
        counted = ~entry['dtIgnore'][0].astype(bool)
        scores += np.array(entry['dtScores'])[counted].tolist()
        right += (entry['dtMatches'][0][counted] > 0).tolist()
        objects += int(np.sum(np.array(entry['gtIgnore']) == 0))
    if not any(right):
        return 0.5
    order = np.argsort(-np.array(scores), kind='stable')
    found = np.cumsum(np.array(right)[order])
    f1 = 2 * found / (np.arange(1, len(found) + 1) + objects)
    return float(np.floor(100 * np.array(scores)[order][f1.argmax()]) / 100)


def _order(match: Match) -> float:
    """F1 of an image; of equal ones, that with more objects is better, that with more mistakes worse."""
    right, wrong = len(match.right), len(match.false) + len(match.missed)
    f1 = 2 * right / (2 * right + wrong) if right + wrong else 1.0
    return f1 + 1e-6 * (right - wrong)
