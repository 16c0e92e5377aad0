"""tools/make_evolution.py puts a run's pictures in order, over resumptions, from the first to the last."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

STEPS = {'first_part': (0, 50, 100), 'second_part': (100, 150, 1000)}


@pytest.fixture
def work_dir(tmp_path) -> Path:
    """A run in two parts; the grey value of a picture says which it is, that of 100 only the newer one."""
    for part, steps in STEPS.items():
        folder = tmp_path / part / 'vis_data' / 'vis_image'
        folder.mkdir(parents=True)
        for step in steps:
            value = step // 5 + (1 if part == 'second_part' else 0)
            Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(folder / f'significance_0_{step}.png')
    return tmp_path


def test_an_animation_has_every_picture_once(work_dir, run_tool):
    result = run_tool('make_evolution.py', work_dir, work_dir / 'out.gif')
    assert result.returncode == 0, result.stderr
    animation = Image.open(work_dir / 'out.gif')
    values = []
    for frame in range(animation.n_frames):
        animation.seek(frame)
        values.append(np.asarray(animation.convert('RGB')).mean())
    assert values == [0, 10, 21, 31, 201]


def test_a_contact_sheet_goes_from_the_first_to_the_last(work_dir, run_tool):
    result = run_tool('make_evolution.py', work_dir, work_dir / 'out.png', '--rows', 3)
    assert result.returncode == 0, result.stderr
    sheet = np.asarray(Image.open(work_dir / 'out.png'))
    assert sheet.shape == (12, 6, 3)
    assert [sheet[row, 0, 0] for row in (0, 4, 8)] == [0, 21, 201]


@pytest.mark.parametrize(('out', 'image', 'message'), [('a.jpg', 0, '.gif or .png'), ('a.gif', 1, 'image 1')])
def test_what_cannot_be_made_is_said(work_dir, run_tool, out, image, message):
    result = run_tool('make_evolution.py', work_dir, work_dir / out, '--image', image)
    assert result.returncode == 2
    assert message in result.stderr
