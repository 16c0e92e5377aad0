"""Logs are read as MMEngine writes them; what plot_logs.py draws of them is tested with it."""

import json
from pathlib import Path

import pytest

from mmsgformer.report.logs import read_curves, read_environment, training_cost, validated_keys

LOG = """2026/11/25 14:02:31 - mmengine - INFO -
System environment:
    Python: 3.11.7 (main) [GCC 12.2.0]
    GPU 0: NVIDIA H100
    PyTorch compiling details: PyTorch built with:
  - GCC 13.3
    MMEngine: 0.10.12

Runtime environment:
    seed: 7
    GPU number: 2
------------------------------------------------------------

2026/11/25 14:02:31 - mmengine - INFO - Config:
    seed: 8
"""


@pytest.fixture
def work_dir(tmp_path) -> Path:
    """A run that was resumed, with a validation in each part, and a test."""
    parts = {
        '1': [{'loss': 3.0, 'time': 2.0, 'memory': 100, 'iter': 1}, {'mIoU': 5.0, 'time': 9.0, 'step': 1}],
        '2': [{'loss': 2.0, 'time': 4.0, 'memory': 300, 'iter': 2}, {'mIoU': 6.0, 'time': 9.0, 'step': 2}],
        '3': [{'mIoU': 7.0, 'time': 9.0, 'step': 0}],
    }
    for part, entries in parts.items():
        folder = tmp_path / part / 'vis_data'
        folder.mkdir(parents=True)
        # A run that was killed leaves half a line.
        (folder / 'scalars.json').write_text('\n'.join([*map(json.dumps, entries), '{"loss": 1']))
        seed = LOG.replace('seed: 7', f'seed: {part}')
        (tmp_path / part / f'{part}.log').write_text(seed)
    return tmp_path


def test_all_parts_of_a_run_are_read(work_dir):
    curves = read_curves(work_dir)
    assert curves['loss'] == [(1, 3.0), (2, 2.0)]
    assert curves['mIoU'] == [(1, 5.0), (2, 6.0)]
    assert validated_keys(work_dir) == {'mIoU'}


def test_the_cost_is_that_of_training(work_dir):
    """A validation logs its time under the same name."""
    assert training_cost(read_curves(work_dir)) == {'time': 3.0, 'memory': 300}
    assert training_cost({}) == {}


def test_the_environment_is_that_of_the_last_part(work_dir):
    """Not of the test after it, and nothing of the config that follows."""
    environment = read_environment(work_dir)
    assert environment['seed'] == '2'
    assert environment['GPU number'] == '2'
    assert environment['GPU 0'] == 'NVIDIA H100'
    assert environment['MMEngine'] == '0.10.12'
    assert read_environment(work_dir / '1') == {}
