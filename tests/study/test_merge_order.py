"""The ablation's orders: what each merges, against the merging itself, and that nothing else changes."""

import pytest
import torch

from mmsgformer import SGFormer
from mmsgformer.attention import SelfGuidedAttention
from mmsgformer.study.merge_order import ReorderedSGFormer


@pytest.fixture(scope='module')
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(order: str) -> ReorderedSGFormer:
    torch.manual_seed(0)
    return ReorderedSGFormer(order, arch='t').eval()


def merged_by(model: SGFormer, image: torch.Tensor, key) -> tuple[torch.Tensor, ...]:
    """The plain network's outputs if its self-guided attention were given `key(significance)`."""
    torch.manual_seed(0)
    plain = SGFormer('t').eval()
    plain.load_state_dict(model.state_dict())
    for module in plain.modules():
        if isinstance(module, SelfGuidedAttention):
            forward = module.forward
            module.forward = lambda x, s, forward=forward: forward(x, key(s))
    return plain(image)


@pytest.mark.parametrize(
    ('order', 'key'),
    [('raster', lambda s: torch.full_like(s, 0.5)), ('reversed', lambda s: -2 * s)],
)
@torch.no_grad()
def test_the_order_is_that_of(order, key, image):
    """'raster' merges by a constant, 'reversed' by minus the significance; neither as the plain network."""
    model = build(order)
    outs = model(image)
    for out, expected, plain in zip(
        outs, merged_by(model, image, key), merged_by(model, image, lambda s: s), strict=True
    ):
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(out, plain, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_random_draws_anew_in_every_forward_from_torchs_generator(image):
    model = build('random')
    first, second = model(image)[-1], model(image)[-1]
    assert not torch.allclose(first, second, rtol=1e-3, atol=1e-3)
    torch.manual_seed(7)
    third = model(image)[-1]
    torch.manual_seed(7)
    assert torch.equal(third, model(image)[-1])


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match=r"one of \['random', 'raster', 'reversed'\], got 'sorted'"):
        ReorderedSGFormer('sorted', arch='t')


def test_with_gradient_checkpointing_the_random_order_is_the_same_in_both_forwards(image):
    """Else the gradients would be those of another order."""
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = ReorderedSGFormer('random', arch='t', with_cp=with_cp, drop_path_rate=0.0)
        torch.manual_seed(1)
        sum((out**2)[:, :, ::2].sum() for out in model(image)).backward()
        gradients.append(model.stem.conv1.weight.grad)
    torch.testing.assert_close(*gradients)
