"""Attention within groups: the weights that it gives away are those that it uses."""

import pytest
import torch
from tolerances import OPERATOR, assert_close

from mmsgformer import mixers


@pytest.mark.parametrize(
    ('name', 'block'), [('swin', 0), ('swin', 1), ('maxvit', 0), ('maxvit', 1), ('davit', 0)]
)
@pytest.mark.parametrize('size', [(14, 7), (17, 12), (6, 20)], ids=str)
def test_the_attention_weights_give_the_output_where_groups_are_whole(name, block, size):
    """A map is cut to whole groups; a smaller one has no weights."""
    torch.manual_seed(0)
    mixer = mixers.build(name, 12, 3, block=block).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    weights = mixer.attention_weights(x)
    height, width = (side // 7 * 7 for side in size)
    assert weights.shape == (2 * height * width // 49, 3, 49, 49)
    if height:
        x = x[:, :height, :width]
        v = mixer._grouped(mixer.qkv(x).chunk(3, dim=-1)[2]).unflatten(-1, (3, 4)).transpose(1, 2)
        out = (weights @ v).transpose(1, 2).flatten(2)
        out = mixer.from_groups(out, 7, height, width).roll((mixer.shift, mixer.shift), (1, 2))
        assert_close(mixer.proj(out).detach(), mixer(x)[0].detach(), OPERATOR[torch.float64].forward)


def test_channels_have_no_attention_of_tokens():
    assert not hasattr(mixers.build('davit', 12, 3, block=1), 'attention_weights')
