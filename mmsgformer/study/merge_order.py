"""The ablation of the merging: SG-Former whose tokens are merged in an order other than significance's."""

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmsgformer.attention import SelfGuidedAttention
from mmsgformer.sgformer import SGFormer

# Significance (B, H, W) -> what the tokens are sorted by instead, ascending; where it is equal, row by row.
ORDERS = {'random': torch.rand_like, 'raster': torch.zeros_like, 'reversed': torch.neg}


@MODELS.register_module()
class ReorderedSGFormer(SGFormer):
    """`SGFormer` whose self-guided blocks merge tokens in another order; all else is equal.

    A subclass with hooks, since an experiment is no reason for an argument, or a branch, in the backbone.

    Args:
        merge_order: 'random' draws anew in every forward, from torch's generator; 'raster' goes row by row;
            'reversed' merges the most significant tokens in the longest runs.
        kwargs: `SGFormer`'s arguments.

    Raises:
        ValueError: The order is unknown, or there is no block that merges tokens.
    """

    def __init__(self, merge_order: str, **kwargs) -> None:
        super().__init__(**kwargs)
        if merge_order not in ORDERS:
            raise ValueError(f'merge_order must be one of {list(ORDERS)}, got {merge_order!r}')
        keys = ORDERS[merge_order]

        def reorder(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, significance = inputs
            return x, keys(significance)

        self_guided = [module for module in self.modules() if isinstance(module, SelfGuidedAttention)]
        if not self_guided:
            raise ValueError(f'with the mixer {self.mixer["type"]!r} no block is self-guided')
        for module in self_guided:
            module.register_forward_pre_hook(reorder)
