"""Checkpoints: the official parameter names and ours, safe reading, strict loading."""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor, nn

from mmsgformer.archs import ARCHS

# Official attention tensors that have another name here, by kind of attention. Projections of the same
# input are one layer here: an official tensor is cut into equal chunks of rows, and each chunk goes to
# the place in our tensor that is given.
_ATTENTION = {
    'hybrid': {
        'sr': ('reduce', (0,)),
        'norm': ('reduce_norm', (0,)),
        'q1': ('global_q', (0,)),
        'kv1': ('global_kv', (0,)),
        'q2': ('local_qkv', (0,)),
        'kv2': ('local_qkv', (1, 2)),
    },
    # kv1 and kv2 are [k | v] of the first and of the second half of the heads.
    'guided': {
        'kv1': ('kv', (0, 2)),
        'kv2': ('kv', (1, 3)),
        'f1': ('merge.0', (0,)),
        'f2': ('merge.1', (0,)),
        'f3': ('merge.2', (0,)),
    },
    'full': {'q': ('qkv', (0,)), 'kv': ('qkv', (1, 2))},
}
# How many chunks of rows our stacked layers have.
_NUM_CHUNKS = {'local_qkv': 3, 'kv': 4, 'qkv': 3}
_RENAMES = {
    'patch_embed1.conv.0.c.': 'stem.conv1.',
    'patch_embed1.conv.0.bn.': 'stem.norm1.',
    'patch_embed1.conv.2.c.': 'stem.conv2.',
    'patch_embed1.conv.2.bn.': 'stem.norm2.',
    'patch_embed1.conv.4.c.': 'stem.conv3.',
    'patch_embed1.conv.4.bn.': 'stem.norm3.',
    'patch_embed1.norm.': 'stem.norm.',
    '.attn.lepe_linear.': '.attn.lepe.linear.',
    '.attn.lepe_conv.': '.attn.lepe.conv.',
    '.mlp.dwconv.dwconv.': '.ffn.conv.',
    '.mlp.': '.ffn.',
}


def official_to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone parameters under their official names -> an `SGFormer` state dict.

    Args:
        state_dict: Official names (`patch_embed1.conv.0.c.weight`, `block1.0.attn.sr.weight`, ...) and
            tensors. The classifier's `head.*` is not the backbone's and is left out.

    Returns:
        The same values under our names; projections of one input are stacked along their rows.

    Raises:
        KeyError: Of tensors that are stacked, some are there and some are not.
    """
    chunks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state_dict.items():
        if name.startswith('head.'):
            continue
        ours, places = _locate(name)
        rows = tensor.chunk(len(places)) if len(places) > 1 else [tensor]
        chunks.setdefault(ours, {}).update(zip(places, rows, strict=True))
    for ours, rows in chunks.items():
        expected = _NUM_CHUNKS.get(ours.split('.')[-2] if '.attn.' in ours else '', 1)
        if len(rows) < expected:
            raise KeyError(f'{ours} is made of several official tensors, of which some are missing')
    return {
        name: torch.cat([rows[place] for place in sorted(rows)]) if len(rows) > 1 else rows[0]
        for name, rows in chunks.items()
    }


def _locate(name: str) -> tuple[str, tuple[int, ...]]:
    """An official name -> our name, and the places of the tensor's row chunks in our tensor."""
    for official, ours in _RENAMES.items():
        name = name.replace(official, ours)
    # Stages count from 1 there and from 0 here.
    name = re.sub(r'^block(\d)\.', lambda m: f'stages.{int(m[1]) - 1}.blocks.', name)
    name = re.sub(r'^norm(\d)\.', lambda m: f'stages.{int(m[1]) - 1}.norm.', name)
    name = re.sub(
        r'^patch_embed(\d)\.conv(\d)\.(c|bn)\.',
        lambda m: f'stages.{int(m[1]) - 1}.downsample.{"conv" if m[3] == "c" else "norm"}{m[2]}.',
        name,
    )
    match = re.fullmatch(r'stages\.(\d)\.blocks\.(\d+)\.attn\.(\w+)\.(weight|bias)', name)
    if match is None:
        return name, (0,)
    stage, block, layer, kind = match.groups()
    attention = 'full' if stage == '3' else ('hybrid', 'guided')[int(block) % 2]
    ours, places = _ATTENTION[attention].get(layer, (layer, (0,)))
    return f'stages.{stage}.blocks.{block}.attn.{ours}.{kind}', places


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit; the message says why and what to do."""


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
    weights, source = backbone_weights(read_checkpoint(path), path)
    own = backbone.state_dict()
    weights = _resize_position_embedding(weights, own, backbone.pretrain_grid)
    problems = {
        'missing': [name for name in own if name not in weights],
        'unexpected': [name for name in weights if name not in own],
        'of another shape': [n for n in own if n in weights and own[n].shape != weights[n].shape],
    }
    summary = '; '.join(
        f'{len(names)} {kind} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
        for kind, names in problems.items()
        if names
    )
    if summary and not partial:
        raise CheckpointError(
            f'{path} does not fit the backbone: {summary}. {_compare_archs(weights, own)}'
            'Nothing was loaded. To load the tensors that fit, set partial=True in init_cfg.'
        )
    fitting = {n: value for n, value in weights.items() if n in own and own[n].shape == value.shape}
    backbone.load_state_dict(fitting, strict=False)
    share = sum(own[n].numel() for n in fitting) / sum(value.numel() for value in own.values())
    print_log(
        f"{path}: {share:.1%} of the backbone's parameters ({len(fitting)} of {len(own)} tensors) "
        f'loaded from {source}{"; " + summary if summary else ""}',
        'current',
    )


def backbone_weights(checkpoint: Mapping, path: str | Path) -> tuple[dict[str, Tensor], str]:
    """The backbone's weights in a checkpoint's content, under our names, and which entry they are from."""
    for source in ('state_dict_ema', 'state_dict', 'model'):
        if isinstance(checkpoint.get(source), Mapping):
            weights = checkpoint[source]
            break
    else:
        weights, source = checkpoint, 'the file itself'
    weights = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    for prefix in ('module.', 'model.', 'module.', 'backbone.'):
        if any(name.startswith(prefix) for name in weights):
            weights = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    if not any(name.startswith(('stem.', 'patch_embed1.')) for name in weights):
        entries = ', '.join(map(str, list(checkpoint)[:5]))
        raise CheckpointError(f'{path} holds no SG-Former weights; it starts with: {entries or "nothing"}')
    if any(name.startswith('patch_embed1.') for name in weights):
        try:
            weights = official_to_ours(weights)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error.args[0])
            raise CheckpointError(f'{path} is not a sound official checkpoint: {reason}') from error
    return weights, source


def read_checkpoint(path: str | Path, map_location: object = 'cpu') -> Mapping:
    """The content of a .pth or .safetensors file or URL, without running code that it may hold.

    Besides tensors and plain values a .pth may hold the numpy numbers and log buffers of MMEngine's
    checkpoints. `map_location` is torch.load's; tensors of a .safetensors file come on the CPU.

    Raises:
        CheckpointError: There is no such file, it is damaged or no checkpoint, or it needs other classes.
    """
    if '://' in str(path):
        with get_local_path(str(path)) as local:
            return _read_file(Path(local), str(path), map_location)
    path = Path(path).expanduser()
    return _read_file(path, str(path), map_location)


def _read_file(path: Path, name: str, map_location: object) -> Mapping:
    """`read_checkpoint` for a local file that is called `name` in errors."""
    if not path.is_file():
        raise CheckpointError(
            f'{path} is {"a folder" if path.is_dir() else "not there"}; give a checkpoint file'
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f'{name} is empty')
    try:
        if name.endswith('.safetensors'):
            from safetensors.torch import load_file  # optional: only users of such files need it

            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_SAFE_GLOBALS):
                content = torch.load(path, map_location=map_location, weights_only=True)
    except ModuleNotFoundError as error:
        raise CheckpointError(f'{name} needs `pip install safetensors`') from error
    except Exception as error:  # the readers raise many kinds for a damaged file
        unsafe = _other_globals(path) if isinstance(error, pickle.UnpicklingError) else []
        if unsafe:
            raise CheckpointError(
                f'{name} was not loaded: besides tensors it holds {", ".join(unsafe)}, and loading those can '
                'run code. If you trust where it is from, convert it once: '
                f"c = torch.load('{name}', weights_only=False); torch.save(c['state_dict'], 'weights.pth')"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f'{name} ({path.stat().st_size} bytes) is no checkpoint, or is damaged: {reason}'
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{name} holds a {type(content).__name__}, not the dict of a checkpoint')
    return content


def _history_buffer_method(owner: type, name: str) -> object:
    """What `getattr` may do in a checkpoint: MMEngine's log buffers refer to their own methods by it."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r})')
    return getattr(owner, name)


# What MMEngine's own checkpoints hold besides tensors and plain values: log buffers of numpy numbers.
_SAFE_GLOBALS = [
    HistoryBuffer,
    (_history_buffer_method, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    np.float64(0).__reduce__()[0],
    np.empty(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.uint32, np.bool_)),
]


def _other_globals(path: Path) -> list[str]:
    """Names of the classes and functions in a .pth that are not allowed, as far as they can be listed."""
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not in torch's zip format, or damaged
        return []


def _resize_position_embedding(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], grid: tuple[int, int]
) -> dict[str, Tensor]:
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


def _compare_archs(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """A sentence that names both architectures if the file's is another one than the backbone's."""
    file, model = _describe_arch(weights), _describe_arch(own)
    return '' if file == model else f'The file looks like {file}; the config builds {model}. '


def _describe_arch(weights: Mapping[str, Tensor]) -> str:
    """The architecture that these parameter names and shapes belong to, by name if it is a published one."""
    norms = [weights.get(f'stages.{i}.norm.weight', torch.empty(0)) for i in range(4)]
    dims = tuple(len(norm) for norm in norms)
    blocks = [re.match(r'stages\.(\d)\.blocks\.(\d+)\.', name) for name in weights]
    depths = tuple(
        1 + max((int(m[2]) for m in blocks if m is not None and int(m[1]) == i), default=-1) for i in range(4)
    )
    for name, arch in ARCHS.items():
        if (arch['embed_dims'], arch['depths']) == (dims, depths):
            return f'SG-Former-{name.upper()}'
    return f'an SG-Former of embed_dims {dims} and depths {depths}'
