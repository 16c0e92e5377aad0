"""The attention diversification loss in trainings: by itself, and in each framework's Runner."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmsgformer import SGFormer
from mmsgformer.attention import FullAttention, HybridScaleAttention
from mmsgformer.cli import base_parser, load_config
from mmsgformer.engine import AttentionDiversificationHook
from mmsgformer.mixers.adl import diversification_loss

ROOT = Path(__file__).parents[2]
CONFIGS = [
    'mask-rcnn_sgformer-tiny_fpn_shapes.py',
    'sgformer-tiny_upernet_shapes.py',
    'sgformer-tiny_shapes.py',
]


def focus(backbone: SGFormer) -> None:
    """Make attention uneven enough to cost something, as it is not in an untrained network."""
    for layer in backbone.modules():
        if isinstance(layer, FullAttention):
            nn.init.normal_(layer.qkv.weight)
        elif isinstance(layer, HybridScaleAttention):
            nn.init.normal_(layer.local_qkv.weight)


class Model(BaseModel):
    """The smallest model with a backbone."""

    def __init__(self, **arguments: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = SGFormer('t', drop_path_rate=0.0, **arguments)
        focus(self.backbone)

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> object:
        outputs = self.backbone(inputs)
        return {'loss': outputs[-1].square().mean()} if mode == 'loss' else outputs


def hooked(model: Model, weight: float = 1.0) -> AttentionDiversificationHook:
    hook = AttentionDiversificationHook(weight)
    hook.before_train(SimpleNamespace(model=model))
    return hook


@pytest.mark.parametrize('with_cp', [False, True])
def test_is_the_loss_of_what_the_layers_attend_to(with_cp):
    """Value and gradient, in two steps, with gradient checkpointing too."""
    model = Model(with_cp=with_cp).train()
    hooked(model, weight=2.0)
    image = torch.randn(2, 3, 70, 100)
    for _ in range(2):
        losses = model(image, mode='loss')
        gradient = torch.autograd.grad(losses['loss_adl'], model.backbone.stem.conv1.weight)[0]

    plain, inputs = Model().train(), []
    for layer in plain.backbone.modules():
        if isinstance(layer, (FullAttention, HybridScaleAttention)):
            layer.register_forward_hook(lambda layer, args, _: inputs.append((layer, args[0])))
    plain(image)
    # Stage 3's map of 5 x 7 tokens has no whole window.
    seen = [layer.attention_weights(x) for layer, x in inputs if min(x.shape[1:3]) >= 7 or x.shape[1] == 3]
    expected = 2 * diversification_loss(seen)
    assert len(seen) < len(inputs)
    assert expected > 0.1
    torch.testing.assert_close(losses['loss_adl'], expected)
    expected = torch.autograd.grad(expected, plain.backbone.stem.conv1.weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_the_weights_are_those_of_the_attention():
    """Weights times values, joined, is what the layers attend to."""
    x = torch.randn(2, 14, 7, 16)
    full = FullAttention(16, 4)
    v = full.qkv(x).chunk(3, dim=-1)[2].flatten(1, 2).unflatten(-1, (4, 4)).transpose(1, 2)
    attended = (full.attention_weights(x) @ v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(full.project(attended, x), full(x)[0])

    hybrid = HybridScaleAttention(16, 4, 2)
    windows = hybrid.local_qkv(x).chunk(3, dim=-1)[2].reshape(4, 49, 2, 4).transpose(1, 2)
    attended = (hybrid.attention_weights(x) @ windows).transpose(1, 2).reshape(2, 14, 7, 8)
    torch.testing.assert_close(attended, hybrid._attend_locally(x)[0])


def test_only_losses_of_training_change():
    model = Model()
    hook, image = hooked(model), torch.randn(1, 3, 64, 64)
    assert set(model.train()(image, mode='loss')) == {'loss', 'loss_adl'}
    assert isinstance(model(image), tuple)
    assert set(model.eval()(image, mode='loss')) == {'loss'}
    hook.after_train(None)
    assert set(model.train()(image, mode='loss')) == {'loss'}


def test_a_mixer_without_attention_is_refused():
    with pytest.raises(ValueError, match='whose mixer has an explicit attention'):
        hooked(Model(mixer='hornet'))


class Watch(Hook):
    """Keeps what every iteration logs."""

    def __init__(self) -> None:
        self.logged = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: object, outputs: dict) -> None:
        self.logged.append({name: float(value.detach()) for name, value in outputs.items() if 'loss' in name})


@pytest.mark.parametrize('config', CONFIGS)
def test_takes_part_in_the_training_of_each_framework(config, shapes, tmp_path, monkeypatch):
    """What is logged adds up to what the optimizer is given."""
    arguments = [
        str(ROOT / 'configs' / 'demo' / config),
        '--data-root',
        str(shapes),
        '--work-dir',
        str(tmp_path),
    ]
    cfg = load_config(base_parser('').parse_args(arguments), splits=('train',))
    cfg.merge_from_dict(
        {
            'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2),
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.batch_size': 2,
            'default_hooks.checkpoint.by_epoch': False,
            'model.backbone.arch': 't',
            'custom_hooks': [
                *cfg.get('custom_hooks', []),
                dict(type='AttentionDiversificationHook', weight=1e3),
            ],
        }
    )
    cfg.experiment_name = cfg.visualizer.name = tmp_path.name
    for split in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{split}_{part}'] = None
    totals, update = [], OptimWrapper.update_params
    monkeypatch.setattr(
        OptimWrapper, 'update_params', lambda self, loss: (totals.append(loss.item()), update(self, loss))
    )
    runner, watch = Runner.from_cfg(cfg), Watch()
    runner.register_hook(watch)
    focus(runner.model.backbone)
    runner.train()
    for total, logged in zip(totals, watch.logged, strict=True):
        if config in CONFIGS[:2]:  # a classifier's log has its own loss under this name, not the sum
            assert logged.pop('loss') == pytest.approx(total)
        assert logged['loss_adl'] > 1
        assert total == pytest.approx(sum(logged.values()), rel=1e-4)
