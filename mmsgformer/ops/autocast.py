"""Autocast, known and left for a while."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mmsgformer.compat import is_autocast_enabled


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for a tensor's device; the meta device has none."""
    return x.device.type != 'meta' and is_autocast_enabled(x.device.type)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A `with` block in which operators on x's device compute in the types of their inputs."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision -> float32; other types as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
