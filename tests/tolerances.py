"""How closely numbers have to agree: one table, by type, forward and backward."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """The largest error, as a share of the norm of what is expected."""

    forward: float
    backward: float


# One operator against its formula in float64.
OPERATOR = {
    torch.float64: Tolerance(1e-12, 1e-12),
    torch.float32: Tolerance(2e-6, 5e-6),
    torch.float16: Tolerance(2e-3, 2e-3),
    torch.bfloat16: Tolerance(1e-2, 1e-2),
}
# The whole network. Of two tokens that are nearly as significant the one or the other comes first, which the
# gradients notice more.
NETWORK = {
    torch.float64: Tolerance(1e-10, 1e-10),
    torch.float32: Tolerance(5e-4, 1e-2),
    torch.float16: Tolerance(2e-2, 5e-2),
    torch.bfloat16: Tolerance(5e-2, 2e-1),
}
# What the official code gave, absolute.
OFFICIAL = 1e-5


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, name: object = '') -> None:
    """Equal up to an error that is small beside the norm of what is expected, or beside 1 where that is 0."""
    expected = expected.double()
    error = (ours.double() - expected).norm() / (expected.norm() if expected.any() else 1)
    assert error <= tolerance, (name, float(error))


def assert_official(ours: Tensor, golden: np.ndarray, tolerance: float = OFFICIAL) -> None:
    """What tests/golden holds: of large arrays every 11th entry."""
    ours = ours.detach().numpy()
    if ours.shape != golden.shape:
        ours, golden = ours.flatten()[:: -(-ours.size // golden.size)], golden.flatten()
    np.testing.assert_allclose(ours, golden, rtol=0, atol=tolerance)
