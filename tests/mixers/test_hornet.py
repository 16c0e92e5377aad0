"""HorNet's gated convolution: the official module's numbers, and its limits."""

from functools import partial

import pytest
from mixers.golden import check

from mmsgformer import mixers


@pytest.mark.parametrize(
    ('case', 'stage'), [('hornet_gnconv2', 0), ('hornet_gnconv3', 1), ('hornet_gnconv5', 3)]
)
def test_agrees_with_the_official_module(case, stage):
    """Of the order that the stage brings."""
    check(case, mixers.build('hornet', 16, 2, stage), partial(mixers.from_official, 'hornet'))


@pytest.mark.parametrize('order', [0, 4])
def test_orders_that_do_not_fit_are_refused(order):
    with pytest.raises(ValueError, match=f'to divide 12, got order {order}'):
        mixers.build('hornet', 12, 2, order=order)
