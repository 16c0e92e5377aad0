"""What a GPU would run, without one: fake CUDA tensors, and CUDA's autocast rules on a CPU.

Fake tensors have a device, a type and a shape but no numbers; operators on them check what a GPU's would:
that their inputs are on one device and of types that go together. Numbers come from the CPU, on which the
norms' float32, the difference between the two autocasts that matters here, is simulated.
"""

# ruff: noqa: E402  older torch versions lack some of it
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
from older_torch import NEEDS_TRITON, skip_module_below
from torch import Tensor, nn

skip_module_below(2, 4, 'fake GPUs that autograd takes')
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.library import Library
from torch.utils.checkpoint import GraphExecGroup

from mmsgformer import SGFormer
from mmsgformer.ops import attention_triton

ARCH = {'embed_dims': (32, 64, 128, 256), 'depths': (2, 2, 2, 1), 'num_heads': (2, 4, 8, 16)}
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture
def cuda_autocast(monkeypatch):
    """`torch.autocast('cuda')` switches itself off where there is no GPU: not here."""
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)


def in_float32(operator: Callable) -> Callable:
    """The operator as autocast runs those of its float32 list."""

    def run(*args: object, **kwargs: object) -> Tensor:
        with torch.autocast('cpu', enabled=False):
            return operator(*(x.float() if torch.is_tensor(x) else x for x in args), **kwargs)

    return run


@pytest.fixture
def norms_in_float32() -> Iterator[None]:
    """CPU autocast with the part of CUDA's float32 list that is met here: norms and the softmax.

    With norms in float32 the residual stream is float32 too, beside branches in half precision.
    """
    rules = Library('aten', 'IMPL')
    aten = torch.ops.aten
    for name, operator in [
        ('layer_norm', aten.layer_norm),
        ('group_norm', aten.group_norm),
        ('softmax.int', aten.softmax.int),
    ]:
        rules.impl(name, in_float32(operator), 'AutocastCPU')
    yield
    rules._destroy()


def backbone(drop: float = 0.0, **options: object) -> SGFormer:
    torch.manual_seed(0)
    return SGFormer(ARCH, drop_rate=drop, drop_path_rate=drop, **options)


def loss_of(maps: tuple[Tensor, ...]) -> Tensor:
    """The mean cubes: the maps are normalised, which makes their mean and mean square constants."""
    return sum(x.float().pow(3).mean() for x in maps)


def autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager:
    return torch.autocast(device, dtype) if dtype else nullcontext()


def record_dtypes(model: nn.Module) -> dict[str, list]:
    """From now on filled with the types of every module's inputs and outputs, by the module's name."""
    seen = {}

    def types(values) -> list:
        values = values if isinstance(values, tuple) else (values,)
        return [value.dtype for value in values if torch.is_tensor(value)]

    def record(name: str, _: nn.Module, inputs: tuple, outputs: Tensor | tuple) -> None:
        seen[name] = [types(inputs), types(outputs)]

    for name, module in model.named_modules():
        module.register_forward_hook(partial(record, name))
    return seen


def run_backward(loss: Tensor) -> None:
    """`loss.backward()` node by node: torch's engine asks the GPU's driver for streams, and none is there.

    As the engine does, gradients are summed, expanded dimensions summed up, and types cast; a gradient on
    another device than its tensor is an error.
    """
    pending, found = Counter(), [loss.grad_fn]
    for node in found:  # grows
        for following, _ in node.next_functions:
            if following is not None:
                found += [following] if following not in pending else []
                pending[following] += 1
    gradients: dict[Node, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        arrived = gradients.pop(node, {})
        inputs = [arrived.get(i) for i in range(len(node._input_metadata))]
        for i, (grad, expected) in enumerate(zip(inputs, node._input_metadata, strict=True)):
            if grad is not None:
                assert grad.device == expected.device, f'{node.name()}: a gradient on {grad.device}'
                inputs[i] = grad.sum_to_size(expected.shape).to(expected.dtype)
        if hasattr(node, 'variable'):  # a leaf
            leaf = node.variable
            leaf.grad = inputs[0] if leaf.grad is None else leaf.grad + inputs[0]
            continue
        results = (None,) * len(node.next_functions)
        if arrived:
            results = node.apply(*inputs) if isinstance(node, BackwardCFunction) else node(*inputs)
            results = results if isinstance(results, tuple) else (results,)
        # A Python function has a result more for an argument that is None: the last one, here.
        for (following, place), grad in zip(node.next_functions, results, strict=False):
            if following is None:
                continue
            if grad is not None:
                sums = gradients.setdefault(following, {})
                sums[place] = sums[place] + grad if place in sums else grad
            pending[following] -= 1
            if not pending[following]:
                ready.append(following)


def training_step(
    model: SGFormer, size: tuple[int, int], dtype: torch.dtype | None
) -> tuple[dict[str, list], tuple[Tensor, ...]]:
    """A forward and a backward pass of two fake images: the modules' types, and the maps."""
    with FakeTensorMode(allow_non_fake_inputs=True):  # the weights are real until `to` has made them fake
        model.to('cuda')
        dtypes = record_dtypes(model)
        image = torch.randn(2, 3, *size, device='cuda')
        with autocast('cuda', dtype):
            maps = model(image)
        with GraphExecGroup():  # outside of torch's engine: compute each block only once again
            run_backward(loss_of(maps))
    return dtypes, maps


def test_the_node_by_node_backward_is_torchs():
    """On real numbers, with and without checkpointing."""
    for with_cp in (False, True):
        model, image = backbone(with_cp=with_cp), torch.randn(1, 3, 75, 64)
        loss_of(model(image)).backward()
        expected = [p.grad for p in model.parameters()]
        model.zero_grad()
        with GraphExecGroup():
            run_backward(loss_of(model(image)))
        for parameter, grad in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad)


# Whole windows and the position embedding as it is; windows with padding and a resized embedding.
@pytest.mark.parametrize(('size', 'with_cp'), [((224, 224), False), ((75, 133), True)])
@pytest.mark.parametrize('dtype', [None, *HALVES])
@pytest.mark.parametrize('backend', ['auto', 'chunked'])
def test_a_training_step_on_a_gpu(size, with_cp, dtype, backend, cuda_autocast):
    """All of it is on the GPU, and of the type it should be of. 'auto' takes the Triton kernels."""
    model = backbone(0.1, with_cp=with_cp, attn_backend=backend)
    dtypes, maps = training_step(model, size, dtype)
    assert [x.device.type for x in maps] == ['cuda'] * 4
    assert [x.dtype for x in maps] == [torch.float32] * 4
    for stage in range(3):  # branches in half precision, the residual stream and the significance not
        block = f'stages.{stage}.blocks.0'
        assert dtypes[f'{block}.attn'] == [[torch.float32], [dtype or torch.float32, torch.float32]]
        assert dtypes[block] == [[torch.float32], [torch.float32, torch.float32]]
    for name, parameter in model.named_parameters():
        assert parameter.grad.device.type == 'cuda', name
        assert parameter.grad.dtype == parameter.dtype == torch.float32, name


@NEEDS_TRITON
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize(('kernel', 'dtype'), [('flash', torch.bfloat16), ('efficient', None)])
def test_torchs_attention_tells_its_log_sum_exp(kernel, dtype, with_cp, cuda_autocast, monkeypatch):
    """Of every query; without a GPU torch says that neither of its kernels can be used."""
    for name in ('flash', 'efficient'):
        monkeypatch.setattr(
            f'torch.backends.cuda.can_use_{name}_attention', lambda _, can=name == kernel: can
        )
    told = []
    means = attention_triton.triton_column_means
    monkeypatch.setattr(
        attention_triton,
        'triton_column_means',
        lambda q, k, valid, lse, fall: (told.append((lse, q)), means(q, k, valid, lse, fall))[1],
    )
    model = backbone(with_cp=with_cp)
    training_step(model, (75, 133), dtype)
    assert len(told) == 3 * (1 + with_cp)  # one block of a stage needs significance; windows have a kernel
    for lse, q in told:
        assert lse.shape == q.shape[:3]
        assert lse.dtype == torch.float32
        assert q.dtype == (dtype or torch.float32)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('dtype', HALVES)
def test_the_simulation_has_the_types_of_a_gpu(with_cp, dtype, cuda_autocast, norms_in_float32):
    """At the entry and exit of every module."""
    seen = []
    for device, mode in (('cuda', FakeTensorMode(allow_non_fake_inputs=True)), ('cpu', nullcontext())):
        model = backbone(with_cp=with_cp)
        with mode:
            model.to(device)
            seen.append(record_dtypes(model))
            with autocast(device, dtype):
                model(torch.randn(1, 3, 75, 133, device=device))
    assert seen[0] == seen[1]
    assert len(seen[0]) > 100


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_training_with_a_gpus_mix_of_types(with_cp, dtype, tolerance, norms_in_float32):
    """A float32 residual stream beside branches in half precision: float32's maps and gradients, nearly."""
    image = torch.randn(1, 3, 75, 133)
    results = []
    for kind in (None, dtype):
        model = backbone(with_cp=with_cp)
        with autocast('cpu', kind):
            maps = model(image)
        loss_of(maps).backward()
        results.append(
            [
                torch.cat([t.flatten() for t in tensors])
                for tensors in (maps, [p.grad for p in model.parameters()])
            ]
        )
    for exact, ours in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < tolerance * exact.norm()
