"""Matrix products with weights, by oneDNN on those CPUs where that is much quicker.

torch leaves float32 products to MKL and convolutions to oneDNN. On AMD's processors with AVX-512 MKL is
slower, on Zen 5 by half; elsewhere the two are about equal. oneDNN's product is an operator of torch too,
made for torch.compile.
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mmsgformer.compat import is_autocast_enabled, is_compiling


def amd_family_with_avx512() -> int:
    """The family of an AMD processor with AVX-512: 25 is Zen 4, 26 Zen 5; 0 for any other processor."""
    if not torch.backends.cpu.get_cpu_capability().startswith('AVX512'):
        return 0
    try:
        processor = Path('/proc/cpuinfo').read_text()
    except OSError:  # not Linux
        return 0
    family = re.search(r'^cpu family\s*: (\d+)$', processor, re.M)
    return int(family[1]) if family and 'AuthenticAMD' in processor else 0


_ONEDNN_IS_QUICKER = torch.backends.mkldnn.is_available() and amd_family_with_avx512() > 0


class Linear(nn.Linear):
    """torch's linear layer, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x (..., C), weight (C', C) and bias (C',) -> (..., C')."""
    if not onednn_pays(x, weight):
        return F.linear(x, weight, bias)
    rows = _OneDNNLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], -1)


def onednn_pays(x: Tensor, weight: Tensor) -> bool:
    """Plain float32 on such a CPU, and nobody records the operators."""
    return (
        _ONEDNN_IS_QUICKER
        and not is_compiling()
        and x.device.type == weight.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not is_autocast_enabled('cpu')
        and not torch.jit.is_tracing()
    )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, C) @ weight (C', C)^T + bias -> (N, C'), by oneDNN, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Products by `linear` again, so that there are second derivatives.
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grad_x = linear(grad, weight.t()) if need_x else None
        grad_bias = grad.sum(dim=0) if need_bias else None
        if not need_weight:
            return grad_x, None, grad_bias
        # Of the product and its transpose the one with fewer rows is faster.
        if grad.shape[1] <= x.shape[1]:
            return grad_x, linear(grad.t(), x.t()), grad_bias
        return grad_x, linear(x.t(), grad.t()).t(), grad_bias
