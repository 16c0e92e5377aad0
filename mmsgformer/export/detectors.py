"""RetinaNet, Faster and Mask R-CNN as modules with tensors in and out: mmdet's `predict` for one image.

The networks' layers are mmdet's own objects. What stands around them there branches on numbers of boxes and
changes tensors in place; here it is written so that one graph holds for any number.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from mmsgformer.export.errors import ExportError
from mmsgformer.padding import continued
from mmsgformer.sgformer import STRIDES

# Of mmdet's delta2bbox: a box grows or shrinks by this factor at most.
_LARGEST_GROWTH = abs(math.log(16 / 1000))


def check_detector(model: nn.Module) -> None:
    """Raise an ExportError if a detector has parts that are written here in another way."""
    two_stage = hasattr(model, 'roi_head')
    heads = (
        {'rpn_head': 'RPNHead', 'roi_head': 'StandardRoIHead'} if two_stage else {'bbox_head': 'RetinaHead'}
    )
    parts = [getattr(model, name) for name in heads]
    for part, expected in zip(parts, heads.values(), strict=True):
        if type(part).__name__ != expected:
            raise ExportError(f'{type(part).__name__} cannot be exported; of such heads {expected} can')
    if two_stage:
        roi_head = model.roi_head
        extractors = [
            roi_head.bbox_roi_extractor,
            *([roi_head.mask_roi_extractor] if roi_head.with_mask else []),
        ]
        for extractor in extractors:
            if (
                type(extractor).__name__ != 'SingleRoIExtractor'
                or type(extractor.roi_layers[0]).__name__ != 'RoIAlign'
            ):
                raise ExportError(
                    f'{type(extractor).__name__} cannot be exported; SingleRoIExtractor with RoIAlign can'
                )
        parts = [model.rpn_head, roi_head.bbox_head]
    for part in parts:
        if type(part.bbox_coder).__name__ != 'DeltaXYWHBBoxCoder' or part.bbox_coder.add_ctr_clamp:
            raise ExportError(f'{type(part.bbox_coder).__name__} cannot be exported; DeltaXYWHBBoxCoder can')
    settings = [model.test_cfg.rpn, model.test_cfg.rcnn] if two_stage else [model.test_cfg]
    for cfg in settings:
        if cfg.nms.get('type', 'nms') != 'nms' or cfg.nms.get('class_agnostic'):
            raise ExportError(f'non-maximum suppression {dict(cfg.nms)} cannot be exported; plain nms can')


def decode_boxes(coder: nn.Module, anchors: Tensor, deltas: Tensor, border: Tensor) -> Tensor:
    """What `DeltaXYWHBBoxCoder.decode` gives: boxes (..., 4) of anchors and deltas, within the image.

    Args:
        border: Width, height, width and height of the image.
    """
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    size = anchors[..., 2:] - anchors[..., :2]
    center = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-_LARGEST_GROWTH, _LARGEST_GROWTH).exp() * 0.5
    boxes = torch.cat([center - half, center + half], dim=-1)
    return torch.minimum(boxes.clamp(min=0), border) if coder.clip_border else boxes


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, most: int, border: Tensor
) -> Tensor:
    """The indices of the boxes that no better one of the same group covers, best first.

    As mmcv's `batched_nms`: the groups are moved apart.
    """
    apart = boxes + groups.to(boxes.dtype)[:, None] * (border.max() + 1)
    kept = torchvision.ops.nms(apart, scores, threshold)
    return kept[best(scores[kept], most)[1]]


def best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest scores and their indices; all of them if there are not so many."""
    return scores.topk(torch.sym_min(most, scores.shape[0]))


class Detector(nn.Module):
    """What the detectors share: one image in, boxes in the pixels of the image before it was resized.

    `forward(images (1, H, W, 3) uint8 RGB, size (2,))`, where size is the height and width that boxes are
    for, returns the outputs that `outputs` names.
    """

    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module, preprocess: nn.Module) -> None:
        super().__init__()
        check_detector(model)
        self.model, self.preprocess = model, preprocess

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        height, width = images.shape[1:3]
        shape = torch.stack([torch.scalar_tensor(width), torch.scalar_tensor(height)])
        border = shape.repeat(2)
        boxes, *others = self.detect(self.features(images), border)
        return boxes / (shape / size.flip(0)).repeat(2), *others

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The neck's maps of the padded image."""
        normalized = self.preprocess.normalize(images)
        padded = self.preprocess.pad(normalized)
        backbone = self.model.backbone
        if not getattr(backbone, 'ignore_padding', False):
            maps = backbone(padded)
        else:
            maps = [
                continued(
                    m, (padded.shape[2] + stride - 1) // stride, (padded.shape[3] + stride - 1) // stride
                )
                for m, stride in zip(
                    backbone(normalized), (STRIDES[i] for i in backbone.out_indices), strict=True
                )
            ]
        return self.model.neck(maps)

    def detect(self, maps: tuple[Tensor, ...], border: Tensor) -> tuple[Tensor, ...]:
        """The outputs for the input's pixels."""
        raise NotImplementedError


class RetinaNet(Detector):
    """A detector of one stage."""

    def detect(self, maps: tuple[Tensor, ...], border: Tensor) -> tuple[Tensor, ...]:
        """Boxes (N, 4), scores (N,) and labels (N,), best first."""
        head, cfg = self.model.bbox_head, self.model.test_cfg
        found = []
        for logits, deltas, anchors in _levels(head, maps):
            scores, index = best(_probabilities(head, logits).flatten(), cfg.nms_pre)
            place, labels = index // head.num_classes, index % head.num_classes
            found.append(
                (scores, labels, decode_boxes(head.bbox_coder, anchors[place], deltas[place], border))
            )
        scores, labels, boxes = (torch.cat(parts) for parts in zip(*found, strict=True))
        sides = boxes[:, 2:] - boxes[:, :2]
        wanted = (scores > cfg.score_thr) & (sides > cfg.get('min_bbox_size', -1)).all(dim=1)
        wanted = wanted.nonzero()[:, 0]
        scores, labels, boxes = scores[wanted], labels[wanted], boxes[wanted]
        kept = suppress(boxes, scores, labels, cfg.nms.iou_threshold, cfg.max_per_img, border)
        return boxes[kept], scores[kept], labels[kept]


class RCNN(Detector):
    """Faster or Mask R-CNN.

    A mask is (h, w) probabilities over its box, which `mmsgformer_runtime.masks` pastes into the image.
    """

    def __init__(self, model: nn.Module, preprocess: nn.Module) -> None:
        super().__init__(model, preprocess)
        roi_head = model.roi_head
        extractors = [roi_head.bbox_roi_extractor]
        if roi_head.with_mask:
            self.outputs = (*self.outputs, 'masks')
            extractors.append(roi_head.mask_roi_extractor)
        for layer in (layer for extractor in extractors for layer in extractor.roi_layers):
            layer.use_torchvision = True  # the same, by an operator that is exported as ONNX's RoiAlign

    def detect(self, maps: tuple[Tensor, ...], border: Tensor) -> tuple[Tensor, ...]:
        """Boxes (N, 4), scores (N,) and labels (N,), best first, and masks (N, h, w)."""
        roi_head = self.model.roi_head
        proposals = self._proposals(maps, border)
        boxes, scores, labels = self._classify(maps, proposals, border)
        if not roi_head.with_mask:
            return boxes, scores, labels
        features = _roi_features(roi_head.mask_roi_extractor, maps, boxes)
        logits = roi_head.mask_head(features)  # (N, classes or 1, h, w)
        one = torch.zeros_like(labels) if roi_head.mask_head.class_agnostic else labels
        masks = logits[torch.arange(labels.shape[0]), one].sigmoid()
        return boxes, scores, labels, masks

    def _proposals(self, maps: tuple[Tensor, ...], border: Tensor) -> Tensor:
        """Boxes that may hold an object, (R, 4)."""
        head, cfg = self.model.rpn_head, self.model.test_cfg.rpn
        found = []
        for level, (logits, deltas, anchors) in enumerate(_levels(head, maps)):
            scores, place = best(_probabilities(head, logits)[:, 0], cfg.nms_pre)
            boxes = decode_boxes(head.bbox_coder, anchors[place], deltas[place], border)
            found.append((scores, torch.full_like(place, level), boxes))
        scores, levels, boxes = (torch.cat(parts) for parts in zip(*found, strict=True))
        sides = boxes[:, 2:] - boxes[:, :2]
        wanted = (sides > cfg.get('min_bbox_size', -1)).all(dim=1).nonzero()[:, 0]
        scores, levels, boxes = scores[wanted], levels[wanted], boxes[wanted]
        return boxes[suppress(boxes, scores, levels, cfg.nms.iou_threshold, cfg.max_per_img, border)]

    def _classify(self, maps: tuple[Tensor, ...], proposals: Tensor, border: Tensor) -> tuple[Tensor, ...]:
        """Boxes (N, 4), scores (N,) and labels (N,) of the proposals (R, 4)."""
        roi_head, cfg = self.model.roi_head, self.model.test_cfg.rcnn
        head = roi_head.bbox_head
        logits, deltas = head(_roi_features(roi_head.bbox_roi_extractor, maps, proposals))
        scores = logits.softmax(dim=-1)[:, :-1].flatten()  # (R * classes,)
        candidates = (scores > cfg.score_thr).nonzero()[:, 0]
        scores = scores[candidates]
        place, labels = candidates // head.num_classes, candidates % head.num_classes
        regressed = place if head.reg_class_agnostic else candidates
        boxes = decode_boxes(head.bbox_coder, proposals[place], deltas.view(-1, 4)[regressed], border)
        kept = suppress(boxes, scores, labels, cfg.nms.iou_threshold, cfg.max_per_img, border)
        return boxes[kept], scores[kept], labels[kept]


def _levels(head: nn.Module, maps: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each map: logits (A, outputs), deltas (A, 4) and the anchors (A, 4) that they are for."""
    all_logits, all_deltas = head(maps)
    sizes = [logits.shape[2:] for logits in all_logits]
    all_anchors = head.prior_generator.grid_priors(sizes, dtype=maps[0].dtype, device=maps[0].device)
    for logits, deltas, anchors in zip(all_logits, all_deltas, all_anchors, strict=True):
        logits = logits[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels)
        yield logits, deltas[0].permute(1, 2, 0).reshape(-1, 4), anchors


def _probabilities(head: nn.Module, logits: Tensor) -> Tensor:
    """Of the classes, without the background: (A, classes)."""
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(dim=-1)[:, :-1]


def _roi_features(extractor: nn.Module, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """What `SingleRoIExtractor` gives: of each box (R, 4) its part of the map that fits its size."""
    maps = maps[: extractor.num_inputs]
    rois = F.pad(boxes, (1, 0))  # the first column: the image of the batch
    level = extractor.map_roi_levels(rois, len(maps))
    members = [(level == i).nonzero()[:, 0] for i in range(len(maps))]
    parts = [layer(m, rois[of]) for layer, m, of in zip(extractor.roi_layers, maps, members, strict=True)]
    return torch.cat(parts)[torch.cat(members).argsort()]
