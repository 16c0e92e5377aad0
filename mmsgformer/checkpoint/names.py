"""The parameter names of the official SG-Former code and ours, both ways."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mmsgformer.archs import NUM_STAGES

# Official layer -> our layer, by the part of the network that they are in.
_STEM = {
    'patch_embed1.conv.0.c': 'conv1',
    'patch_embed1.conv.0.bn': 'norm1',
    'patch_embed1.conv.2.c': 'conv2',
    'patch_embed1.conv.2.bn': 'norm2',
    'patch_embed1.conv.4.c': 'conv3',
    'patch_embed1.conv.4.bn': 'norm3',
    'patch_embed1.norm': 'norm',
}
_DOWNSAMPLE = {
    'conv1.c': 'conv1',
    'conv1.bn': 'norm1',
    'conv2.c': 'conv2',
    'conv2.bn': 'norm2',
    'conv3.c': 'conv3',
    'conv3.bn': 'norm3',
}
_BLOCK = {
    'norm1': 'norm1',
    'attn.lepe_linear': 'attn.lepe.linear',
    'attn.lepe_conv': 'attn.lepe.conv',
    'attn.proj': 'attn.proj',
    'norm2': 'norm2',
    'mlp.fc1': 'ffn.fc1',
    'mlp.dwconv.dwconv': 'ffn.conv',
    'mlp.fc2': 'ffn.fc2',
}
# Projections of one input are one layer here: an official tensor is cut into equal chunks of rows, and each
# chunk goes to the place in our tensor that is given.
_HYBRID_ATTENTION = {
    'sr': ('reduce', (0,)),
    'norm': ('reduce_norm', (0,)),
    'q1': ('global_q', (0,)),
    'kv1': ('global_kv', (0,)),
    'q2': ('local_qkv', (0,)),
    'kv2': ('local_qkv', (1, 2)),
}
# kv1 and kv2 are [k | v] of the first and of the second half of the heads.
_GUIDED_ATTENTION = {
    'q': ('q', (0,)),
    'kv1': ('kv', (0, 2)),
    'kv2': ('kv', (1, 3)),
    'f1': ('merge.0', (0,)),
    'f2': ('merge.1', (0,)),
    'f3': ('merge.2', (0,)),
}
_FULL_ATTENTION = {'q': ('qkv', (0,)), 'kv': ('qkv', (1, 2))}


def official_to_ours(state_dict: Mapping[str, Tensor], partial: bool = False) -> dict[str, Tensor]:
    """Backbone parameters under their official names -> an `SGFormer` state dict.

    Args:
        state_dict: Official names (`patch_embed1.conv.0.c.weight`, `block1.0.attn.sr.weight`, ...) and
            tensors. The classifier's `head.*` is not the backbone's and is left out.
        partial: Leave stacked tensors out of which parts are missing.

    Returns:
        The same values under our names; projections of one input are stacked along their rows. Names that
        the official code does not have stay as they are.

    Raises:
        ValueError: Without `partial`: parts of a stacked tensor are missing or do not fit each other.
    """
    layers = _layers(block_counts(state_dict, official=True))
    num_chunks = _num_chunks(layers)
    converted: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state_dict.items():
        layer, dot, kind = name.rpartition('.')
        if layer == 'head':
            continue
        ours, places = layers.get(layer, (layer, (0,)))
        if num_chunks[ours] <= 1:
            converted[ours + dot + kind] = tensor
        else:
            rows = dict(zip(places, torch.atleast_1d(tensor).chunk(len(places)), strict=False))
            stacks.setdefault(ours + dot + kind, {}).update(rows)
    for name, rows in stacks.items():
        expected = num_chunks[name.rpartition('.')[0]]
        if len(rows) < expected or len({chunk.shape for chunk in rows.values()}) > 1:
            if partial:
                continue
            shapes = [tuple(rows[i].shape) if i in rows else 'missing' for i in range(expected)]
            raise ValueError(f'the official tensors that make up {name} do not fit each other: {shapes}')
        converted[name] = torch.cat([rows[i] for i in range(expected)])
    return converted


def ours_to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `SGFormer` state dict -> the same values under their official names; undoes `official_to_ours`.

    Raises:
        KeyError: A name is not a parameter of `SGFormer`.
    """
    layers = _layers(block_counts(state_dict))
    num_chunks = _num_chunks(layers)
    sources: dict[str, dict[str, tuple[int, ...]]] = {}
    for official, (ours, places) in layers.items():
        sources.setdefault(ours, {})[official] = places
    converted = {}
    for name, tensor in state_dict.items():
        layer, dot, kind = name.rpartition('.')
        if layer not in sources:
            raise KeyError(f'{name} is not a parameter of SGFormer')
        rows = tensor.chunk(num_chunks[layer])
        for official, places in sources[layer].items():
            converted[official + dot + kind] = torch.cat([rows[i] for i in places])
    return converted


def _layers(depths: Iterable[int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every official layer of a network with these depths -> our layer, and the places of its row chunks."""
    layers = {theirs: (f'stem.{ours}', (0,)) for theirs, ours in _STEM.items()}
    layers[''] = ('', (0,))  # the position embedding belongs to no layer
    for i, depth in enumerate(depths):
        layers[f'norm{i + 1}'] = (f'stages.{i}.norm', (0,))
        if i > 0:
            for theirs, ours in _DOWNSAMPLE.items():
                layers[f'patch_embed{i + 1}.{theirs}'] = (f'stages.{i}.downsample.{ours}', (0,))
        for j in range(depth):
            for theirs, ours in _BLOCK.items():
                layers[f'block{i + 1}.{j}.{theirs}'] = (f'stages.{i}.blocks.{j}.{ours}', (0,))
            alternating = (_HYBRID_ATTENTION, _GUIDED_ATTENTION)[j % 2]
            for theirs, (ours, places) in (_FULL_ATTENTION if i == NUM_STAGES - 1 else alternating).items():
                layers[f'block{i + 1}.{j}.attn.{theirs}'] = (f'stages.{i}.blocks.{j}.attn.{ours}', places)
    return layers


def _num_chunks(layers: Mapping[str, tuple[str, tuple[int, ...]]]) -> Counter[str]:
    """How many chunks of rows each of our layers is made of."""
    counts: Counter[str] = Counter()
    for ours, places in layers.values():
        counts[ours] += len(places)
    return counts


def block_counts(names: Iterable[str], official: bool = False) -> tuple[int, ...]:
    """Blocks per stage that a backbone's parameter names, ours or the official ones, speak of."""
    block = re.compile(r'block(\d)\.(\d+)\.' if official else r'stages\.(\d)\.blocks\.(\d+)\.')
    found = [(int(m[1]) - official, int(m[2])) for name in names if (m := block.match(name))]
    return tuple(1 + max((j for i, j in found if i == stage), default=-1) for stage in range(NUM_STAGES))
