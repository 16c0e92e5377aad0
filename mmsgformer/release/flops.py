"""Counting a model's parameters and multiply-accumulates (MACs), module by module.

MMEngine's analyser (fvcore's) counts, with two handles added: it passes over fused attention and miscounts a
vector times a batch of matrices. What is counted is the published method, not this package's ways of running
it: a second q k^T pass, which saves memory here, is left out, and tokens are merged twice, as in the released
code, though once is enough.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmsgformer.ops import merge_tokens

# Height and width that models are compared at, by framework.
DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 2048)}

# How many boxes get a mask: as many as detections are kept.
NUM_MASKS = 100


class ModuleCost(NamedTuple):
    """What one module costs, its children included. The model itself has the name ''."""

    name: str
    parameters: int
    macs: int


def count_costs(cfg: Config, shape: tuple[int, int]) -> list[ModuleCost]:
    """Parameters and MACs of a config's model and of every module in it, in the model's order.

    Args:
        cfg: A config with the default scope 'mmpretrain', 'mmdet' or 'mmseg'.
        shape: Height and width of the one image that it is run on, with random weights.
    """
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    modules = dict(model.named_modules())
    model.forward = _forward(cfg.default_scope, model, shape)
    analyzer = FlopAnalyzer(model, torch.randn(1, 3, *shape))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
    analyzer.set_op_handle(
        'aten::scaled_dot_product_attention', _attention_macs, 'aten::matmul', _matmul_macs
    )
    with (
        torch.no_grad(),
        mock.patch('mmsgformer.attention.attention_with_column_means', _attention_in_one_pass),
        mock.patch('mmsgformer.attention.merge_tokens', _merge_twice),
    ):
        macs = analyzer.by_module()
    return [
        ModuleCost(name, sum(p.numel() for p in module.parameters()), int(macs[name]))
        for name, module in modules.items()
    ]


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


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """q k^T and its product with v."""
    q, k, v = (_shape(value) for value in inputs[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _matmul_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Every entry of a matrix product is a sum over the first factor's last axis."""
    return prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _attention_in_one_pass(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, dropout_p: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Stands in for `attention_with_column_means`: the attention, and some map of the right shape."""
    mask = None if valid is None else valid[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask), q.new_zeros(len(k), k.shape[2])


def _merge_twice(*args: Any) -> Tensor:
    """Stands in for `merge_tokens`: the same result, computed as often as in the released code."""
    return (merge_tokens(*args) + merge_tokens(*args)) / 2
