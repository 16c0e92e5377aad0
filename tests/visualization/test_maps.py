"""What is shown is what the network computes: maps, token allocation; and looking changes nothing."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from tolerances import assert_official

from mmsgformer import SGFormer
from mmsgformer.checkpoint.names import official_to_ours
from mmsgformer.visualization.drawing import seen_part
from mmsgformer.visualization.maps import significance_maps, token_allocation

GOLDEN = Path(__file__).parents[1] / 'golden'


def test_maps_agree_with_the_official_code(tiny, official, draw_golden):
    golden = np.load(GOLDEN / 'official_tiny_224.npz')
    backbone = SGFormer(tiny).double()
    exact = {name: draw_golden(name, value.shape) for name, value in official.items()}
    backbone.load_state_dict(official_to_ours(exact))
    images = draw_golden('image224x224', (len(golden['logits']), 3, 224, 224))
    maps = significance_maps(backbone, images)
    expected = [name for name in golden if name.startswith('significance')]
    assert [f'significance_stage{m.stage}_block{m.block}' for m in maps] == sorted(expected)
    for m in maps:
        array = golden[f'significance_stage{m.stage}_block{m.block}']
        assert m.values.dtype == torch.float32
        assert_official(m.values, array)


def test_looking_changes_nothing(tiny):
    backbone = SGFormer(tiny, drop_path_rate=0.5, frozen_stages=1)
    modes = {name: module.training for name, module in backbone.named_modules()}
    images = torch.randn(1, 3, 64, 96)
    torch.manual_seed(0)
    before = backbone(images)
    maps = significance_maps(backbone, images)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(before, backbone(images), strict=True))
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    assert not any(module._forward_hooks for module in backbone.modules())
    assert [m.values.shape for m in maps] == [(1, 16, 24), (1, 8, 12), (1, 4, 6), (1, 4, 6)]


def test_no_hooks_stay_after_an_error(tiny):
    backbone = SGFormer(tiny)
    with pytest.raises(ValueError, match='SGFormer takes images'):
        significance_maps(backbone, torch.randn(1, 3, 8, 8))
    assert not any(module._forward_hooks for module in backbone.modules())
    assert backbone.training


@pytest.mark.parametrize(
    ('stage', 'shares'),
    [(0, {196: 0.25, 56: 0.5, 28: 0.25}), (1, {49: 0.25, 14: 0.5, 7: 0.25}), (2, {2: 0.5, 1: 0.5})],
)
def test_the_most_significant_tokens_stay_finest(stage, shares):
    significance = torch.rand(2, 8, 10, generator=torch.Generator().manual_seed(0))
    lengths = token_allocation(significance, stage)
    assert lengths.shape == significance.shape
    for values, merged in zip(significance.flatten(1), lengths.flatten(1), strict=True):
        assert {int(n): (merged == n).float().mean().item() for n in merged.unique()} == shares
        sorted_lengths = merged[values.argsort()].tolist()
        assert sorted_lengths == sorted(sorted_lengths, reverse=True)


@pytest.mark.parametrize(('height', 'width'), [(120, 200), (200, 120), (160, 160)])
@pytest.mark.parametrize('crop', [[], [{'type': 'CenterCrop', 'crop_size': 56}]], ids=['whole', 'cropped'])
def test_what_is_shown_is_what_a_classifier_saw(height, width, crop, tmp_path):
    """Resized as its pipeline does, the part that is shown is the network's input."""
    import mmpretrain.datasets  # noqa: F401  registers the pipeline

    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    steps = [
        {'type': 'LoadImageFromFile'},
        {'type': 'ResizeEdge', 'scale': 64},
        *crop,
        {'type': 'PackInputs'},
    ]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        packed = Compose(steps)({'img_path': str(tmp_path / 'image.png')})
    seen = packed['inputs'].permute(1, 2, 0).numpy()
    shown = seen_part(image, packed['data_samples'])
    assert abs(shown.shape[0] / shown.shape[1] - seen.shape[0] / seen.shape[1]) < 0.02
    shown = cv2.resize(shown, seen.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(shown.astype(float) - seen).mean() < 6
