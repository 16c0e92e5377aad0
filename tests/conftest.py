"""Shared fixtures: real photos, the synthetic data set, the golden formula, the tiny architecture."""

import json
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
# One thread for each of pytest's workers, and for the processes that they start.
os.environ['OMP_NUM_THREADS'] = '1'
# Where torch reads no .pth safely: the tests read what they wrote themselves.
os.environ.setdefault('MMSGFORMER_TRUST_PTH', '1')
torch.set_num_threads(1)
if os.environ.get('MMSGFORMER_TEST_DEVICE', 'cpu') == 'cpu':
    os.environ['TRITON_INTERPRET'] = '1'  # Triton reads it when it is imported


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The first line of every error, whole: the summary that follows cuts it to 80 columns in a log."""
    for report in terminalreporter.getreports('failed') + terminalreporter.getreports('error'):
        crash = getattr(report.longrepr, 'reprcrash', None)
        if crash is not None:
            reason = crash.message.partition('\n')[0]
            terminalreporter.write_line(f'{report.nodeid}: {reason}')


def draw(name: str, shape: Sequence[int]) -> Tensor:
    """The tensor (float64) that the golden data's formula gives to this official name and shape.

    docs/method.md, "Golden data".
    """
    n = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape))
    if name.startswith(('image', 'probe')):
        pass
    elif len(shape) == 1 and name.endswith('weight'):
        n = 1 + 0.1 * n
    elif name.endswith('bias'):
        n = 0.1 * n
    elif name == 'pos_embed':
        n = 0.2 * n
    else:
        n = n / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(n)


@pytest.fixture(scope='session', autouse=True)
def plain_configs() -> Iterator[None]:
    """Runs write their configs without the formatting that takes half the time of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield


@pytest.fixture(scope='session')
def tiny() -> dict:
    """The architecture of the golden data's `tiny`."""
    return {'embed_dims': (32, 64, 128, 256), 'depths': (2, 2, 4, 1), 'num_heads': (2, 4, 8, 16)}


@pytest.fixture(scope='session')
def draw_golden():
    return draw


@pytest.fixture(scope='session')
def official() -> dict[str, Tensor]:
    """The tiny arch's weights under their official names, classifier head included, in float32."""
    keys = json.loads((ROOT / 'tests' / 'golden' / 'official_keys_tiny.json').read_text())
    return {key: draw(key, shape).float() for key, shape in keys.items()}


@pytest.fixture(scope='session')
def photos() -> Path:
    """The folder with coco_tiny and ade_tiny, real photos that are not part of this repository."""
    folder = os.environ.get('MMSGFORMER_DATA')
    if not folder:
        pytest.skip('needs real photos: set MMSGFORMER_DATA to a folder with coco_tiny and ade_tiny')
    return Path(folder)


@pytest.fixture(scope='session')
def run_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of tools/ from the checkout, in this process; what it prints is captured, not judged."""
    from tool_calls import call_tool  # imports MMEngine, which not every test needs

    return call_tool


@pytest.fixture(scope='session')
def run_in_a_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of tools/ where a process of its own is what matters: launchers, imports."""

    def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        program = ['bash'] if script.endswith('.sh') else [sys.executable]
        command = [*program, f'tools/{script}', *map(str, arguments)]
        env = {**os.environ, 'PYTHON': sys.executable, **environment}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture(scope='session')
def shapes(tmp_path_factory, run_tool) -> Path:
    """A small synthetic data set, written by its tool."""
    out = tmp_path_factory.mktemp('shapes')
    result = run_tool('make_shapes.py', out, '--train', 16, '--val', 4)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope='session')
def free_port():
    """A function that returns a port (as text) on which nothing listens."""

    def find() -> str:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            return str(probe.getsockname()[1])

    return find
