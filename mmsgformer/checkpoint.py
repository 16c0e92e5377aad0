"""The official checkpoints' parameter names and ours: a pure mapping of state dicts."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

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
