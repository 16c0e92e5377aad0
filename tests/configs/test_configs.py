"""The configs: they parse, build, inherit, and hold the recipes."""

import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmsgformer.release.model_index import read_models

ROOT = Path(__file__).parents[2]
LEAVES = sorted(
    p for folder in ('imagenet', 'coco', 'ade20k') for p in (ROOT / 'configs' / folder).glob('*.py')
)
PARAMETERS = {model.name: model.parameters for model in read_models(ROOT)}
SWAP = sorted((ROOT / 'configs' / 'swap').glob('*.py'))
DEMO = sorted((ROOT / 'configs' / 'demo').glob('*.py'))


def build(cfg: Config) -> torch.nn.Module:
    """The config's model. Its weights are not drawn: they do not matter here, and that takes the time."""
    init_default_scope(cfg.default_scope)
    draws = ('trunc_normal_', 'normal_', 'uniform_', 'kaiming_uniform_', 'xavier_uniform_')
    with mock.patch.multiple('torch.nn.init', **{name: lambda x, *_, **__: x for name in draws}):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('path', LEAVES + DEMO, ids=lambda p: p.stem)
def test_builds_and_agrees_with_its_name(path):
    cfg = Config.fromfile(path)
    model = build(cfg)
    backbone = model.backbone
    assert type(backbone).__name__ == 'SGFormer'
    if cfg.default_scope == 'mmpretrain':
        assert (backbone.out_indices, model.head.in_channels) == ((3,), backbone.embed_dims[-1])
    else:
        neck = model.neck if hasattr(model, 'neck') else model.decode_head
        assert tuple(neck.in_channels) == backbone.embed_dims
    for arch, (dims, depths) in {'s': (64, 16), 'm': (64, 28), 'b': (96, 24), 'tiny': (32, 4)}.items():
        if f'sgformer-{arch}_' in path.name:
            assert (backbone.embed_dims[0], backbone.depths[2]) == (dims, depths)
    if path in LEAVES:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[path.stem]
        assert_decay_spares_norms_biases_and_position_embedding(model, cfg)


def assert_decay_spares_norms_biases_and_position_embedding(model: torch.nn.Module, cfg: Config) -> None:
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decayed = {id(p) for group in optimizer.param_groups if group['weight_decay'] for p in group['params']}
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            exempt = isinstance(module, norms) or name in ('bias', 'pos_embed')
            assert (id(parameter) in decayed) != exempt, f'{prefix}.{name}'


@pytest.mark.parametrize('path', LEAVES + SWAP, ids=lambda p: p.stem)
def test_a_leaf_says_only_what_differs(path):
    assert len(path.read_text().splitlines()) <= 10


@pytest.mark.parametrize(
    ('pattern', 'lr', 'weight_decay', 'length'),
    [
        ('imagenet/*', 1e-3, 0.05, 300),
        ('coco/mask-rcnn*_1x_*', 1e-4, 0.05, 12),
        ('coco/retinanet*_1x_*', 1e-4, 0.05, 12),
        ('coco/mask-rcnn*_ms-3x_*', 1e-4, 0.05, 36),
        ('coco/cascade-mask-rcnn*_ms-3x_*', 1e-4, 0.05, 36),
        ('ade20k/*upernet*', 6e-5, 0.01, 160000),
        ('ade20k/*semantic-fpn*', 1e-4, 1e-4, 80000),
    ],
)
def test_recipe(pattern, lr, weight_decay, length):
    paths = list((ROOT / 'configs').glob(f'{pattern}.py'))
    assert len(paths) == 3
    for path in paths:
        cfg = Config.fromfile(path)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', lr, weight_decay)
        assert cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) == length
        assert cfg.param_scheduler[-1].end == length
        base = 1024 if 'imagenet' in pattern else 16
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == base


@pytest.mark.parametrize(('arch', 'drop_path_rate'), [('s', 0.1), ('m', 0.2), ('b', 0.4)])
def test_classification_recipe(arch, drop_path_rate):
    """The numbers of the paper's ImageNet recipe that `test_recipe` does not hold."""
    cfg = Config.fromfile(ROOT / f'configs/imagenet/sgformer-{arch}_8xb128_in1k.py')
    assert cfg.model.backbone.drop_path_rate == drop_path_rate
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.begin, cosine.end, cosine.eta_min) == (20, 20, 300, 1e-5)
    (ema,) = cfg.custom_hooks
    assert (ema.type, 1 - ema.momentum) == ('EMAHook', pytest.approx(0.99992, abs=1e-9))
    assert cfg.model.head.loss.label_smooth_val == 0.1
    assert {a.type: a.alpha for a in cfg.model.train_cfg.augments} == {'Mixup': 0.8, 'CutMix': 1.0}
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert (steps['RandAugment'].magnitude_level, steps['RandAugment'].magnitude_std) == (9, 0.5)
    assert steps['RandomErasing'].erase_prob == 0.25


def test_the_cascades_proposals_are_mmdets():
    mmdet = pytest.importorskip('mmdet')
    base = Path(mmdet.__path__[0], '.mim/configs/_base_/models/cascade-mask-rcnn_r50_fpn.py')
    ours = Config.fromfile(ROOT / 'configs/_base_/models/cascade-mask-rcnn_sgformer_fpn.py').model
    theirs = Config.fromfile(base).model
    del theirs.train_cfg.rpn['debug']
    assert ours.rpn_head == theirs.rpn_head
    assert ours.train_cfg.rpn == theirs.train_cfg.rpn
    assert ours.train_cfg.rpn_proposal == theirs.train_cfg.rpn_proposal


def test_swap_into_an_mmdet_config(tmp_path):
    """The README's example, as it stands there, with the optimizer of the guide's."""
    (example,) = re.findall(r'```python\n(_base_ = .*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    config = tmp_path / 'swapped.py'
    config.write_text(example)
    cfg = Config.fromfile(config)
    model = build(cfg)
    assert type(model.backbone).__name__ == 'SGFormer'
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert (type(optimizer).__name__, optimizer.defaults['lr']) == ('AdamW', 1e-4)


def test_the_readmes_training_starts_from_imagenet_weights():
    """Its command for COCO, as docs/training.md and docs/checkpoints.md write it."""
    pages = [(ROOT / name).read_text() for name in ('README.md', 'docs/training.md', 'docs/checkpoints.md')]
    pattern = r'model\.backbone\.init_cfg\.type=\S+ model\.backbone\.init_cfg\.checkpoint=[\w.-]+'
    (options,) = {found for page in pages for found in re.findall(pattern, page)}
    assert all(options in page for page in pages)
    cfg = Config.fromfile(ROOT / 'configs/coco/mask-rcnn_sgformer-s_fpn_1x_coco.py')
    cfg.merge_from_dict(dict(option.split('=') for option in options.split()))
    assert build(cfg).backbone.init_cfg == {'type': 'Pretrained', 'checkpoint': 'SG-Former-S.pth'}
