"""Counting a model's parameters and multiply-accumulates (MACs), module by module, with torch's counter.

`torch.utils.flop_counter` counts convolutions, matrix products and attention, two operations per MAC, as they
are run.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmsgformer.compat import COUNTS_BY_MODULE, HAS_FUSED_CPU_ATTENTION

# Height and width that models are compared at, by framework.
DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 2048)}

# How many boxes get a mask: as many as detections are kept.
NUM_MASKS = 100


class ModuleCost(NamedTuple):
    """What one module costs, its children included. The model itself has the name ''."""

    name: str
    parameters: int
    macs: int


def count_macs(model: nn.Module, image: Tensor) -> dict[str, int]:
    """MACs of `model(image)`: of the model, under the name '', and, from torch 2.4 on, of every module in it.

    Nothing is computed, unless the work depends on numbers, as with an RPN's proposals.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _count_macs(model, image)
    except RuntimeError:  # what fake tensors raise that are asked for their numbers
        return _count_macs(model, image)


def _count_macs(model: nn.Module, image: Tensor) -> dict[str, int]:
    with FlopCounterMode(display=False, custom_mapping=_missing_formulas()) as counter, torch.no_grad():
        model(image)
    counts = {name: sum(count.values()) // 2 for name, count in counter.get_flop_counts().items()}
    if not COUNTS_BY_MODULE:
        return {'': counts['Global']}
    macs = {}
    for name, module in reversed(list(model.named_modules())):
        counted = counts.get('.'.join(filter(None, [type(model).__name__, name])))
        if counted is None:  # it did nothing, or the model called its `forward` or its children instead of it
            children = ('.'.join(filter(None, [name, child])) for child, _ in module.named_children())
            counted = sum(macs.get(child, 0) for child in children)
        macs[name] = counted
    return macs


def count_costs(cfg: Config, shape: tuple[int, int]) -> list[ModuleCost]:
    """Parameters and MACs of a config's model and, from torch 2.4 on, of every module in it, in its order.

    Args:
        cfg: A config with the default scope 'mmpretrain', 'mmdet' or 'mmseg'.
        shape: Height and width of the one image that it is run on, with random weights.
    """
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    model.forward = _forward(cfg.default_scope, model, shape)
    macs = count_macs(model, torch.randn(1, 3, *shape))
    return [
        ModuleCost(name, sum(p.numel() for p in module.parameters()), macs[name])
        for name, module in model.named_modules()
        if name in macs
    ]


def count_backbone_macs(cfg: Config, shape: tuple[int, int]) -> int:
    """MACs of the backbone of a config's model, on one image of this height and width."""
    init_default_scope(cfg.default_scope)
    backbone = revert_sync_batchnorm(MODELS.build(cfg.model)).backbone
    backbone.eval()
    return count_macs(backbone, torch.zeros(1, 3, *shape))['']


def _forward(scope: str, model: nn.Module, shape: tuple[int, int]) -> partial:
    """The model as a function of an image alone, up to its heads' outputs."""
    meta = {'img_shape': shape, 'ori_shape': shape, 'batch_input_shape': shape, 'pad_shape': shape}
    if scope == 'mmseg':
        return partial(model.encode_decode, batch_img_metas=[meta])
    if scope == 'mmpretrain':
        return partial(model.forward, mode='tensor')
    from mmdet.structures import DetDataSample

    if getattr(getattr(model, 'roi_head', None), 'with_mask', False):
        model.roi_head._mask_forward = partial(_first_masks, model.roi_head._mask_forward)
    sample = DetDataSample(metainfo={**meta, 'scale_factor': (1.0, 1.0)})
    return partial(model.forward, data_samples=[sample], mode='tensor')


def _first_masks(mask_forward: Callable[..., dict], *args: Any) -> dict:
    """A RoI head's `_mask_forward` on its first boxes (the last argument), with zeros for the others."""
    *others, boxes = args
    results = mask_forward(*others, boxes[:NUM_MASKS])
    missing = len(boxes) - len(results['mask_preds'])
    return {'mask_preds': F.pad(results['mask_preds'], (0, 0, 0, 0, 0, 0, 0, missing))}


def _missing_formulas() -> dict[Any, Callable[..., int]]:
    """Of products that torch's counter passes over: matrix by vector (token merging), and two on a CPU."""
    formulas = {torch.ops.aten.mv: lambda matrix, *_, **__: 2 * prod(matrix)}
    if HAS_FUSED_CPU_ATTENTION:
        formulas[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = _attention_flops
    if torch.backends.mkldnn.is_available():
        formulas[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * prod(x) * weight[0]
    return formulas


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)
