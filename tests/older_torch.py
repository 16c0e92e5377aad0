"""Marks for tests of what some supported versions of torch lack; the reasons name it."""

import pytest

from mmsgformer.compat import TORCH


def needs_torch(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """Skip a test below a version of torch."""
    reason = f'torch {TORCH[0]}.{TORCH[1]} has no {what}: it came with torch {major}.{minor}'
    return pytest.mark.skipif((major, minor) > TORCH, reason=reason)


NEEDS_TRITON = needs_torch(2, 4, 'Triton 3, for the kernels and their interpreter')
