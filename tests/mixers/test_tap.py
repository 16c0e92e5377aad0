"""Token-aware pooling: the official module's numbers."""

import torch
from mixers.golden import check
from torch import Tensor, nn

from mmsgformer.mixers.tap import TokenAwarePooling


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
