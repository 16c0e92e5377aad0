"""Marks for tests of what some supported versions of torch lack; the reasons name it."""

import pytest

from mmsgformer.compat import TORCH


def needs_torch(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """Skip a test below a version of torch."""
    return pytest.mark.skipif((major, minor) > TORCH, reason=_reason(major, minor, what))


def skip_module_below(major: int, minor: int, what: str) -> None:
    """Skip the module that calls this, before it imports what is not there."""
    if (major, minor) > TORCH:
        pytest.skip(_reason(major, minor, what), allow_module_level=True)


def _reason(major: int, minor: int, what: str) -> str:
    return f'torch {TORCH[0]}.{TORCH[1]} has no {what}: it came with torch {major}.{minor}'


NEEDS_SAFE_READING = needs_torch(2, 6, 'safe reading of a .pth')
NEEDS_TRITON = needs_torch(2, 10, 'Triton 3.6, whose interpreter has products in float64')
