"""What the official modules of the mixers gave in float64, and the comparison with it.

tests/golden/mixers/NAME.json says which module it was, its arguments, its weights and the formula by which
they were drawn; NAME.npz has the output and the input's gradient at two sizes.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / 'golden' / 'mixers'
HEADS = 2
# The arrays are stored in float32, the sums in the JSON in float64.
STORED = 1e-6
SUMS = 1e-9


def normal(name: str, shape: Sequence[int]) -> Tensor:
    """Normal numbers (float64) that depend on the name alone."""
    n = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(n))


def draw(name: str, shape: Sequence[int]) -> Tensor:
    """The weight of this official name and shape, float64."""
    n, last = normal(name, shape), name.rpartition('.')[2]
    if last == 'weight':
        return 1 + 0.1 * n if len(shape) == 1 else n / np.sqrt(np.prod(shape[1:]))
    return (0.1 if last == 'bias' else 0.2) * n


def facts(case: str) -> dict:
    """The JSON of a case."""
    return json.loads((FOLDER / f'{case}.json').read_text())


def official_weights(case: str) -> dict[str, Tensor]:
    """The official module's state dict, with zeros for its buffers and constants."""
    meta = facts(case)
    left_out = {**meta['buffers'], **meta['constants']}
    return {
        **{name: draw(name, shape) for name, shape in meta['weights'].items()},
        **{name: torch.zeros(shape) for name, shape in left_out.items()},
    }


def check(
    case: str, module: nn.Module, from_official: Callable[[dict], dict], sizes: Sequence[str] | None = None
) -> None:
    """Assert that a mixer gives what the official module gave: output, gradients of input and parameters.

    Args:
        case: Name of the golden data.
        module: Ours, not yet with the weights.
        from_official: Official state dict -> ours. Linear in every weight: gradients are compared through it.
        sizes: Those to compare, as '14x14'; all by default.
    """
    meta = facts(case)
    arrays = np.load(FOLDER / f'{case}.npz')
    module = module.double().eval()
    module.load_state_dict(from_official(official_weights(case)))
    for size in sizes or meta['sizes']:
        shape = (meta['batch'], *map(int, size.split('x')), meta['dim'])
        x = normal(f'input{size}', shape).requires_grad_()
        module.zero_grad()
        out, _ = module(x, None)
        (out * normal(f'probe{size}', shape)).mean().backward()
        _assert_close(out, arrays[f'output{size}'], f'output {size}')
        _assert_close(x.grad, arrays[f'input_grad{size}'], f'input gradient {size}')
        _check_parameter_gradients(meta, module, from_official, size)


def _check_parameter_gradients(
    meta: dict, module: nn.Module, from_official: Callable[[dict], dict], size: str
) -> None:
    """Every official parameter's gradient by its norm and by its product with fixed random numbers.

    A linear mapping of names carries a tangent v to ours, and <gradient, v> is the same on both sides.
    """
    checks, grads = meta['checks'][size], {n: p.grad for n, p in module.named_parameters()}
    dots = checks['parameter_grad_dot_normal']
    left_out = {name: torch.zeros(shape) for name, shape in {**meta['buffers'], **meta['constants']}.items()}
    for name, expected in dots.items():
        tangents = {other: torch.zeros(shape).double() for other, shape in meta['weights'].items()}
        tangents[name] = normal(f'probe:{name}', meta['weights'][name])
        ours = from_official({**tangents, **left_out})
        product = sum((grads[key] * value).sum() for key, value in ours.items() if key in grads)
        scale = checks['parameter_grad_l2'][name] * tangents[name].norm() + 1e-12
        assert abs(product - expected) <= SUMS * scale, (name, size, float(product), expected)
        # Those of our parameters that this one becomes, each counted once.
        norm = sum((grads[key] * value.ne(0)).square().sum() for key, value in ours.items() if key in grads)
        assert abs(norm.sqrt() - checks['parameter_grad_l2'][name]) <= SUMS * scale, (name, size)


def _assert_close(ours: Tensor, golden: np.ndarray, name: str) -> None:
    error = np.abs(ours.detach().numpy() - golden).max() / np.abs(golden).max()
    assert error <= STORED, (name, error)
