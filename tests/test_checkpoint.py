"""The official parameter names and ours; safe reading; loading all or nothing."""

import functools
import http.server
import json
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mmsgformer import SGFormer
from mmsgformer.checkpoint import CheckpointError, load_backbone, official_to_ours, read_checkpoint

GOLDEN = Path(__file__).parent / 'golden'


@pytest.mark.parametrize('arch', ['tiny', 's', 'm', 'b'])
def test_official_names_cover_the_backbone_exactly(arch, tiny):
    keys = json.loads((GOLDEN / f'official_keys_{arch}.json').read_text())
    official = {key: torch.empty(shape) for key, shape in keys.items()}
    ours = SGFormer(tiny if arch == 'tiny' else arch).state_dict()
    mapped = official_to_ours(official)
    assert {k: v.shape for k, v in mapped.items()} == {k: v.shape for k, v in ours.items()}


def test_mapping_is_pure_and_keeps_every_value(tiny, draw_golden):
    keys = json.loads((GOLDEN / 'official_keys_tiny.json').read_text())
    official = {key: draw_golden(key, shape) for key, shape in keys.items()}
    before = {key: value.clone() for key, value in official.items()}
    mapped = official_to_ours(official)
    assert all(torch.equal(before[key], value) for key, value in official.items())
    values = torch.cat([v.flatten() for k, v in official.items() if not k.startswith('head.')])
    assert torch.equal(torch.cat([v.flatten() for v in mapped.values()]).sort().values, values.sort().values)


@pytest.mark.parametrize(
    'missing', ['block1.0.attn.q2.bias', 'block1.1.attn.kv2.weight', 'block4.0.attn.q.weight']
)
def test_a_missing_part_of_a_stacked_layer_is_an_error(missing):
    keys = json.loads((GOLDEN / 'official_keys_tiny.json').read_text())
    official = {key: torch.zeros(shape) for key, shape in keys.items() if key != missing}
    stage, block = int(missing[5]) - 1, missing[7]
    with pytest.raises(KeyError, match=rf'stages\.{stage}\.blocks\.{block}\.attn'):
        official_to_ours(official)


@pytest.fixture(scope='session')
def official(draw_golden) -> dict[str, torch.Tensor]:
    """The tiny arch's weights under their official names, head included, in float32."""
    keys = json.loads((GOLDEN / 'official_keys_tiny.json').read_text())
    return {key: draw_golden(key, shape).float() for key, shape in keys.items()}


def prefixed(weights: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in weights.items()}


def other(weights: dict) -> dict:
    return {name: value + 1 for name, value in weights.items()}


# Every layout that holds the same backbone, from the official weights.
LAYOUTS = {
    'bare': lambda w: w,
    'state_dict': lambda w: {'epoch': 3, 'state_dict': w},
    'EMA preferred': lambda w: {'state_dict': other(w), 'state_dict_ema': w},
    'DDP': lambda w: {'state_dict': prefixed(w, 'module.')},
    'timm EMA of DDP': lambda w: {'state_dict_ema': prefixed(w, 'module.model.')},
    'ours': official_to_ours,
    'detector': lambda w: {
        'meta': {'epoch': 12},
        'state_dict': {**prefixed(official_to_ours(w), 'backbone.'), 'neck.conv.weight': torch.ones(3)},
        'message_hub': {'loss': HistoryBuffer([1.0], [1]), 'lr': np.float64(0.1), 'iter': np.int64(3)},
    },
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_every_layout_loads_through_init_cfg(layout, suffix, official, tiny, tmp_path):
    content = LAYOUTS[layout](official)
    path = tmp_path / f'weights.{suffix}'
    if suffix == 'safetensors':
        if not all(isinstance(value, torch.Tensor) for value in content.values()):
            content = content.get('state_dict_ema', content.get('state_dict'))
        save_file(content, path)
    else:
        torch.save(content, path)
    model = SGFormer(tiny, init_cfg={'type': 'Pretrained', 'checkpoint': str(path)})
    model.init_weights()
    expected = official_to_ours(official)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_position_embedding_of_another_grid_is_resized_as_a_forward_would(official, tiny, tmp_path):
    torch.save(official, tmp_path / 'weights.pth')
    at_224, at_320 = SGFormer(tiny), SGFormer(tiny, pretrain_img_size=320)
    for model in (at_224, at_320):
        load_backbone(model.eval(), tmp_path / 'weights.pth')
    image = torch.randn(1, 3, 320, 320)
    with torch.no_grad():
        for out, expected in zip(at_320(image), at_224(image), strict=True):
            torch.testing.assert_close(out, expected)


def without(weights: dict, name: str) -> dict:
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: without(w, 'norm4.bias'), r'1 missing \(stages\.3\.norm\.bias\)'),
        (lambda w: without(w, 'block1.0.attn.kv2.bias'), r'stages\.0\.blocks\.0\.attn\.local_qkv\.bias'),
        (lambda w: {**w, 'extra.weight': torch.ones(1)}, r'1 unexpected \(extra\.weight\)'),
        (lambda w: {**w, 'norm1.weight': torch.ones(5)}, r'1 of another shape \(stages\.0\.norm\.weight\)'),
        (
            lambda w: prefixed(w, 'student.'),
            r'holds no SG-Former weights; it starts with: student\.pos_embed',
        ),
        (lambda w: {'state_dict': {}}, 'holds no SG-Former weights'),
        (lambda w: [1, 2], 'holds a list'),
    ],
)
def test_what_does_not_fit_is_an_error_and_loads_nothing(change, message, official, tiny, tmp_path):
    torch.save(change(official), tmp_path / 'weights.pth')
    model = SGFormer(tiny)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_backbone(model, tmp_path / 'weights.pth')
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_partial_loads_what_fits(official, tiny, tmp_path):
    changed = {**without(official, 'norm4.bias'), 'extra': torch.ones(1), 'norm1.weight': torch.ones(5)}
    torch.save(changed, tmp_path / 'weights.pth')
    pretrained = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'weights.pth'), 'partial': True}
    model = SGFormer(tiny, init_cfg=pretrained)
    model.init_weights()
    assert torch.equal(model.stem.conv1.weight, official['patch_embed1.conv.0.c.weight'])
    assert torch.equal(model.stages[0].norm.weight, torch.ones(32))


@pytest.mark.parametrize(('file', 'config'), [('m', 's'), ('b', 's'), ('s', 'b'), ('tiny', 's')])
def test_another_variant_is_named(file, config, tmp_path):
    keys = json.loads((GOLDEN / f'official_keys_{file}.json').read_text())
    torch.save({key: torch.empty(shape) for key, shape in keys.items()}, tmp_path / 'weights.pth')
    names = {'tiny': r'an SG-Former of embed_dims \(32, '}
    looks_like = names.get(file, f'SG-Former-{file.upper()};')
    with pytest.raises(CheckpointError, match=f'looks like {looks_like}.* builds SG-Former-{config.upper()}'):
        load_backbone(SGFormer(config), tmp_path / 'weights.pth')


def test_the_log_says_what_share_was_loaded(official, tiny, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('mmsgformer.checkpoint.print_log', lambda line, _: lines.append(line))
    torch.save({'state_dict_ema': official}, tmp_path / 'weights.pth')
    load_backbone(SGFormer(tiny), tmp_path / 'weights.pth')
    assert "100.0% of the backbone's parameters (269 of 269 tensors) loaded from state_dict_ema" in lines[0]


class MakesAFile:
    """Unpickling this runs code."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_does_not_run(official, tmp_path):
    trap = tmp_path / 'trap'
    torch.save({'state_dict': official, 'args': MakesAFile(trap)}, tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match=r'mkdir.*can run code.*If you trust'):
        read_checkpoint(tmp_path / 'weights.pth')
    assert not trap.exists()


@pytest.mark.parametrize('kind', ['nothing there', 'folder', 'empty', 'text', 'text.safetensors'])
def test_what_is_no_checkpoint_is_named(kind, tmp_path):
    path = tmp_path / kind
    if kind == 'folder':
        path.mkdir()
    elif kind != 'nothing there':
        path.write_text('' if kind == 'empty' else 'a text file\n' * 9)
    with pytest.raises(CheckpointError, match=kind):
        read_checkpoint(path)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_truncated_file_is_an_error_wherever_it_ends(suffix, official, tmp_path):
    whole = tmp_path / f'whole.{suffix}'
    save_file(official, whole) if suffix == 'safetensors' else torch.save(official, whole)
    content = whole.read_bytes()
    for seed in range(20):
        path = tmp_path / f'part.{suffix}'
        path.write_bytes(content[: random.Random(seed).randrange(1, len(content))])
        with pytest.raises(CheckpointError, match=r'part.* is no checkpoint, or is damaged'):
            read_checkpoint(path)


def test_a_url_is_downloaded(official, tmp_path):
    torch.save(official, tmp_path / 'weights.pth')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        content = read_checkpoint(f'http://127.0.0.1:{server.server_port}/weights.pth')
        server.shutdown()
    assert all(torch.equal(content[name], value) for name, value in official.items())
