"""Checkpoint files: read without running code that they hold, write whole or not at all."""

import argparse
import hashlib
import io
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.fileio import LocalBackend, get_local_path, register_backend
from mmengine.logging import HistoryBuffer, print_log

from mmsgformer.checkpoint.download import cached_download
from mmsgformer.compat import READS_PTH_SAFELY, TORCH, safe_globals


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, written or does not fit; the message says why and what to do."""


# Set to 1 where torch cannot read a .pth safely: all those that are read are trusted.
TRUST_VARIABLE = 'MMSGFORMER_TRUST_PTH'
# As MMEngine names them; not best_mIoU_iter_4000.pth, which has no optimizer state.
_SAVED_WHILE_TRAINING = re.compile(r'(?:epoch|iter)_(\d+)\.pth')


def read_checkpoint(path: str | Path, map_location: object = 'cpu') -> Mapping:
    """The content of a .pth or .safetensors file or URL, without running code that it may hold.

    Besides tensors and plain values a .pth may hold the numpy numbers and log buffers of MMEngine's
    checkpoints. What http(s) URLs lead to is kept as torch.hub keeps it (`cached_download`); other URLs are
    read by MMEngine's storages. `map_location` is torch.load's; tensors of a .safetensors file come on the
    CPU.

    Raises:
        CheckpointError: There is no such file, it is damaged or not a checkpoint, or it needs other classes.
    """
    if '://' not in str(path):
        path = Path(path).expanduser()
        return _read_file(path, str(path), map_location)
    url = str(path)
    try:
        if url.startswith(('http://', 'https://')):
            return _read_cached(url, map_location)
        with get_local_path(url) as local:
            return _read_file(Path(local), url, map_location)
    except CheckpointError:
        raise
    except Exception as error:  # every storage raises its own kinds
        raise CheckpointError(f'{url} could not be downloaded: {type(error).__name__}: {error}') from error


def _read_cached(url: str, map_location: object) -> Mapping:
    """`read_checkpoint` for a URL of http(s)."""
    file = cached_download(url, check=lambda partial: _read_file(partial, url, 'cpu'))
    try:
        return _read_file(file, url, map_location)
    except CheckpointError as error:  # it came here by other means, or the disk is at fault
        raise CheckpointError(f'{error}. It was read from {file}; without that it is downloaded') from error


def _read_file(path: Path, name: str, map_location: object, mmap: bool = False) -> Mapping:
    """`read_checkpoint` for a local file that is called `name` in errors; `mmap`: tensors are read later."""
    if not path.is_file():
        raise CheckpointError(
            f'{path} is {"a folder" if path.is_dir() else "not there"}; give a checkpoint file'
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f'{name} is empty')
    try:
        if '.safetensors' in (path.suffix, Path(name).suffix):  # a download's name may be a query
            from safetensors.torch import load_file  # optional: only users of such files need it

            content = load_file(path)
        else:
            _require_trust(name)
            # A file that is trusted is read as a whole where torch cannot read it safely.
            with safe_globals(_SAFE_GLOBALS):
                content = torch.load(
                    str(path), map_location=map_location, weights_only=READS_PTH_SAFELY, mmap=mmap
                )
    except CheckpointError:
        raise
    except ModuleNotFoundError as error:
        raise CheckpointError(f'{name} needs `pip install safetensors`') from error
    except Exception as error:  # the readers raise many kinds for a damaged file
        unsafe = _unsafe_globals(path, error) if isinstance(error, pickle.UnpicklingError) else []
        if unsafe:
            first = 'download it and ' if '://' in name else ''
            file = name.rpartition('/')[2] if first else name
            raise CheckpointError(
                f'{name} was not loaded: besides tensors it holds {", ".join(unsafe)}, and loading those can '
                f'run code. If you trust where it is from, {first}keep its weights alone, once: '
                f"c = torch.load('{file}', weights_only=False); torch.save({{k: c[k] for k in "
                "('state_dict_ema', 'state_dict', 'model') if k in c}, 'weights.pth')"
            ) from error
        # torch's text for what it cannot unpickle recommends unsafe reading.
        quotable = str(error) and not isinstance(error, pickle.UnpicklingError)
        reason = str(error).splitlines()[0] if quotable else type(error).__name__
        raise CheckpointError(
            f'{name} ({path.stat().st_size} bytes) is not a checkpoint or is damaged: {reason}'
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{name} holds a {type(content).__name__}, not the dict of a checkpoint')
    return content


def _require_trust(name: str) -> None:
    """Raise a CheckpointError where reading a .pth can run code from it and the user has not agreed."""
    if not READS_PTH_SAFELY and os.environ.get(TRUST_VARIABLE) != '1':
        raise CheckpointError(
            f'{name} was not loaded: torch {TORCH[0]}.{TORCH[1]} can run code from any .pth that it reads '
            '(CVE-2025-32434, mended in 2.6). If it is your own, or you trust where it is from, set '
            f'{TRUST_VARIABLE}=1; else take a .safetensors file, or torch 2.6 or later'
        )


def _history_buffer_method(owner: type, name: str) -> object:
    """What `getattr` may do in a checkpoint: MMEngine's log buffers refer to their own methods by it."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r})')
    return getattr(owner, name)


class _Array(np.ndarray):
    """What `numpy.ndarray` means in a checkpoint: filled from values, never made from raw memory."""

    def __new__(cls, *_: object, **__: object) -> '_Array':
        raise pickle.UnpicklingError('numpy.ndarray is called')

    def __reduce__(self) -> tuple:
        return self.view(np.ndarray).__reduce__()

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _plain_dtype(*arguments: object) -> np.dtype:
    """What `numpy.dtype` means in a checkpoint: no arrays of objects, whose pointers would be the file's."""
    dtype = np.dtype(*arguments)
    if dtype.hasobject:
        raise pickle.UnpicklingError('numpy.dtype of objects')
    return dtype


# What MMEngine's own checkpoints hold besides tensors and plain values, log buffers of numpy numbers, and
# what timm's hold, the training script's arguments. numpy 1 and 2 name the same functions differently.
_SAFE_GLOBALS = [
    argparse.Namespace,
    HistoryBuffer,
    (_history_buffer_method, 'builtins.getattr'),
    (_Array, 'numpy.ndarray'),
    (_plain_dtype, 'numpy.dtype'),
    *(
        (function, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for function, name in [
            (np.float64(0).__reduce__()[0], 'scalar'),
            (np.empty(0).__reduce__()[0], '_reconstruct'),
        ]
    ),
    *(type(np.dtype(kind)) for kind in '?bhilBHILefd'),
]


def _unsafe_globals(path: Path, error: pickle.UnpicklingError) -> list[str]:
    """Names of the classes and functions in a .pth that are not allowed, as far as they can be listed."""
    try:
        with safe_globals(_SAFE_GLOBALS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not in torch's zip format, or damaged
        return re.findall(r'GLOBAL (\S+)', str(error))


def write_checkpoint(content: Mapping, path: str | Path, hash_in_name: bool = False) -> tuple[Path, str]:
    """Write a checkpoint to a .pth or .safetensors file that is not there yet.

    Args:
        content: What torch.save takes; for .safetensors names and tensors only.
        path: The new file; its folder is made.
        hash_in_name: Write b.pth to b-01234567.pth, with the first digits of the file's SHA-256.

    Returns:
        The file that was written, and its SHA-256.

    Raises:
        CheckpointError: There is such a file, or its name has another ending.
        OSError: It cannot be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        try:
            from safetensors.torch import save  # optional: only users of such files need it
        except ModuleNotFoundError as error:
            raise CheckpointError(f'{path} needs `pip install safetensors`') from error
        data = save({name: tensor.contiguous() for name, tensor in content.items()})
    elif path.suffix == '.pth':
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
    else:
        raise CheckpointError(f'{path} must end in .pth or .safetensors')
    digest = hashlib.sha256(data).hexdigest()
    if hash_in_name:
        path = path.with_stem(f'{path.stem}-{digest[:8]}')
    if path.exists():
        raise CheckpointError(f'{path} is there already; give another name, or move it away')
    write_file(data, path)
    return path, digest


def write_file(data: bytes, path: str | Path) -> None:
    """Write a file so that its name holds either the whole of `data` or what it held before.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; what was there before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.part')
    try:
        with partial.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@register_backend('checkpoints')
class CheckpointBackend(LocalBackend):
    """MMEngine's storage of local files, for its CheckpointHook: nothing good is lost when a save fails.

    Files are written whole or not at all. MMEngine removes an outdated checkpoint before it writes the new
    one; here the removal waits until the new one is there.
    """

    _outdated: list[str] = []  # noqa: RUF012  shared: MMEngine makes an instance for every save

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, then remove those that were to be removed.

        Raises:
            CheckpointError: It cannot be written; everything that was there before still is.
        """
        outdated = list(self._outdated)
        self._outdated.clear()  # also if writing fails: then they stay for good
        try:
            write_file(obj, filepath)
        except OSError as error:
            raise CheckpointError(
                f'{filepath} ({len(obj):,} bytes) cannot be written: {error}. Earlier checkpoints are '
                'untouched; make room, or write elsewhere, and go on with --resume'
            ) from error
        for path in map(Path, outdated):
            if path != Path(filepath):
                path.unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file as soon as the next one is written."""
        self._outdated.append(str(filepath))


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """The checkpoint of a training run with the most iterations that can be read, None if there is none.

    The iterations are those stored in it: copying changes a file's time. Where they are the same, or not
    stored, the newest file counts. MMEngine's note `last_checkpoint` can name a file that an interrupted run
    did not finish or keep.
    """
    found = []
    for path in Path(work_dir).glob('*.pth'):
        if _SAVED_WHILE_TRAINING.fullmatch(path.name):
            try:
                found.append((stored_iteration(path), path.stat().st_mtime_ns, path))
            except CheckpointError as error:
                print_log(f'passing over a damaged checkpoint: {error}', 'current')
    for *_, path in sorted(found, reverse=True):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            print_log(f'passing over a damaged checkpoint: {error}', 'current')
        else:
            return str(path)
    return None


def stored_iteration(path: str | Path) -> int:
    """The iteration after which a .pth was saved, -1 if it does not say; its tensors are not read.

    Raises:
        CheckpointError: As `read_checkpoint`, where that shows without the tensors.
    """
    meta = _read_file(Path(path), str(path), 'cpu', mmap=True).get('meta')
    return meta.get('iter', -1) if isinstance(meta, Mapping) else -1
