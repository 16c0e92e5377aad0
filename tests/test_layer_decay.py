"""Layer-wise learning rate decay: every block its own depth, in mmpretrain's constructor too."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmsgformer import SGFormer

ROOT = Path(__file__).parents[1]


def test_depths_follow_the_blocks(tiny):
    """tiny has 2, 2, 4, 1 blocks: depths 1-9, the stem at 0, heads at 10."""
    backbone = SGFormer(arch=tiny)
    for name, depth in {
        'stem.conv1.weight': 0,
        'pos_embed': 0,
        'stages.0.blocks.0.norm1.weight': 1,
        'stages.0.norm.bias': 2,
        'stages.1.downsample.conv1.weight': 3,
        'stages.2.blocks.3.attn.q.weight': 8,
        'stages.2.norm.weight': 8,
        'stages.3.downsample.norm3.bias': 9,
        'stages.3.blocks.0.ffn.fc1.weight': 9,
    }.items():
        assert backbone.get_layer_depth(name) == (depth, 11)
        assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 11)
    assert backbone.get_layer_depth('head.fc.weight', 'backbone.') == (10, 11)
    assert {backbone.get_layer_depth(name)[0] for name, _ in backbone.named_parameters()} == set(range(10))


def test_mmpretrain_decays_the_rate_by_depth(tiny):
    cfg = Config.fromfile(ROOT / 'configs/imagenet/sgformer-s_8xb128_in1k.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build({**cfg.model, 'backbone': {**cfg.model.backbone, 'arch': tiny}, 'head': None})
    cfg.optim_wrapper.constructor = 'LearningRateDecayOptimWrapperConstructor'
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = 0.5
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = {group['param_name']: group['lr'] for group in groups}
    assert rates['backbone.pos_embed'] == pytest.approx(1e-3 * 0.5**10)
    assert rates['backbone.stages.3.blocks.0.attn.qkv.weight'] == pytest.approx(1e-3 * 0.5)
    assert len(rates) == len(list(model.parameters()))
