"""The attention diversification loss in a training of mmdet, mmseg or mmpretrain."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmsgformer.mixers.adl import diversification_loss
from mmsgformer.sgformer import SGFormer


@HOOKS.register_module()
class AttentionDiversificationHook(Hook):
    """Adds `loss_adl` to the losses: queries of one layer that all attend to the same few tokens cost.

    `custom_hooks=[dict(type='AttentionDiversificationHook')]` in a config. It takes part for every module of
    the backbone that has a method `attention_weights(x)`: the mixer's input (B, H, W, C) -> what the loss
    takes of a layer, (B, heads, N, N). SG-Former's full attention and windows have it, whose N is small, and
    the attention within groups of other mixers. The weights are computed once more for it.

    Args:
        weight: Of the loss, 1 in its paper.

    Raises:
        ValueError: Before training: there is no SGFormer with such a module.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.handles = []
        self.attention: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Have the backbone's attention and the model's losses pass by here."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        backbones = [module for module in model.modules() if isinstance(module, SGFormer)]
        layers = [m for backbone in backbones for m in backbone.modules() if hasattr(m, 'attention_weights')]
        if not layers:
            raise ValueError(
                'AttentionDiversificationHook needs an SGFormer whose mixer has an explicit attention: '
                'sgformer, swin, maxvit or davit, or one of yours with a method attention_weights'
            )
        self.handles = [layer.register_forward_hook(self._collect) for layer in layers]
        self.handles.append(model.register_forward_pre_hook(self._clear))
        self.handles.append(model.register_forward_hook(self._add_loss))

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        for handle in self.handles:
            handle.remove()

    def _clear(self, model: nn.Module, args: tuple) -> None:
        # Gradient checkpointing runs the layers again in the backward pass.
        self.attention.clear()

    def _collect(self, layer: nn.Module, args: tuple, output: object) -> None:
        if layer.training and torch.is_grad_enabled():
            self.attention.append(layer.attention_weights(args[0]))

    def _add_loss(self, model: nn.Module, args: tuple, output: object) -> object:
        """What a model gives in mode 'loss' is a dict."""
        # A map smaller than a window has no weights.
        seen = [weights for weights in self.attention if weights.numel()]
        if isinstance(output, dict) and seen:
            return {**output, 'loss_adl': self.weight * diversification_loss(seen)}
        return output
