"""What every mixer promises: any size, images that do not notice each other, gradients, low precision."""

import pytest
import torch
from tolerances import OPERATOR, assert_close
from torch import Tensor

from mmsgformer.mixers import MIXERS, build

DIM, HEADS = 32, 4
# A mixer's stages and the two kinds of block differ.
EVERY = [
    (name, stage, block) for name in sorted(MIXERS.module_dict) for stage in range(4) for block in (0, 1)
]
SIZES = [(1, 1), (1, 70), (3, 2), *torch.randint(1, 71, (4, 2), generator=torch.manual_seed(0)).tolist()]


@pytest.fixture(params=EVERY, ids=lambda case: '{}-stage{}-block{}'.format(*case))
def mixer(request) -> torch.nn.Module:
    torch.manual_seed(0)
    name, stage, block = request.param
    return build(name, DIM, HEADS, stage, block).double()


def inputs(size: tuple[int, int], batch: int = 2) -> tuple[Tensor, Tensor]:
    """A map and a significance, float64."""
    return torch.randn(batch, *size, DIM, dtype=torch.float64), torch.rand(batch, *size, dtype=torch.float64)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_any_size_and_every_image_by_itself(mixer, size):
    x, significance = inputs(size)
    out, passed_on = mixer(x, significance)
    assert out.shape == x.shape
    assert passed_on is significance or 'HybridScale' in type(mixer).__name__
    for i in range(2):
        alone, _ = mixer(x[i : i + 1], significance[i : i + 1])
        assert_close(out[i : i + 1].detach(), alone.detach(), OPERATOR[torch.float64].forward)


def test_everything_has_a_gradient(mixer):
    x, significance = inputs((9, 16))
    out, _ = mixer(x.requires_grad_(), significance)
    (out * torch.randn_like(out)).sum().backward()
    for name, tensor in [('x', x), *mixer.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


@pytest.mark.parametrize('autocast', [False, True])
def test_low_precision_is_near(mixer, autocast):
    """In bfloat16, and in float32 under autocast. Where tokens are chosen, another choice may be as good."""
    x, significance = inputs((9, 16))
    expected, _ = mixer(x, significance)
    dtype = torch.float32 if autocast else torch.bfloat16
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out, _ = mixer.to(dtype)(x.to(dtype).requires_grad_(), significance.to(dtype))
    assert out.dtype == torch.bfloat16 or autocast
    assert out.isfinite().all()
    if not any(word in type(mixer).__name__ for word in ('Routing', 'SelfGuided')):
        assert_close(out.detach(), expected.detach(), 0.03)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())
