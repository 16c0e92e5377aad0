"""The operators in C++ for attention, its column means and its gradient on CPUs: compiled once a machine."""

import functools
import logging
import os
import platform
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_suffix('.cpp')
# With torch's own OpenMP, which is loaded already: nothing is linked.
_FLAGS = ['-O3', '-march=native', '-fno-math-errno', '-fno-trapping-math', '-fopenmp']
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def fits(q: Tensor) -> bool:
    """Whether queries are what the operator is for."""
    return q.device.type == 'cpu' and q.dtype in _TYPES and is_available()


def attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What `chunked_attention` says, by the operator."""
    q, k, v = _channels_together(q, k, v)
    return torch.ops.mmsgformer.attention_cpu(q, k, v, _mask(q, valid))


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the output, given what `attend` returned."""
    grad, q, k, v, out = _channels_together(grad, q, k, v, out)
    return torch.ops.mmsgformer.attention_cpu_backward(grad, q, k, v, _mask(q, valid), out, lse.contiguous())


def _channels_together(*heads: Tensor) -> list[Tensor]:
    return [x if x.stride(-1) == 1 else x.contiguous() for x in heads]


def _mask(q: Tensor, valid: Tensor | None) -> Tensor:
    """A mask for the operators, empty where there is none."""
    return q.new_empty(0, dtype=torch.bool) if valid is None else valid.contiguous()


@functools.cache
def is_available() -> bool:
    """Whether the operator is there. Compiles it (half a minute) where that was not done yet.

    `MMSGFORMER_CPU_KERNEL=0` in the environment goes without it.
    """
    if os.environ.get('MMSGFORMER_CPU_KERNEL') == '0':
        return False
    if hasattr(torch.ops.mmsgformer, 'attention_cpu'):  # this process has it
        return True
    try:
        library = library_path()
        if library.exists():
            torch.ops.load_library(library)
        else:
            _build(library)
    except (ImportError, OSError, RuntimeError) as error:
        log = logging.getLogger(__name__)
        log.warning('attention is slower here, its operator in C++ cannot be built: %s', _reason(error))
        return False
    return True


def library_path() -> Path:
    """Where the compiled operator is kept: it fits one torch, one processor and one source."""
    try:
        processor = re.search(r'^(flags|Features)\s*:.*', Path('/proc/cpuinfo').read_text(), re.M)[0]
    except (OSError, TypeError):  # not Linux
        processor = platform.processor()
    fits_for = f'{torch.__version__} {platform.machine()} {processor} {_FLAGS} {_SOURCE.read_text()}'
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return cache / 'mmsgformer' / f'attention_cpu-{zlib.crc32(fits_for.encode()):08x}.so'


def _build(library: Path) -> None:
    """Compile and load the operator, and keep it if it can be; several processes may do so at once."""
    from torch.utils.cpp_extension import load

    compiler = os.environ.get('CXX', 'c++')  # as torch finds it
    if not shutil.which(compiler):
        raise FileNotFoundError(f'no C++ compiler, {compiler} is not there')
    log = logging.getLogger(__name__)
    log.warning('compiling the attention for this CPU, once: about half a minute')
    with tempfile.TemporaryDirectory() as folder:
        load(
            'attention_cpu',
            [str(_SOURCE)],
            extra_cflags=_FLAGS,
            build_directory=folder,
            is_python_module=False,
        )
        try:
            library.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as kept:
                part = shutil.copy(Path(folder, 'attention_cpu.so'), kept)
                os.replace(part, library)
        except OSError as error:
            log.warning(
                'every process will compile it, since it cannot be kept in %s: %s', library.parent, error
            )


def _reason(error: Exception) -> str:
    """The compiler's first error, if it had any, else the exception's first line."""
    lines = str(error).split('\n')
    return next((line for line in lines if ' error: ' in line), lines[0])
