"""Token-aware pooling: the official module's numbers, and its place in a block."""

import pytest
import torch
from mixers.golden import check
from tolerances import OPERATOR, assert_close
from torch import Tensor, nn

from mmsgformer import SGFormer, mixers
from mmsgformer.mixers.tap import TokenAwarePooling
from mmsgformer.sgformer import Block


class AsMixer(nn.Module):
    """The layer with a mixer's signature."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = TokenAwarePooling(16)

    def forward(self, x: Tensor, significance: None) -> tuple[Tensor, None]:
        return self.tap(x), significance


def test_agrees_with_the_official_module():
    """With the BatchNorm at its initial statistics, as there."""

    def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        ours = {f'tap.{name}': value for name, value in state_dict.items()}
        return {**ours, 'tap.proj.1.running_var': torch.ones(4)}

    check('tap', AsMixer(), from_official)


def test_pools_what_the_mixer_sees_and_not_the_shortcut():
    torch.manual_seed(0)
    mixer = mixers.build('hornet', 16, 2)
    block = Block(16, mixer, 0.0, 0.0, recompute_ffn=True, tap=True).double().eval()
    x = torch.randn(2, 9, 11, 16, dtype=torch.float64)
    x_mixed = x + mixer(block.norm1(block.tap(x)), None)[0]
    expected = x_mixed + block.ffn(block.norm2(x_mixed))
    assert_close(block(x, None)[0].detach(), expected.detach(), OPERATOR[torch.float64].forward)


@pytest.mark.parametrize('name', sorted(mixers.MIXERS.module_dict))
def test_stands_before_every_mixer(name):
    """Every block has one, all its weights learn, and without it no name of it is in the state dict."""
    model = SGFormer('t', mixer=dict(type=name, tap=True), drop_path_rate=0.0)
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 70))).backward()
    taps = [module for module in model.modules() if isinstance(module, TokenAwarePooling)]
    assert len(taps) == sum(model.depths)
    assert all(p.grad.isfinite().all() and p.grad.any() for tap in taps for p in tap.parameters())
    assert not any('tap' in key for key in SGFormer('t', mixer=name).state_dict())


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norm_eval_freezes_its_statistics(norm_eval):
    model = SGFormer('t', mixer=dict(type='hornet', tap=True), norm_eval=norm_eval).train()
    model(torch.randn(2, 3, 32, 32))
    means = [value for key, value in model.state_dict().items() if key.endswith('running_mean')]
    assert means
    assert all(mean.any() != norm_eval for mean in means)
