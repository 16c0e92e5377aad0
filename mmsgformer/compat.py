"""What older versions of torch, from 2.1 on, lack of what this package uses; on newer ones torch's own."""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd.function import FunctionCtx

TORCH = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])

# Until 2.5 a .pth can run code in spite of weights_only=True (CVE-2025-32434).
READS_PTH_SAFELY = TORCH >= (2, 6)
# The kernels are written for Triton 3.4 and later; torch 2.8 brought it.
HAS_TRITON = TORCH >= (2, 8) and importlib.util.find_spec('triton') is not None
# `torch.export` and its way to ONNX, for lengths that are not known.
EXPORTS_ANY_SIZE = TORCH >= (2, 10)
# FlopCounterMode tells the modules apart, whatever their inputs are.
COUNTS_BY_MODULE = TORCH >= (2, 4)
# The gradient of torch's fused attention on a CPU, with a mask.
HAS_FUSED_CPU_ATTENTION = TORCH >= (2, 3)


class _Operator:
    """A `torch.library.custom_op` by what torch 2.1 has: kernels in its dispatcher."""

    def __init__(self, name: str, function: Callable, schema: str) -> None:
        namespace, self._name = name.split('::')
        self._library = torch.library.Library(namespace, 'FRAGMENT')
        self._library.define(self._name + schema)
        self._library.impl(self._name, function, 'CompositeExplicitAutograd')
        self._operator = getattr(getattr(torch.ops, namespace), self._name).default

    def __call__(self, *arguments: object) -> object:
        return self._operator(*arguments)

    def register_fake(self, function: Callable) -> Callable:
        """Say the outputs' shapes for tensors without numbers."""
        self._library.impl(self._name, function, 'Meta')
        return function

    def register_autograd(self, backward: Callable, *, setup_context: Callable | None = None) -> None:
        """Give the operator a gradient."""
        operator = self._operator

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: FunctionCtx, *inputs: object) -> object:
                with torch._C._AutoDispatchBelowAutograd():
                    output = operator(*inputs)
                if setup_context is not None:
                    setup_context(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx: FunctionCtx, *grads: object) -> object:
                return backward(ctx, *grads)

        self._library.impl(self._name, Function.apply, 'Autograd')


def custom_op(name: str, schema: str) -> Callable:
    """`torch.library.custom_op` (2.4) for an operator that changes none of its inputs.

    Args:
        name: 'mmsgformer::NAME'.
        schema: Its arguments and results, as '(Tensor x) -> Tensor'.
    """
    if TORCH >= (2, 4):
        return torch.library.custom_op(name, mutates_args=(), schema=schema)
    return lambda function: _Operator(name, function, schema)


def register_flop_formula(operator: object) -> Callable:
    """torch's decorator that tells FlopCounterMode what an operator costs; before 2.6 it did not reach it."""
    from torch.utils import flop_counter

    if TORCH >= (2, 6):
        return flop_counter.register_flop_formula(operator)
    if TORCH >= (2, 2):
        return lambda function: flop_counter.flop_registry.setdefault(
            operator, flop_counter.shape_wrapper(function)
        )
    return lambda function: flop_counter.flop_mapping.setdefault(operator, function)


def safe_globals(allowed: list) -> AbstractContextManager:
    """`torch.serialization.safe_globals` (2.5); nothing where no .pth is read safely."""
    return torch.serialization.safe_globals(allowed) if READS_PTH_SAFELY else nullcontext()


def is_autocast_enabled(device_type: str) -> bool:
    """`torch.is_autocast_enabled` (2.4) for a type of device."""
    if TORCH >= (2, 4):
        return torch.is_autocast_enabled(device_type)
    return {'cpu': torch.is_autocast_cpu_enabled, 'cuda': torch.is_autocast_enabled}[device_type]()


def is_compiling() -> bool:
    """`torch.compiler.is_compiling` (2.3)."""
    return torch.compiler.is_compiling() if TORCH >= (2, 3) else torch._dynamo.is_compiling()


def is_exporting() -> bool:
    """`torch.compiler.is_exporting` (2.7); nothing is exported with an older one."""
    return TORCH >= (2, 7) and torch.compiler.is_exporting()


def as_number(length: int) -> int:
    """A length that is exported as a number of its own, not as the formula that it comes from.

    torch's exporter carries the formulas of all lengths along and compares them, which soon takes minutes.
    """
    if isinstance(length, int) or not is_exporting():
        return length
    number = torch.scalar_tensor(length, dtype=torch.int64).item()
    torch._check(number >= 1)
    return number
