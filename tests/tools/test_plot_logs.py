"""tools/plot_logs.py reads MMEngine's logs as they are written, and says what is not there."""

import json
from pathlib import Path

import pytest
from tool_calls import load_tool


@pytest.fixture
def work_dir(tmp_path) -> Path:
    """A run by epochs, resumed once, and a test of it."""
    logs = {
        '1': [{'lr': 0.1, 'loss': 3.0, 'iter': 10, 'step': 10}, {'coco/bbox_mAP': 0.1, 'step': 1}],
        '2': [
            {'lr': 0.2, 'loss': 2.0, 'iter': 10, 'step': 10},
            {'lr': 0.1, 'loss': 1.0, 'iter': 20, 'step': 20},
        ],
        '3': [{'coco/bbox_mAP': 0.9, 'step': 0}],
    }
    for part, entries in logs.items():
        folder = tmp_path / part / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)))
    return tmp_path


def test_curves_are_by_iteration(work_dir):
    curves = load_tool('plot_logs').read_curves(work_dir)
    assert curves['loss'] == [(10, 2.0), (20, 1.0)]
    assert curves['coco/bbox_mAP'] == [(10, 0.1)]


def test_several_runs_are_plotted(work_dir, run_tool):
    out = work_dir / 'plots' / 'curves.png'
    result = run_tool('plot_logs.py', work_dir, work_dir, '--out', out)
    assert result.returncode == 0, result.stderr
    assert out.read_bytes().startswith(b'\x89PNG')


def test_where_nothing_usual_was_logged_all_is_plotted(tmp_path, run_tool):
    (tmp_path / '1' / 'vis_data').mkdir(parents=True)
    (tmp_path / '1' / 'vis_data' / 'scalars.json').write_text('{"acc": 0.5, "iter": 1}')
    result = run_tool('plot_logs.py', tmp_path, '--out', tmp_path / 'curves.png')
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ('folder', 'key', 'message'), [('1', 'loss', 'no */vis_data'), ('.', 'x', 'no run logged x')]
)
def test_what_is_missing_is_named(work_dir, run_tool, folder, key, message):
    result = run_tool('plot_logs.py', work_dir / folder, '--keys', key)
    assert result.returncode == 2
    assert message in result.stderr
