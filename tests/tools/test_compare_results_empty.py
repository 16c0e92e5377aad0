"""tools/compare_results.py where there is nothing to compare."""

import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'compare_results.py'


@pytest.mark.parametrize('other', [None, 'work_dirs/demo/sgformer-tiny_shapes.py'])
def test_a_folder_without_a_run_of_a_released_config_is_an_error(other, tmp_path, capsys):
    """Nothing is written there; the demo's configs are not released ones."""
    if other:
        (tmp_path / other).parent.mkdir(parents=True)
        (tmp_path / other).touch()
    before = list(tmp_path.rglob('*'))
    with pytest.raises(SystemExit, match='2'):
        runpy.run_path(str(TOOL))['main']([str(tmp_path)])
    assert f'{tmp_path} has no run of a released config' in capsys.readouterr().err
    assert list(tmp_path.rglob('*')) == before
