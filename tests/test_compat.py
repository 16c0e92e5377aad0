"""What stands in for newer torch's functions does what they do, tested on every version."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from mmsgformer import compat
from mmsgformer.checkpoint.files import TRUST_VARIABLE, CheckpointError, read_checkpoint


@pytest.fixture(scope='module')
def scaled_exp() -> compat._Operator:
    """exp(x) * factor, with a gradient, as it is made where torch has no custom_op."""

    def forward(x: Tensor, factor: float = 2.0, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.exp() * factor, x.sum(dim=0)

    operator = compat._Operator(
        'mmsgformer_test::scaled_exp',
        forward,
        '(Tensor x, float factor=2.0, Tensor? mask=None) -> (Tensor, Tensor)',
    )

    @operator.register_fake
    def _(x: Tensor, factor: float = 2.0, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), x.new_empty(x.shape[1:])

    def save(ctx: object, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(output[0])

    def backward(ctx: object, grad: Tensor, *_: Tensor) -> tuple:
        return grad * ctx.saved_tensors[0], None, None

    operator.register_autograd(backward, setup_context=save)
    return operator


def test_an_operator_computes_and_has_its_gradient(scaled_exp):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    out, sums = scaled_exp(x, 3.0, None)
    torch.testing.assert_close(out, 3 * x.exp())
    torch.testing.assert_close(sums, x.sum(dim=0))
    assert torch.autograd.gradcheck(lambda x: scaled_exp(x, 3.0, None)[0], x)
    with torch.no_grad():
        assert not scaled_exp(x, 3.0, None)[0].requires_grad


def test_an_operator_has_shapes_without_numbers(scaled_exp):
    mode = FakeTensorMode()
    for x in (torch.empty(3, 4, device='meta'), mode.from_tensor(torch.ones(3, 4))):
        with mode if x.device.type == 'cpu' else torch.no_grad():
            out, sums = scaled_exp(x, 3.0, None)
        assert (out.shape, sums.shape) == ((3, 4), (4,))
        assert out.device == x.device


def test_autocast_is_seen():
    assert not compat.is_autocast_enabled('cpu')
    with torch.autocast('cpu', torch.bfloat16):
        assert compat.is_autocast_enabled('cpu')


def test_compiling_is_seen():
    def function(x: Tensor) -> Tensor:
        return x + 1 if compat.is_compiling() else x - 1

    assert torch.compile(function, backend='eager')(torch.zeros(1)) == 1
    assert function(torch.zeros(1)) == -1


@pytest.mark.parametrize('torch_version', [(2, 1), (2, 5)])
def test_below_2_6_a_pth_is_read_only_when_it_is_trusted(torch_version, tmp_path, monkeypatch):
    """There weights_only=True can be got round; a .safetensors file needs no trust."""
    safetensors = pytest.importorskip('safetensors.torch')
    monkeypatch.setattr('mmsgformer.checkpoint.files.READS_PTH_SAFELY', False)
    monkeypatch.setattr('mmsgformer.checkpoint.files.TORCH', torch_version)
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    torch.save({'a': torch.ones(2)}, tmp_path / 'a.pth')
    safetensors.save_file({'a': torch.ones(2)}, tmp_path / 'a.safetensors')
    assert read_checkpoint(tmp_path / 'a.safetensors')['a'].sum() == 2
    major, minor = torch_version
    with pytest.raises(
        CheckpointError, match=rf'a\.pth was not .* torch {major}\.{minor} .*{TRUST_VARIABLE}=1'
    ):
        read_checkpoint(tmp_path / 'a.pth')
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    assert read_checkpoint(tmp_path / 'a.pth')['a'].sum() == 2
