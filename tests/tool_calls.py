"""Calling a script of tools/ in this process: as its command line would, and leaving no trace."""

import contextlib
import gc
import importlib.util
import io
import multiprocessing
import os
import random
import subprocess
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin

import mmsgformer.cli  # noqa: F401  before the environment is noted: it makes torch read files safely

ROOT = Path(__file__).parents[1]


def load_tool(name: str) -> ModuleType:
    """The module tools/NAME.py, loaded anew."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call_tool(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the `main` of tools/SCRIPT from the checkout; returns what its process would have left."""
    command = [f'tools/{script}', *map(str, arguments)]
    output, errors = io.StringIO(), io.StringIO()
    with (
        _as_it_was() as patch,
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        patch.chdir(ROOT)
        patch.syspath_prepend(ROOT / 'tools')
        patch.setattr(sys, 'argv', command)
        module = load_tool(Path(script).stem)
        patch.setitem(sys.modules, module.__name__, module)  # processes that it spawns find it by name
        code = _exit_code(lambda: module.main(command[1:]))
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())


def _exit_code(function: Callable[[], object]) -> int:
    """The code with which Python would end; prints what it would print."""
    try:
        function()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _as_it_was() -> Iterator[pytest.MonkeyPatch]:
    """Put back what a tool changes: threads, random numbers, and MMEngine's objects that are found by name.

    Those would be used again under the same name, with the folder and the stream of an earlier run.
    """
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        for kind in _subclasses(ManagerMixin):
            patch.setattr(kind, '_instance_dict', OrderedDict())
        try:
            yield patch
        finally:
            for handler in [h for logger in MMLogger._instance_dict.values() for h in logger.handlers]:
                handler.close()
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)
    if multiprocessing.active_children():  # loading data for a Runner that nobody needs any more
        gc.collect()


def _subclasses(kind: type) -> Iterator[type]:
    """A class and all that inherit from it."""
    yield kind
    for child in kind.__subclasses__():
        yield from _subclasses(child)
