"""Loading into a backbone and into whole models: every layout, all or nothing, never silent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from safetensors.torch import save_file
from torch import nn

from mmsgformer import SGFormer
from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.checkpoint.load import load_backbone, prepare_for_model
from mmsgformer.checkpoint.names import official_to_ours

GOLDEN = Path(__file__).parents[1] / 'golden'


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
    """In float64, where rounding does not change the order of tokens."""
    torch.save({name: value.double() for name, value in official.items()}, tmp_path / 'weights.pth')
    at_224, at_320 = (SGFormer(tiny, pretrain_img_size=side).double() for side in (224, 320))
    for model in (at_224, at_320):
        load_backbone(model.eval(), tmp_path / 'weights.pth')
    image = torch.randn(1, 3, 320, 320, dtype=torch.float64)
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
            r'holds no SG-Former weights; it starts with: student\.',
        ),
        (lambda w: {'state_dict': {}}, 'holds no SG-Former weights'),
    ],
)
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_what_does_not_fit_is_an_error_and_loads_nothing(change, message, suffix, official, tiny, tmp_path):
    path, content = tmp_path / f'weights.{suffix}', change(official)
    if suffix == 'pth':
        torch.save(content, path)
    else:
        save_file(content.get('state_dict', content), path)
    model = SGFormer(tiny)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_backbone(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_partial_loads_what_fits(official, tiny, tmp_path):
    changed = {**without(official, 'norm4.bias'), 'extra': torch.ones(1), 'norm1.weight': torch.ones(5)}
    del changed['block1.0.attn.kv2.bias']  # a part of a stacked tensor
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
    looks_like = {'tiny': 'T'}.get(file, file.upper())
    message = f'looks like SG-Former-{looks_like};.* builds SG-Former-{config.upper()}'
    with pytest.raises(CheckpointError, match=message):
        load_backbone(SGFormer(config), tmp_path / 'weights.pth')


def test_a_variant_without_a_name_is_described(tiny, tmp_path):
    torch.save(SGFormer(tiny | {'depths': (1, 1, 1, 1)}).state_dict(), tmp_path / 'weights.pth')
    message = r'looks like an SG-Former of embed_dims \(32, 64, 128, 256\) and depths \(1, 1, 1, 1\);'
    with pytest.raises(CheckpointError, match=message):
        load_backbone(SGFormer(tiny), tmp_path / 'weights.pth')


@pytest.fixture
def log_lines(monkeypatch) -> list[str]:
    """What is logged while a test runs."""
    lines: list[str] = []
    monkeypatch.setattr('mmsgformer.checkpoint.load.print_log', lambda line, *_: lines.append(line))
    return lines


def test_the_log_says_what_share_was_loaded(official, tiny, tmp_path, log_lines):
    torch.save({'state_dict_ema': official}, tmp_path / 'weights.pth')
    load_backbone(SGFormer(tiny), tmp_path / 'weights.pth')
    (line,) = log_lines
    assert "100.0% of the backbone's parameters (269 of 269 tensors) loaded from state_dict_ema" in line
    assert line.endswith("the file's classifier head is not used")


@pytest.mark.parametrize(
    ('saved', 'own', 'is_warned'),
    [((64, 64), (32, 128), True), ((32, 128), (32, 128), True), ((64, 64), (64, 64), False)],
)
@pytest.mark.parametrize('whole', [False, True])
def test_a_grid_that_cannot_be_known_is_warned_of(whole, saved, own, is_warned, tiny, tmp_path, log_lines):
    """A file holds the number of places alone."""
    file = {'state_dict': SGFormer(tiny, pretrain_img_size=saved).state_dict()}
    model = Classifier(tiny)
    model.backbone = SGFormer(tiny, pretrain_img_size=own)
    if whole:
        prepare_for_model(file, model, 'weights.pth', strict=False)
    else:
        torch.save(file, tmp_path / 'weights.pth')
        load_backbone(model.backbone, tmp_path / 'weights.pth')
    warned = [line for line in log_lines if 'taken as 8 rows x 32 columns' in line]
    assert len(warned) == is_warned


@pytest.mark.parametrize('init_cfg', [{}, {'partial': True}, {'type': PretrainedInit}])
def test_pretrained_stands_alone_in_a_list(init_cfg, official, tiny, tmp_path):
    torch.save(official, tmp_path / 'weights.pth')
    pretrained = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'weights.pth'), **init_cfg}
    model = SGFormer(tiny, init_cfg=[pretrained])
    model.init_weights()
    assert torch.equal(model.stem.conv1.weight, official['patch_embed1.conv.0.c.weight'])
    with pytest.raises(ValueError, match='one of several'):
        SGFormer(tiny, init_cfg=[pretrained, {'type': 'Normal', 'layer': 'Linear'}]).init_weights()


class Classifier(nn.Module):
    """The parameter names of mmpretrain's ImageClassifier."""

    def __init__(self, arch: dict, num_classes: int = 1000) -> None:
        super().__init__()
        self.backbone = SGFormer(arch)
        self.head = nn.Module()
        self.head.fc = nn.Linear(256, num_classes)


@pytest.mark.parametrize('layout', ['bare', 'state_dict', 'EMA preferred', 'DDP', 'timm EMA of DDP'])
def test_an_official_file_becomes_a_classifiers(layout, official, tiny):
    model, checkpoint = Classifier(tiny), dict(LAYOUTS[layout](official))
    prepare_for_model(checkpoint, model, 'weights.pth', strict=True)
    model.load_state_dict(checkpoint['state_dict'])
    assert torch.equal(model.head.fc.weight, official['head.weight'])
    assert torch.equal(model.backbone.stages[0].norm.weight, official['norm1.weight'])


def test_a_whole_model_keeps_the_format_versions_of_its_layers(tiny):
    """torch writes them beside the names; layers of older formats are translated by them."""
    model = Classifier(tiny)
    checkpoint = {'state_dict': model.state_dict()}
    versions = checkpoint['state_dict']._metadata
    prepare_for_model(checkpoint, model, 'weights.pth', strict=True)
    assert checkpoint['state_dict']._metadata == versions
    assert checkpoint['state_dict'].keys() == model.state_dict().keys()


def test_another_head_is_reported_when_training_and_refused_when_testing(official, tiny, log_lines):
    model, checkpoint = Classifier(tiny, num_classes=7), dict(official)
    with pytest.raises(CheckpointError, match=r'does not hold the whole model: 2 .*\(head\.fc\.bias'):
        prepare_for_model(checkpoint, model, 'weights.pth', strict=True)
    prepare_for_model(checkpoint, model, 'weights.pth', strict=False)
    assert set(checkpoint['state_dict']) == {name for name in model.state_dict() if 'head' not in name}
    assert 'outside the backbone 0 of 2 tensors' in log_lines[-1]
    assert 'head.fc.bias, head.fc.weight stay as initialised' in log_lines[-1]


def test_a_damaged_backbone_is_refused_whatever_the_purpose(official, tiny):
    checkpoint = without(official, 'norm4.bias')
    with pytest.raises(CheckpointError, match=r'1 missing \(stages\.3\.norm\.bias\)'):
        prepare_for_model(checkpoint, Classifier(tiny), 'weights.pth', strict=False)
    assert 'state_dict' not in checkpoint


def test_a_whole_model_loads_in_part_when_asked(official, tiny):
    model, checkpoint = Classifier(tiny, num_classes=7), without(official, 'norm4.bias')
    prepare_for_model(checkpoint, model, 'weights.pth', strict=True, partial=True)
    absent = {'backbone.stages.3.norm.bias', 'head.fc.weight', 'head.fc.bias'}
    assert set(checkpoint['state_dict']) == set(model.state_dict()) - absent
