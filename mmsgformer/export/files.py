"""A trained model, or its backbone alone -> an ONNX file and what it says of itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsgformer.export.errors import ExportError
from mmsgformer.export.graph import export_onnx
from mmsgformer.export.metadata import preparation
from mmsgformer.export.models import exportable, takes_one_image
from mmsgformer.sgformer import MIN_SIZE
from mmsgformer.version import __version__
from mmsgformer_runtime.model import FORMAT, METADATA, OPSET

# Of the image that the graph is recorded with: nothing that divides or equals anything.
_EXAMPLE = (141, 235)


def export_backbone(
    backbone: nn.Module,
    path: str | Path,
    size: tuple[int, int] | None = None,
    small_topk: bool = False,
    int8: bool = False,
) -> None:
    """Write a backbone: normalised images (B, C, H, W) float32 -> its maps, 'map0' and so on.

    Args:
        backbone: The backbone; it is put into evaluation mode. Others than `SGFormer` may need a `size`.
        path: The file to write.
        size: Height and width of the one size that it is for, a batch of one; None: any from `MIN_SIZE` on.
        small_topk: As in `export_onnx`.
        int8: As in `export_onnx`.
    """
    height, width = size or _EXAMPLE
    channels = getattr(backbone, 'in_channels', 3)
    images = torch.zeros(1 if size else 2, channels, height, width)
    axes = [
        ['batch', 1, 1 if size else None],
        ['channels', channels, channels],
        *_sides(size),
    ]
    metadata = {
        'task': 'features',
        'inputs': {'images': {'dtype': 'float32', 'axes': axes}},
        'outputs': [f'map{i}' for i in backbone.out_indices],
        'classes': [],
    }
    _export(_Maps(backbone).eval(), {'images': images}, metadata, path, size, small_topk, int8)


def export_model(
    model: nn.Module,
    dataset_meta: Mapping,
    pipeline: Sequence[Mapping],
    path: str | Path,
    size: tuple[int, int] | None = None,
    small_topk: bool = False,
    int8: bool = False,
) -> None:
    """Write a detector, segmenter or classifier; what it takes and gives is in `models` and `detectors`.

    Args:
        model: A framework's model in evaluation mode; it is changed, and of no use for training after.
        dataset_meta: `classes` and, if there is one, `palette`.
        pipeline: The test pipeline's config.
        path: The file to write.
        size: Height and width of the one size of prepared image that it is for, a batch of one; None: any, of
            `MIN_SIZE` or more.
        small_topk: As in `export_onnx`.
        int8: As in `export_onnx`.

    Raises:
        ExportError: The model or the pipeline has a part that is not known.
    """
    if 'classes' not in dataset_meta:
        raise ExportError(
            "the names of the classes are neither in the checkpoint nor in the config's metainfo"
        )
    module, task = exportable(model)
    one = bool(size) or takes_one_image(module)
    height, width = size or _EXAMPLE
    inputs: dict[str, Tensor] = {'images': torch.zeros(1 if one else 2, height, width, 3, dtype=torch.uint8)}
    axes = [['batch', 1, 1 if one else None], *_sides(size), ['channels', 3, 3]]
    described = {'images': {'dtype': 'uint8', 'axes': axes, 'colors': 'RGB'}}
    if task != 'classification':
        inputs['size'] = torch.tensor([height + 10, width + 20])
        described['size'] = {'dtype': 'int64', 'axes': [['height and width', 2, 2]]}
    metadata = {
        'task': task,
        'inputs': described,
        'outputs': list(module.outputs),
        'steps': preparation(pipeline),
        'classes': list(dataset_meta['classes']),
        'palette': [list(color) for color in dataset_meta.get('palette') or []],
    }
    if 'masks' in module.outputs:
        metadata['mask_threshold'] = model.test_cfg.rcnn.mask_thr_binary
    _export(module.eval(), inputs, metadata, path, size, small_topk, int8)


class _Maps(nn.Module):
    """A backbone whose input has the name that all files use."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images))


def _sides(size: tuple[int, int] | None) -> list[list]:
    """Height and width as axes of the metadata."""
    return [
        [name, size[i] if size else MIN_SIZE, size[i] if size else None]
        for i, name in enumerate(('height', 'width'))
    ]


def _export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    metadata: dict,
    path: str | Path,
    size: tuple[int, int] | None,
    small_topk: bool,
    int8: bool,
) -> None:
    if size and min(size) < MIN_SIZE:
        raise ExportError(f'a model is exported for sizes of {MIN_SIZE} or more, not {size[0]} x {size[1]}')
    axes = enumerate(metadata['inputs']['images']['axes'])
    dynamic = {'images': {i: axis for i, (axis, low, high) in axes if high != low}}
    metadata = {
        'format': FORMAT,
        'steps': [],
        'palette': [],
        **metadata,
        'opset': OPSET,
        'exported_by': f'mmsgformer {__version__}, torch {torch.__version__}',
    }
    described = {METADATA: json.dumps(metadata)}
    export_onnx(module, inputs, dynamic, metadata['outputs'], path, described, small_topk, int8)
