"""A mixer beside its formula written with loops: outputs and gradients."""

from collections.abc import Callable

import torch
from tolerances import OPERATOR, assert_close
from torch import Tensor, nn


def check_formula(mixer: nn.Module, formula: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> None:
    """Assert that `mixer(x, None)` is `formula(mixer, x)`, and so are all gradients.

    Args:
        mixer: In float64.
        formula: Uses the mixer's parameters.
        x: (B, H, W, C), float64.
    """
    x = x.requires_grad_()
    outputs = mixer(x, None)[0], formula(mixer, x)
    probe = torch.randn_like(x)
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad((out * probe).sum(), [x, *mixer.parameters()])])
        for out in outputs
    ]
    assert_close(*(out.detach() for out in outputs), OPERATOR[torch.float64].forward, 'output')
    assert_close(*gradients, OPERATOR[torch.float64].backward, 'gradients')
