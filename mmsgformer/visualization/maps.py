"""What SG-Former sees: significance maps, and how many tokens become one where."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsgformer.attention import HybridScaleAttention
from mmsgformer.mixers.sgformer import RUN_LENGTHS
from mmsgformer.ops.token_merge import part_bounds
from mmsgformer.sgformer import MIN_SIZE, STRIDES, SGFormer


class SignificanceMap(NamedTuple):
    """What one hybrid-scale block found significant."""

    stage: int
    block: int
    values: Tensor
    """(B, H_s, W_s), float32: the mean attention that each token receives; no gradient."""


def makes_significance(backbone: nn.Module | None) -> bool:
    """Whether it is an `SGFormer` whose mixer makes significance maps: the default one does."""
    return isinstance(backbone, SGFormer) and any(_makers(backbone))


def require_significance(backbone: nn.Module | None) -> None:
    """Raise a ValueError that says why if a backbone makes no significance maps."""
    if not makes_significance(backbone):
        is_ours = isinstance(backbone, SGFormer)
        what = f'mixer {backbone.mixer["type"]!r}' if is_ours else type(backbone).__name__
        raise ValueError(
            f'there is no significance to show: the model has the {what}, and only an SGFormer with its own '
            "mixer, 'sgformer', makes significance maps"
        )


def _makers(backbone: SGFormer) -> Iterator[tuple[int, int, nn.Module]]:
    """The attentions that make a map, with their stage and block."""
    for i, stage in enumerate(backbone.stages):
        for j, block in enumerate(stage.blocks):
            if isinstance(block.attn, HybridScaleAttention):
                yield i, j, block.attn


@contextmanager
def record_significance(backbone: SGFormer) -> Iterator[list[SignificanceMap]]:
    """Collect the maps of every forward pass within the `with` block, in the order of the blocks.

    With gradient checkpointing (`with_cp`) a backward pass within it runs the blocks, and adds maps, again.
    With `ignore_padding` a padded batch has maps for each size of its images, one size after the other.
    Raises ValueError if the backbone makes none.
    """
    require_significance(backbone)
    maps: list[SignificanceMap] = []

    def recorder(stage: int, block: int):
        return lambda _, __, output: maps.append(SignificanceMap(stage, block, output[1].detach().float()))

    handles = [
        attention.register_forward_hook(recorder(stage, block))
        for stage, block, attention in _makers(backbone)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def significance_maps(backbone: SGFormer, images: Tensor) -> list[SignificanceMap]:
    """The significance map of every hybrid-scale block that runs, in order.

    The backbone runs in evaluation mode and is left as it was.

    Args:
        backbone: The backbone; stages past its last output do not run and give no maps.
        images: Normalised images (B, C, H, W).
    """
    training = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with record_significance(backbone) as maps:
            backbone(images)
    finally:
        for module, mode in training.items():
            module.training = mode
    return maps


def batch_maps(model: nn.Module, batch: dict) -> list[SignificanceMap]:
    """The significance maps of a collated batch of one image, on the CPU, without the input's padding."""
    height, width = batch['data_samples'][0].img_shape[:2]
    inputs = model.data_preprocessor(batch, training=False)['inputs']
    if model.backbone.ignore_padding:
        inputs = inputs[..., : max(height, MIN_SIZE), : max(width, MIN_SIZE)]
    return [
        m._replace(values=m.values[:, : -(-height // stride), : -(-width // stride)].cpu())
        for m in significance_maps(model.backbone, inputs)
        for stride in [STRIDES[m.stage]]
    ]


def token_allocation(significance: Tensor, stage: int) -> Tensor:
    """How many tokens the self-guided block after a map merges into one: 1 where tokens stay fine.

    Exact for the map that the network saw; padding that was cut off it took part in the network's sort.

    Args:
        significance: (B, H, W).
        stage: The stage of the map, 0-2.

    Returns:
        (B, H, W), integers: the run length of the part that each token is in.
    """
    run_lengths = RUN_LENGTHS[stage]
    order = significance.flatten(1).argsort(dim=1, stable=True)
    lengths = torch.empty_like(order)
    for length, (start, stop) in zip(run_lengths, part_bounds(order.shape[1], len(run_lengths)), strict=True):
        lengths.scatter_(1, order[:, start:stop], length)
    return lengths.view_as(significance)
