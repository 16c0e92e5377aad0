"""Asking a tool how it is used does nothing else, and a wrong argument is one line."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = sorted(p.name for p in (ROOT / 'tools').glob('*.py') if "__name__ == '__main__'" in p.read_text())
SCRIPTS = sorted(path.name for path in (ROOT / 'tools').glob('*.sh') if path.name != 'slurm_run.sh')


def page_times() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (ROOT / 'docs').iterdir()}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a tool as a script, in an empty folder; returns its exit code, None for one that ran to its end."""

    def run(name: str, *arguments: str) -> int | str | None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(ROOT / 'tools')
        monkeypatch.setattr(sys, 'argv', [name, *arguments])
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as stop:
            return stop.code
        return None

    return run


@pytest.mark.parametrize('name', TOOLS)
def test_help_is_all_that_help_does(name, run, tmp_path, capsys):
    before = page_times()
    assert run(name, '--help') == 0
    assert capsys.readouterr().out.startswith(f'usage: {name}')
    assert not list(tmp_path.iterdir())
    assert page_times() == before


@pytest.mark.parametrize('name', TOOLS)
def test_an_unknown_option_is_one_line(name, run, tmp_path, capsys):
    before = page_times()
    assert run(name, '--no-such-option') == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'error:' in line]
    assert line.startswith(f'{name}: error: ')
    assert not list(tmp_path.iterdir())
    assert page_times() == before


@pytest.mark.parametrize('name', SCRIPTS)
def test_scripts_say_how_they_are_used(name, tmp_path):
    """A copy, with nothing of the repository around it that could be started."""
    script = tmp_path / 'tools' / name
    script.parent.mkdir()
    script.write_bytes((ROOT / 'tools' / name).read_bytes())
    result = subprocess.run(['bash', script, '--help'], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert 'No such file' not in result.stderr
    assert [path.name for path in tmp_path.rglob('*')] == ['tools', name]
