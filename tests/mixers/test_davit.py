"""Windows and channels: the official module's numbers; windows of any size; channels in half precision."""

from functools import partial

import pytest
import torch
from mixers.golden import check
from mixers.oracle import check_formula
from mixers.pairs import attend_by_pairs, every_pair
from older_torch import needs_torch
from tolerances import assert_close
from torch import Tensor

from mmsgformer import mixers
from mmsgformer.mixers.groups import GroupMixer


@pytest.mark.parametrize(('case', 'block'), [('davit_window', 0), ('davit_channel', 1)])
def test_agrees_with_the_official_module(case, block):
    arguments = {'block': block, 'mask_padding': False}
    check(case, mixers.build('davit', 16, 2, **arguments), partial(mixers.from_official, 'davit'))


def by_the_formula(mixer: GroupMixer, x: Tensor) -> Tensor:
    seen = every_pair(x, lambda yi, xi, yj, xj: (yi // 7, xi // 7) == (yj // 7, xj // 7))
    return attend_by_pairs(mixer, x, seen)


@pytest.mark.parametrize('size', [(7, 14), (1, 1), (1, 9), (3, 2), (8, 15)], ids=str)
def test_windows_hide_their_padding(size):
    torch.manual_seed(0)
    mixer = mixers.build('davit', 12, 3).double()
    torch.nn.init.normal_(mixer.qkv.bias)
    check_formula(mixer, by_the_formula, torch.randn(2, *size, 12, dtype=torch.float64))


@needs_torch(2, 4, 'autocast to float16 on a CPU')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_the_logits_of_many_tokens_are_kept_in_float32(dtype, autocast):
    """They are sums: too large for float16, and bfloat16 would round them to multiples of 4 and more."""
    torch.manual_seed(0)
    mixer = mixers.build('davit', 8, 2, block=1).double()
    torch.nn.init.normal_(mixer.qkv.bias, mean=3.0)
    x = torch.randn(1, 100, 100, 8, dtype=torch.float64)
    expected = mixer(x, None)[0]
    low = torch.float32 if autocast else dtype
    with torch.autocast('cpu', dtype, enabled=autocast):
        out = mixer.to(low)(x.to(low), None)[0]
    assert_close(out.detach(), expected.detach(), 0.05)
