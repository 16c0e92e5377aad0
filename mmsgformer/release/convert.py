"""What tools/convert_checkpoint.py and tools/publish_checkpoint.py do to a checkpoint's content."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.checkpoint.load import CLASSIFIER_HEAD, OFFICIAL_HEAD, embed_dims, fit_backbone, split_weights
from mmsgformer.checkpoint.names import block_counts, ours_to_official
from mmsgformer.sgformer import STRIDES, SGFormer

FORMATS = ('backbone', 'classifier', 'official')


def convert(checkpoint: Mapping, target: str, path: str | Path) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint in another format.

    Args:
        checkpoint: A file's content in any layout that `split_weights` knows.
        target: 'backbone': our names, the backbone alone. 'classifier': mmpretrain's ImageClassifier, with
            its head. 'official': the official names, with the classifier's head where there is one.
        path: The file, for messages.

    Returns:
        Names and tensors, and the entry of the checkpoint that they are from.

    Raises:
        CheckpointError: The file does not hold one complete SG-Former, or lacks the head that is asked for.
    """
    backbone, rest, source = split_weights(checkpoint, path)
    backbone = fit_backbone(backbone, _expected_backbone(backbone, path), path)
    head = {name: value for name, value in rest.items() if name.startswith(CLASSIFIER_HEAD)}
    if target == 'backbone':
        return backbone, source
    if target == 'official':
        renamed = {OFFICIAL_HEAD + n.removeprefix(CLASSIFIER_HEAD): value for n, value in head.items()}
        return {**ours_to_official(backbone), **renamed}, source
    if not head:
        raise CheckpointError(f'{path} has no classifier head; convert it to a backbone')
    return {**{f'backbone.{name}': value for name, value in backbone.items()}, **head}, source


def publishable(checkpoint: Mapping, path: str | Path) -> dict:
    """The part of a training checkpoint that others need: `meta` (classes, config, versions) and the weights.

    Optimizer, schedulers, log buffers and the second copy of the weights that EMA keeps are left out. The
    weights are those that MMEngine would test: with EMA the averaged ones.

    Raises:
        CheckpointError: It is no checkpoint of MMEngine.
    """
    if not isinstance(checkpoint.get('state_dict'), Mapping) or 'meta' not in checkpoint:
        raise CheckpointError(f'{path} is no training checkpoint: it has no meta or no state_dict')
    return {'meta': checkpoint['meta'], 'state_dict': checkpoint['state_dict']}


def _expected_backbone(weights: Mapping[str, Tensor], path: str | Path) -> SGFormer:
    """A backbone of the shapes that the weights should have."""
    stem, embedding = weights.get('stem.conv1.weight'), weights.get('pos_embed')
    dims, depths = embed_dims(weights), block_counts(weights)
    if stem is None or embedding is None or embedding.ndim != 3 or not all((*dims, *depths)):
        raise CheckpointError(f'{path} holds only parts of an SG-Former')
    # Neither the number of heads nor the grid's sides are in a shape: any grid of as many places will do.
    arch = {'embed_dims': dims, 'depths': depths, 'num_heads': (2, 2, 2, 1)}
    places = embedding.shape[1]
    rows = max(n for n in range(1, math.isqrt(places) + 1) if places % n == 0)
    size = (rows * STRIDES[0], places // rows * STRIDES[0])
    return SGFormer(arch, in_channels=stem.shape[1], pretrain_img_size=size)
