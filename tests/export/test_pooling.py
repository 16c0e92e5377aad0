"""Adaptive pooling by matrices is torch's."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('onnxscript')
from mmsgformer.export.pooling import AdaptiveAveragePool


@pytest.mark.parametrize('size', [(1, 1), (2, 5), (7, 7), (12, 30), (25, 42)])
@pytest.mark.parametrize('new_size', [1, 2, 3, 6])
def test_pooling_is_torchs(size, new_size):
    """Also of maps that are smaller than the result."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    pooled = AdaptiveAveragePool(new_size)(x)
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x, new_size), rtol=1e-5, atol=1e-6)
