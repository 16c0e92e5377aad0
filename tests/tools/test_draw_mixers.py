"""tools/draw_mixers.py shows what a query sees, and no more."""

import numpy as np
import pytest
import torch
from PIL import Image
from tool_calls import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('draw_mixers')


@pytest.mark.parametrize(
    ('name', 'title', 'rows', 'columns'),
    [
        ('hornet', 'one block', (7, 14), (6, 13)),  # the 7 x 7 tokens around row 10, column 9
        ('hornet', 'two blocks in a row', (4, 17), (3, 16)),
        ('swin', 'even block', (7, 14), (7, 14)),  # its window
        ('swin', 'odd block', (10, 17), (3, 10)),  # that begins 4 tokens before it in even blocks
    ],
)
def test_the_tokens_that_a_query_sees(tool, name, title, rows, columns):
    seen = tool.panels(name, tool.tokens(tool.scene()))[title] > 0
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(seen, expected)


class RowAbove(torch.nn.Module):
    """Every token becomes the one above it."""

    def forward(self, x, significance):
        return x.roll(1, 1), significance


def test_blocks_keep_what_they_were_given(tool):
    """Through the second block's row above, the query sees that row, and the one above that."""
    x = tool.tokens(tool.scene())
    row, column = tool.QUERY
    seen = [(tool.sensitivity([RowAbove()] * blocks, x) > 0).nonzero().tolist() for blocks in (1, 2)]
    assert seen == [[[row - 1, column]], [[row - 2, column], [row - 1, column]]]


def test_the_block_that_needs_a_significance_gets_that_of_the_block_before(tool):
    shown = tool.panels('sgformer', tool.tokens(tool.scene()))
    assert list(shown) == ['even block', 'odd block', 'two blocks in a row']
    assert all(values.max() == 1 and (values > 0).all() for values in shown.values())


def test_a_picture_for_each_name(run_tool, tmp_path):
    result = run_tool('draw_mixers.py', 'hornet', 'swin', '--out', tmp_path / 'new')
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == ['hornet.png', 'swin.png']
    narrow, wide = (np.asarray(Image.open(tmp_path / 'new' / f'{name}.png')) for name in ('hornet', 'swin'))
    assert narrow.shape[1] < wide.shape[1]


def test_an_unknown_mixer_is_one_line(run_tool, tmp_path):
    result = run_tool('draw_mixers.py', 'nobody', '--out', tmp_path)
    assert result.returncode == 2
    assert "'nobody'" in result.stderr.splitlines()[-1]
