"""Each mixer gives what its official module gives: output, input gradient and every parameter's gradient."""

from functools import partial

import pytest
from mixers.golden import HEADS, check, facts

from mmsgformer.mixers import build, from_official

UNMASKED = {'mask_padding': False}
# Case of the golden data -> the mixer, its arguments, and what its mapping needs to know.
CASES = {
    'swin_shift0': ('swin', {'block': 0, **UNMASKED}),
    'swin_shift3': ('swin', {'block': 1, **UNMASKED}),
    'maxvit_block': ('maxvit', {'block': 0}),
    'maxvit_grid': ('maxvit', {'block': 1}),
    'davit_window': ('davit', {'block': 0, **UNMASKED}),
    'davit_channel': ('davit', {'block': 1}),
    **{
        f'nat_k{kernel}_d{dilation}': (
            'neighborhood',
            {'kernel_size': kernel, 'dilation': dilation, **UNMASKED},
        )
        for kernel in (3, 7)
        for dilation in (1, 2, 4)
    },
    'flow': ('flow', {}),
}


@pytest.mark.parametrize('case', CASES)
def test_agrees_with_the_official_module(case):
    name, arguments = CASES[case]
    check(case, build(name, facts(case)['dim'], HEADS, **arguments), partial(from_official, name))
