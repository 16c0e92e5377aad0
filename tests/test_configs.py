"""The configs: they parse, build, inherit, and hold the recipes."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[1]
LEAVES = sorted(p for folder in ('coco', 'ade20k') for p in (ROOT / 'configs' / folder).glob('*.py'))
DEMO = sorted((ROOT / 'configs' / 'demo').glob('*.py'))


def build(cfg: Config) -> torch.nn.Module:
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('path', LEAVES + DEMO, ids=lambda p: p.stem)
def test_builds_and_agrees_with_its_name(path):
    cfg = Config.fromfile(path)
    model = build(cfg)
    backbone = model.backbone
    assert type(backbone).__name__ == 'SGFormer'
    neck = model.neck if cfg.default_scope == 'mmdet' else model.decode_head
    assert tuple(neck.in_channels) == backbone.embed_dims
    for arch, (dims, depths) in {'s': (64, 16), 'm': (64, 28), 'b': (96, 24), 'tiny': (32, 4)}.items():
        if f'sgformer-{arch}_' in path.name:
            assert (backbone.embed_dims[0], backbone.depths[2]) == (dims, depths)


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_a_leaf_says_only_what_differs(path):
    assert len(path.read_text().splitlines()) <= 10


@pytest.mark.parametrize(
    ('pattern', 'lr', 'weight_decay', 'length'),
    [('coco/*_1x_*', 1e-4, 0.05, 12), ('ade20k/*', 6e-5, 0.01, 160000)],
)
def test_recipe(pattern, lr, weight_decay, length):
    paths = list((ROOT / 'configs').glob(pattern))
    assert len(paths) == 3
    for path in paths:
        cfg = Config.fromfile(path)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', lr, weight_decay)
        assert cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) == length
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize('path', [p for p in LEAVES if 'sgformer-s' in p.name], ids=lambda p: p.stem)
def test_no_weight_decay_on_norms_biases_and_position_embedding(path):
    cfg = Config.fromfile(path)
    model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decayed = {id(p) for group in optimizer.param_groups if group['weight_decay'] for p in group['params']}
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            exempt = isinstance(module, norms) or name in ('bias', 'pos_embed')
            assert (id(parameter) in decayed) != exempt, f'{prefix}.{name}'


def test_swap_into_an_mmdet_config(tmp_path):
    """The README's example, as it stands there."""
    (example,) = re.findall(r'```python\n(_base_ = .*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    config = tmp_path / 'swapped.py'
    config.write_text(example)
    cfg = Config.fromfile(config)
    assert type(build(cfg).backbone).__name__ == 'SGFormer'
