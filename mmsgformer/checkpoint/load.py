"""Loading a checkpoint into a backbone, or into the model around it: strictly, and never silently."""

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmsgformer.archs import ARCHS, NUM_STAGES
from mmsgformer.checkpoint.files import CheckpointError, read_checkpoint
from mmsgformer.checkpoint.names import block_counts, official_to_ours

# The classifier's linear layer: official name and mmpretrain's.
OFFICIAL_HEAD, CLASSIFIER_HEAD = 'head.', 'head.fc.'


def load_backbone(backbone: nn.Module, path: str | Path, partial: bool = False) -> None:
    """Load a backbone's weights from a checkpoint: all of them, or, on any error, none.

    Reads the official files as they are, and the backbone out of a detector's, a segmenter's or a
    classifier's checkpoint. EMA weights are preferred where the file has them. A position embedding of
    another grid is resized (bicubic).

    Args:
        backbone: An `SGFormer`.
        path: A .pth or .safetensors file, or the URL of one.
        partial: Load the tensors that fit and only report the others.

    Raises:
        CheckpointError: The file cannot be read, needs code to run, or does not fit the backbone.
    """
    weights, rest, source = split_weights(read_checkpoint(path), path, partial)
    fitting = fit_backbone(weights, backbone, path, partial)
    backbone.load_state_dict(fitting, strict=False)
    _warn_of_grid(weights, backbone, path)
    report = _share(fitting, backbone.state_dict(), path, source)
    if any(name.startswith(CLASSIFIER_HEAD) for name in rest):
        report += "; the file's classifier head is not used"
    print_log(report, 'current')


def prepare_for_model(
    checkpoint: MutableMapping, model: nn.Module, path: str | Path, strict: bool, partial: bool = False
) -> None:
    """Make a checkpoint that MMEngine is about to load into a model fit it, in place.

    Args:
        checkpoint: A file's content in any layout that `split_weights` knows. Its `state_dict` becomes the
            model's: EMA weights where the file has them, our names, an official classifier head as
            mmpretrain's.
        model: A detector, segmenter or classifier whose `backbone` is an `SGFormer`.
        path: The file, for messages.
        strict: Every parameter of the model has to be in the file, as for testing and resuming. Otherwise
            those outside the backbone may be missing, as for fine-tuning, and are reported.
        partial: Load what fits, of the backbone too, and only report the rest.

    Raises:
        CheckpointError: The backbone's part does not fit, or with `strict` any other.
    """
    weights, rest, source = split_weights(checkpoint, path, partial)
    fitting = fit_backbone(weights, model.backbone, path, partial)
    _warn_of_grid(weights, model.backbone, path)
    own = model.state_dict()
    others = {name for name in own if not name.startswith('backbone.')}
    absent = sorted(n for n in others if n not in rest or rest[n].shape != own[n].shape)
    if absent and strict and not partial:
        raise CheckpointError(
            f'{path} does not hold the whole model: {_summary({"missing or of another shape": absent})}. '
            'Nothing was loaded. It can be trained from, as load_from or as init_cfg of the backbone; to '
            'load what fits, add --cfg-options default_hooks.checkpoint_load.partial=True'
        )
    report = _share(fitting, model.backbone.state_dict(), path, source)
    report += f'; outside the backbone {len(others) - len(absent)} of {len(others)} tensors are in the file'
    unused = sorted(set(rest) - others)
    for names, verdict in [(absent, 'stay as initialised'), (unused, 'of the file are not used')]:
        report += f', {_list(names)} {verdict}' if names else ''
    print_log(report, 'current')
    # Only what fits goes on: MMEngine would list again, as an error, what was reported here.
    state_dict = OrderedDict((f'backbone.{name}', value) for name, value in fitting.items())
    state_dict.update((name, rest[name]) for name in others.difference(absent))
    # Layers' format versions, which torch and the frameworks look at.
    state_dict._metadata = getattr(checkpoint.get('state_dict'), '_metadata', OrderedDict())
    checkpoint['state_dict'] = state_dict


def split_weights(
    checkpoint: Mapping, path: str | Path, partial: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """A checkpoint's content -> the backbone's weights, the other weights, and the entry they are from.

    Knows the official files and ours: a bare dict of weights, or one in `state_dict_ema`, `state_dict` or
    `model`, in this order; with `module.` or `model.` before every name; a whole model or a backbone alone.

    Returns:
        The backbone's weights under our names, without prefix; all others, an official classifier head as
        mmpretrain's `head.fc`; the name of the entry.

    Raises:
        CheckpointError: There are no SG-Former weights, or official ones that do not fit each other.
    """
    for source in ('state_dict_ema', 'state_dict', 'model'):
        if isinstance(checkpoint.get(source), Mapping) and checkpoint[source]:
            weights = checkpoint[source]
            break
    else:
        weights, source = checkpoint, 'the file itself'
    weights = {n: value for n, value in weights.items() if isinstance(n, str) and isinstance(value, Tensor)}
    for prefix in ('module.', 'model.', 'module.'):
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    rest: dict[str, Tensor] = {}
    if any(name.startswith('backbone.') for name in weights):
        rest = {name: value for name, value in weights.items() if not name.startswith('backbone.')}
        weights = {n.removeprefix('backbone.'): v for n, v in weights.items() if n not in rest}
    for name in [name for name in weights if name.startswith(OFFICIAL_HEAD)]:
        rest[CLASSIFIER_HEAD + name.removeprefix(OFFICIAL_HEAD)] = weights.pop(name)
    if any(name.startswith('patch_embed1.') for name in weights):
        try:
            weights = official_to_ours(weights, partial)
        except ValueError as error:
            raise CheckpointError(f'{path} is not a sound official checkpoint: {error}') from error
    elif not any(name.startswith('stem.') for name in weights):
        entries = ', '.join(map(str, list(checkpoint)[:5]))
        raise CheckpointError(f'{path} holds no SG-Former weights; it starts with: {entries or "nothing"}')
    return weights, rest, source


def fit_backbone(
    weights: Mapping[str, Tensor], backbone: nn.Module, path: str | Path, partial: bool = False
) -> dict[str, Tensor]:
    """The weights that a backbone takes, its position embedding resized if it is of another grid.

    Raises:
        CheckpointError: Some are missing, unexpected or of another shape, and `partial` is not set.
    """
    own = backbone.state_dict()
    weights = _resize_position_embedding(weights, own, backbone.pretrain_grid)
    summary = _summary(
        {
            'missing': [name for name in own if name not in weights],
            'unexpected': [name for name in weights if name not in own],
            'of another shape': [n for n in own if n in weights and own[n].shape != weights[n].shape],
        }
    )
    if summary and not partial:
        raise CheckpointError(
            f'{path} does not fit the backbone. {_compare_archs(weights, own)}'
            f'{_compare_mixers(weights, own, backbone)}It has {summary}. '
            "Nothing was loaded. To load what fits, set partial=True in the backbone's init_cfg, or for the "
            'checkpoint of a whole model default_hooks.checkpoint_load.partial=True'
        )
    if summary:
        print_log(f'{path} fits the backbone in part: {summary}', 'current')
    return {n: value for n, value in weights.items() if n in own and own[n].shape == value.shape}


def _share(fitting: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path, source: str) -> str:
    """What part of a backbone's parameters a file gives."""
    share = sum(own[n].numel() for n in fitting) / sum(value.numel() for value in own.values())
    return (
        f"{path}: {share:.1%} of the backbone's parameters ({len(fitting)} of {len(own)} tensors) "
        f'loaded from {source}'
    )


def _summary(problems: Mapping[str, list[str]]) -> str:
    """Kinds of problems and the names that have them -> one line, empty if there are none."""
    return '; '.join(f'{len(names)} {kind} ({_list(names)})' for kind, names in problems.items() if names)


def _list(names: list[str]) -> str:
    """The first few names, and a sign if there are more."""
    return ', '.join(names[:3]) + (f', ... ({len(names)} in all)' if len(names) > 3 else '')


def _resize_position_embedding(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], grid: tuple[int, int]
) -> Mapping[str, Tensor]:
    """Resize the position embedding of a square grid to `grid` if it has another number of places."""
    embedding = weights.get('pos_embed')
    if embedding is None or embedding.ndim != 3 or embedding.shape[1] == own['pos_embed'].shape[1]:
        return weights
    side = math.isqrt(embedding.shape[1])
    if side * side != embedding.shape[1]:
        return weights
    square = embedding.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode='bicubic', align_corners=False)
    print_log(f'position embedding resized from {side} x {side} to {grid[0]} x {grid[1]}', 'current')
    return {**weights, 'pos_embed': resized.permute(0, 2, 3, 1).flatten(1, 2)}


def _warn_of_grid(weights: Mapping[str, Tensor], backbone: nn.Module, path: str | Path) -> None:
    """Say so if an embedding of as many places as a grid that is not square was taken to be of that grid."""
    rows, columns = backbone.pretrain_grid
    embedding = weights.get('pos_embed')
    if embedding is not None and embedding.shape[1:2] == (rows * columns,) and rows != columns:
        print_log(
            f'{path}: nothing in a file says the shape of its position embedding; {rows * columns} places '
            f"are taken as {rows} rows x {columns} columns, as the backbone's pretrain_img_size has it",
            'current',
            logging.WARNING,
        )


def _compare_archs(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """A sentence that names both architectures if the file's is another one than the backbone's."""
    file, model = _arch_name(weights), _arch_name(own)
    return '' if file == model else f'The file looks like {file}; the config builds {model}. '


def _compare_mixers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], backbone: nn.Module) -> str:
    """A sentence that names the mixer if a file of the same architecture has another one."""
    differ = weights.keys() ^ own.keys()
    if differ and all('.attn.' in name for name in differ):
        return f"The file's blocks have another mixer than {backbone.mixer['type']!r}, the config's. "
    return ''


def _arch_name(weights: Mapping[str, Tensor]) -> str:
    """The architecture that these parameter names and shapes belong to, by name if it has one."""
    dims, depths = embed_dims(weights), block_counts(weights)
    for name, arch in ARCHS.items():
        if (arch['embed_dims'], arch['depths']) == (dims, depths):
            return f'SG-Former-{name.upper()}'
    return f'an SG-Former of embed_dims {dims} and depths {depths}'


def embed_dims(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Channels of each stage in a backbone's weights, 0 where they do not say."""
    return tuple(len(weights.get(f'stages.{i}.norm.weight', torch.empty(0))) for i in range(NUM_STAGES))
