"""Flow attention: the official module's numbers, and half precision over many tokens."""

from functools import partial

import pytest
import torch
from mixers.golden import check
from older_torch import needs_torch
from tolerances import assert_close

from mmsgformer import mixers


def test_agrees_with_the_official_module():
    check('flow', mixers.build('flow', 16, 2), partial(mixers.from_official, 'flow'))


@needs_torch(2, 4, 'autocast to float16 on a CPU')
@pytest.mark.parametrize('autocast', [False, True])
def test_sums_over_many_tokens_are_kept_in_float32(autocast):
    """They reach N d / 4, and N times the largest value: more than float16 holds."""
    torch.manual_seed(0)
    mixer = mixers.build('flow', 64, 2).double()
    torch.nn.init.constant_(mixer.qkv.bias, 5.0)
    x = torch.randn(1, 128, 128, 64, dtype=torch.float64)
    expected = mixer(x, None)[0]
    dtype = torch.float32 if autocast else torch.float16
    with torch.autocast('cpu', torch.float16, enabled=autocast):
        out = mixer.to(dtype)(x.to(dtype), None)[0]
    assert out.isfinite().all()
    assert_close(out.detach(), expected.detach(), 0.01)
