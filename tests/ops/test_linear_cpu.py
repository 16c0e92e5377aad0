"""Products by oneDNN against torch's own, in float64."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tolerances import OPERATOR, assert_close

from mmsgformer.ops import Linear, linear, linear_cpu
from mmsgformer.ops.linear_cpu import onednn_pays

SHAPES = [((5, 7), 3), ((2, 6, 4, 16), 64), ((3, 40, 64), 16), ((1, 1, 8), 8)]

HAS_ONEDNN = torch.backends.mkldnn.is_available()


@pytest.fixture(autouse=True)
def on_a_cpu_where_it_pays(monkeypatch):
    """Whatever this one is."""
    monkeypatch.setattr(linear_cpu, '_ONEDNN_IS_QUICKER', HAS_ONEDNN)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('shape', 'out'), SHAPES)
@pytest.mark.parametrize('layout', ['contiguous', 'channels first', 'every other channel'])
def test_outputs_and_gradients(shape, out, bias, layout):
    torch.manual_seed(0)
    x = torch.randn(shape)
    if layout == 'channels first':
        x = x.movedim(-1, 1).contiguous().movedim(1, -1)
    elif layout == 'every other channel':
        x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    inputs = [x, torch.randn(out, shape[-1]), torch.randn(out) if bias else None]
    probe = torch.randn(*shape[:-1], out)
    results = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        leaves = [t if t is None else t.detach().to(dtype).requires_grad_() for t in inputs]
        y = function(*leaves)
        assert y.shape == probe.shape
        results.append([y, *torch.autograd.grad(y, [t for t in leaves if t is not None], probe.to(dtype))])
    for ours, exact in zip(*results, strict=True):
        assert_close(ours, exact, OPERATOR[torch.float32].backward)


def test_it_is_used_for_plain_float32_on_a_cpu_only():
    x, weight = torch.randn(4, 8), torch.randn(2, 8)
    assert onednn_pays(x, weight) == HAS_ONEDNN
    assert not onednn_pays(x.double(), weight.double())
    assert not onednn_pays(x.to('meta'), weight.to('meta'))
    assert not onednn_pays(x[:0], weight)
    with torch.autocast('cpu', torch.bfloat16):
        assert not onednn_pays(x, weight)
        assert linear(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('capability', 'vendor', 'family', 'expected'),
    [
        ('AVX512', 'AuthenticAMD', 26, 26),
        ('AVX512', 'AuthenticAMD', 25, 25),
        ('AVX512', 'GenuineIntel', 6, 0),
        ('AVX2', 'AuthenticAMD', 25, 0),
        ('AVX512', None, None, 0),
    ],
)
def test_amds_processors_with_avx512_are_told(capability, vendor, family, expected, monkeypatch):
    """Those on which oneDNN was measured to be quicker."""

    def read(path: Path) -> str:
        if vendor is None:
            raise FileNotFoundError(path)
        return f'vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\n'

    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    monkeypatch.setattr(Path, 'read_text', read)
    assert linear_cpu.amd_family_with_avx512() == expected


def test_second_derivatives():
    """Of a linear layer's output by its input and weight, against torch's own."""
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    loss = linear(x, weight).pow(3).sum()
    grad_x, grad_weight = torch.autograd.grad(loss, (x, weight), create_graph=True)
    found = torch.autograd.grad(grad_x.square().sum() + grad_weight.square().sum(), (x, weight))
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    loss = F.linear(exact_x, exact_weight).pow(3).sum()
    grad_x, grad_weight = torch.autograd.grad(loss, (exact_x, exact_weight), create_graph=True)
    exact = torch.autograd.grad(grad_x.square().sum() + grad_weight.square().sum(), (exact_x, exact_weight))
    for ours, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)


def test_only_what_needs_a_gradient_gets_one():
    layer = Linear(8, 2)
    layer.weight.requires_grad_(False)
    layer(torch.randn(4, 8)).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((2,), 4.0))
