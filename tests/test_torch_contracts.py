"""The backbone under torch's own machinery: hooks, wrappers, deferred initialisation, compiling."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from older_torch import needs_torch
from torch import Tensor, nn

from mmsgformer import SGFormer
from mmsgformer.ops import attention_cpu, attention_with_column_means, dot_product_attention
from mmsgformer.sgformer import DepthwiseConvGELU, bicubic_matrix

SIZE = (64, 75)


@pytest.fixture(scope='module')
def small() -> dict:
    """An architecture with every kind of block."""
    return {'embed_dims': (16, 32, 64, 128), 'depths': (2, 2, 2, 1), 'num_heads': (2, 2, 4, 4)}


@pytest.fixture
def model(small) -> SGFormer:
    torch.manual_seed(0)
    return SGFormer(small, drop_path_rate=0.0)


def loss_of(outs: tuple[Tensor, ...]) -> Tensor:
    """A loss that depends on every map."""
    return sum((out * torch.linspace(-1, 1, out.numel()).view_as(out).to(out)).sum() for out in outs)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('kernel', [True, False])
def test_hooks_see_what_modules_return_and_nothing_overwrites_it(model, training, kernel, monkeypatch):
    """On every submodule: each fires, and what it recorded still has its values after the forward pass."""
    if not kernel:
        monkeypatch.setattr(attention_cpu, 'is_available', lambda: False)
    seen = {}

    def record(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            for i, value in enumerate((*inputs, *(output if isinstance(output, tuple) else (output,)))):
                if torch.is_tensor(value):
                    seen[name, i] = (value, value.detach().clone())

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(record(name))
    with torch.set_grad_enabled(training):
        model.train(training)(torch.randn(2, 3, *SIZE))
    fired = {name for name, _ in seen}
    silent = [
        name
        for name, module in model.named_modules()
        if name not in fired and not isinstance(module, nn.ModuleList)
    ]
    assert not silent
    changed = [key for key, (value, copied) in seen.items() if not torch.equal(value, copied)]
    assert not changed


@pytest.mark.parametrize('with_cp', [False, True])
def test_backward_hooks_on_every_module(small, with_cp):
    """They fire, and leave the gradients as they are."""
    torch.manual_seed(0)
    model = SGFormer(small, drop_path_rate=0.0, with_cp=with_cp).double()
    image = torch.randn(1, 3, *SIZE, dtype=torch.float64, requires_grad=True)
    loss_of(model(image)).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    fired, modules = set(), {n for n, m in model.named_modules() if not isinstance(m, nn.ModuleList)}
    for name in modules:
        module = model.get_submodule(name)
        module.register_full_backward_hook(lambda *_, name=name: fired.add(name))
    loss_of(model(image)).backward()
    for ours, plain in zip([p.grad for p in model.parameters()], expected, strict=True):
        assert (ours - plain).norm() <= 1e-9 * plain.norm()
    assert fired == modules


def test_changing_an_output_in_place_changes_what_follows(model):
    """What a hook returns instead of a module's output is used."""
    image = torch.randn(1, 3, *SIZE)
    plain = model.eval()(image)[3]
    for name in ('stages.0.blocks.0.ffn.conv', 'stages.1.downsample.conv1', 'stages.0.blocks.0.attn.reduce'):
        handle = model.get_submodule(name).register_forward_hook(lambda *args: args[2] * 0)
        assert not torch.allclose(model(image)[3], plain), name
        handle.remove()


@pytest.mark.parametrize('way', ['moved', 'built'])
def test_deferred_initialisation(small, model, way):
    """A model on the meta device that gets memory and a strict state dict computes what the original does."""
    state = copy.deepcopy(model.state_dict())
    if way == 'moved':
        deferred = SGFormer(small).to('meta')
    else:
        with torch.device('meta'):
            deferred = SGFormer(small)
    deferred = deferred.to_empty(device='cpu').eval()
    for buffer in deferred.buffers():
        buffer.fill_(torch.nan)
    deferred.load_state_dict(state, strict=True)
    image = torch.randn(1, 3, *SIZE)
    assert all(map(torch.equal, deferred(image), model.eval()(image)))


def test_a_data_parallel_replica_runs(model):
    """As nn.DataParallel makes them: modules whose weights are plain tensors, no parameters."""
    image = torch.randn(1, 3, *SIZE)
    expected = model.eval()(image)
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module.named_children():
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1)
    assert not list(replicas[model].parameters())
    assert all(map(torch.equal, replicas[model](image), expected))


@pytest.mark.parametrize(
    'dtype',
    [
        torch.float32,
        torch.float64,
        torch.bfloat16,
        pytest.param(torch.float16, marks=needs_torch(2, 3, 'float16 convolution on a CPU')),
    ],
)
@pytest.mark.parametrize('autocast', [False, True])
def test_the_depthwise_convolution_adds_its_input_exactly(dtype, autocast):
    """No gain error per channel: in a low precision 1 + weight would be rounded."""
    torch.manual_seed(0)
    conv = DepthwiseConvGELU(256).to(dtype)
    nn.init.normal_(conv.weight, std=3e-3)
    x = torch.randn(16, 256, 24, 24, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast and dtype == torch.float32):
        out = conv.plus_input(x).double()
        assert (conv(x).double() - nn.functional.gelu(out)).norm() < 1e-2 * out.norm()
    exact = x.double() + nn.functional.conv2d(
        x.double(), conv.weight.double(), conv.bias.double(), padding=1, groups=256
    )
    gain = (out * exact).sum((0, 2, 3)) / exact.square().sum((0, 2, 3))
    assert (gain - 1).abs().max() < 4e-4


@pytest.mark.parametrize(('size', 'new_size'), [(56, 200), (56, 9), (14, 14), (7, 50)])
def test_the_bicubic_matrix_is_the_bicubic_resize(size, new_size):
    torch.manual_seed(0)
    grid = torch.randn(1, 3, size, 12, dtype=torch.float64)
    expected = nn.functional.interpolate(grid, size=(new_size, 20), mode='bicubic', align_corners=False)
    resized = bicubic_matrix(size, new_size, grid) @ grid @ bicubic_matrix(12, 20, grid).mT
    torch.testing.assert_close(resized, expected, rtol=0, atol=5e-15)


def test_trains_deterministically_at_any_size(model):
    """No operator on the way that torch has no deterministic gradient for, as bicubic's on CUDA."""
    names = set()

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(function.name())
            return function(*args, **(kwargs or {}))

    with Names():
        loss_of(model(torch.randn(1, 3, *SIZE))).backward()
    assert not [name for name in names if 'upsample' in name and 'backward' in name]


@needs_torch(2, 3, 'torch.nn.attention')
def test_second_derivatives_with_the_reference(small):
    """A gradient penalty: its gradient against a numerical derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    model = SGFormer(small, drop_path_rate=0.0, attn_backend='reference').double()
    image = torch.randn(1, 3, 32, 40, dtype=torch.float64, requires_grad=True)
    weight = model.stages[0].blocks[0].attn.proj.weight

    def penalty() -> Tensor:
        return torch.autograd.grad(loss_of(model(image)), image, create_graph=True)[0].square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(penalty(), weight)[0]
        direction = torch.randn_like(weight)
        step = 1e-6
        with torch.no_grad():
            weight += step * direction
        above = penalty()
        with torch.no_grad():
            weight -= 2 * step * direction
        below = penalty()
    numerical = (above - below) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numerical.detach(), rtol=1e-4, atol=0)


@needs_torch(2, 3, 'torch.nn.attention')
def test_second_derivatives_in_float32(small, monkeypatch):
    """Where the operator in C++ would be quicker, which has none."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    monkeypatch.setenv('MMSGFORMER_CPU_KERNEL', '1')
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    model = SGFormer(small, attn_backend='reference')
    with sdpa_kernel(SDPBackend.MATH):
        grad = torch.autograd.grad(loss_of(model(image)), image, create_graph=True)[0]
        grad.square().sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad.any()


@pytest.mark.parametrize('kernel', ['0', '1'])
def test_forward_mode_derivatives_are_right_or_refused(kernel, monkeypatch):
    """Of the reference they are right; no operator takes them for zero."""
    monkeypatch.setenv('MMSGFORMER_CPU_KERNEL', kernel)
    x, tangent = torch.randn(2, 1, 2, 9, 8)

    def derivative(function: Callable) -> Tensor:
        return torch.func.jvp(lambda x: function(x, x, x), (x,), (tangent,))[1]

    found = derivative(lambda *qkv: attention_with_column_means(*qkv, backend='reference')[0])
    step = 1e-5 * tangent.double()
    above, below = (F.scaled_dot_product_attention(y, y, y) for y in (x + step, x - step))
    torch.testing.assert_close(found.double(), (above - below) / 2e-5, rtol=1e-3, atol=1e-4)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative in the backend 'chunked'"):
        derivative(lambda *qkv: attention_with_column_means(*qkv)[0])
    with pytest.raises(NotImplementedError):  # torch's own refusal
        derivative(dot_product_attention)


def test_second_derivatives_elsewhere_say_what_to_do(model):
    """Not torch's bare 'not implemented'."""
    image = torch.randn(1, 3, 32, 40, requires_grad=True)
    attention = model.stages[0].blocks[0].attn
    x = torch.randn(1, 9, 9, 16, requires_grad=True)
    grad = torch.autograd.grad(attention(x)[0].square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"attn_backend='reference'.*sdpa_kernel\(SDPBackend.MATH\)"):
        grad.square().sum().backward()
    assert image.grad is None


def test_tools_find_the_linear_layers(model):
    """Quantisation and adapters look for torch's own class and replace it."""
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    layers = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert len(layers) > 20
    replaced = {name for name, m in quantised.named_modules() if type(m).__module__.startswith('torch.ao')}
    assert set(layers) <= replaced
