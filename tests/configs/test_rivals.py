"""Whole rivals by their libraries, from configs: the backbone alone differs, and maps fit the heads."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[2]
RIVALS = sorted((ROOT / 'configs' / 'rivals').glob('*.py'))
OURS = ROOT / 'configs' / 'camvid' / 'sgformer-s_upernet_camvid.py'


@pytest.mark.parametrize('path', RIVALS, ids=lambda path: path.stem)
def test_a_rival_takes_the_studys_images(path):
    """Crops of 256 in training; in the test a whole image, or windows where the size is fixed."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    if cfg.model.backbone.type == 'TimmBackbone':
        pytest.importorskip('timm')
    model = MODELS.build(cfg.model).eval()
    meta = [{'img_shape': (360, 480), 'ori_shape': (360, 480)}]
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 256, 256))
        assert [m.shape[1] for m in maps] == model.decode_head.in_channels
        assert [m.shape[2] for m in maps] == [64, 32, 16, 8]
        assert model.inference(torch.randn(1, 3, 360, 480), meta).shape == (1, 11, 360, 480)


@pytest.mark.parametrize('path', RIVALS, ids=lambda path: path.stem)
def test_only_the_backbone_differs(path):
    ours, other = Config.fromfile(OURS), Config.fromfile(path)
    for cfg in (ours, other):
        for key in ('backbone', 'test_cfg'):
            cfg.model.pop(key)
        for head in ('decode_head', 'auxiliary_head'):
            cfg.model[head].pop('in_channels')
        for key in ('custom_imports', 'peer', 'channels'):
            cfg.pop(key, None)
    assert ours.to_dict() == other.to_dict()
