"""Reading checkpoints without running code; writing them whole or not at all."""

import argparse
import errno
import functools
import http.server
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer
from older_torch import NEEDS_SAFE_READING
from safetensors.torch import save_file

from mmsgformer.checkpoint.files import (
    CheckpointError,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
    write_file,
)

WEIGHTS = {'stem.conv1.weight': torch.arange(12.0).view(3, 4), 'stem.norm1.bias': torch.ones(5)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Downloads go to the test's folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))


class MakesAFolder:
    """Unpickling this runs code."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@NEEDS_SAFE_READING
def test_code_in_a_pickle_does_not_run(tmp_path):
    trap = tmp_path / 'trap'
    torch.save({'state_dict': WEIGHTS, 'args': MakesAFolder(trap)}, tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match=r'mkdir.*can run code.*If you trust'):
        read_checkpoint(tmp_path / 'weights.pth')
    assert not trap.exists()


def test_what_mmengine_saves_is_read(tmp_path):
    """Its log buffers and numpy numbers are more than torch reads without running code."""
    hub = {'loss': HistoryBuffer([1.0, 2.0], [1, 1]), 'lr': np.float64(0.1), 'iter': np.int64(3)}
    torch.save({'state_dict': WEIGHTS, 'message_hub': hub}, tmp_path / 'weights.pth')
    content = read_checkpoint(tmp_path / 'weights.pth')
    assert content['message_hub']['loss'].mean() == 1.5
    assert content['message_hub']['iter'] == 3


@NEEDS_SAFE_READING
def test_memory_that_a_file_made_up_is_not_taken_for_an_array(tmp_path):
    """numpy.ndarray called with raw bytes as pointers to objects: reading it must fail, not crash later."""
    torch.save({'state_dict': WEIGHTS, 'array': Forged()}, tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match='damaged'):
        read_checkpoint(tmp_path / 'weights.pth')


class Forged:
    """Pickles as an array of objects whose pointers are given."""

    def __reduce__(self):
        return np.ndarray, ((1,), 'O', b'AAAAAAAA')


@pytest.mark.parametrize('core', [b'numpy.core', b'numpy._core'])
def test_arrays_of_numpy_1_and_2_are_read(core, tmp_path):
    """The two name the functions that make arrays and numbers differently."""
    content = {'numbers': np.arange(3.0), 'lr': np.float32(0.5), 'state_dict': WEIGHTS}
    legacy = {'_use_new_zipfile_serialization': False, 'pickle_protocol': 2}
    torch.save(content, tmp_path / 'ours.pth', **legacy)
    data = (tmp_path / 'ours.pth').read_bytes()
    written = b'numpy._core' if b'numpy._core' in data else b'numpy.core'
    (tmp_path / 'theirs.pth').write_bytes(data.replace(b'c' + written, b'c' + core))
    found = read_checkpoint(tmp_path / 'theirs.pth')
    assert found['numbers'].tolist() == [0, 1, 2]
    assert found['lr'] == 0.5
    torch.save(found, tmp_path / 'again.pth')
    again = read_checkpoint(tmp_path / 'again.pth')
    assert again['numbers'].tolist() == [0, 1, 2]


def test_the_arguments_of_a_training_script_are_read(tmp_path):
    """timm's checkpoints hold them."""
    torch.save({'state_dict': WEIGHTS, 'args': argparse.Namespace(lr=0.1)}, tmp_path / 'weights.pth')
    assert read_checkpoint(tmp_path / 'weights.pth')['args'].lr == 0.1


def test_a_url_that_leads_nowhere_is_named():
    with pytest.raises(CheckpointError, match=r'127\.0\.0\.1:9/weights\.pth could not be downloaded'):
        read_checkpoint('http://127.0.0.1:9/weights.pth')


@pytest.mark.parametrize('kind', ['nothing there', 'folder', 'empty', 'text', 'text.safetensors', 'list.pth'])
def test_what_is_no_checkpoint_is_named(kind, tmp_path):
    path = tmp_path / kind
    if kind == 'folder':
        path.mkdir()
    elif kind == 'list.pth':
        torch.save([1, 2], path)
    elif kind != 'nothing there':
        path.write_text('' if kind == 'empty' else 'a text file\n' * 9)
    with pytest.raises(CheckpointError, match=kind):
        read_checkpoint(path)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_truncated_file_is_an_error_wherever_it_ends(suffix, tmp_path):
    whole = tmp_path / f'whole.{suffix}'
    save_file(WEIGHTS, whole) if suffix == 'safetensors' else torch.save(WEIGHTS, whole)
    content = whole.read_bytes()
    for seed in range(20):
        path = tmp_path / f'part.{suffix}'
        path.write_bytes(content[: random.Random(seed).randrange(1, len(content))])
        with pytest.raises(CheckpointError, match=r'part.* is not a checkpoint or is damaged'):
            read_checkpoint(path)


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    """Where a test's folder is served from."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@NEEDS_SAFE_READING
@pytest.mark.parametrize('is_url', [False, True])
def test_the_advice_names_a_file_that_is_there(is_url, address, tmp_path):
    """Of a download, only the temporary copy had the path."""
    torch.save({'state_dict': WEIGHTS, 'other': Path('a')}, tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match='keep its weights alone') as caught:
        read_checkpoint(f'{address}/weights.pth' if is_url else tmp_path / 'weights.pth')
    advised = re.search(r"torch\.load\('(.*?)'", str(caught.value))[1]
    assert advised == ('weights.pth' if is_url else str(tmp_path / 'weights.pth'))
    assert ('download it and keep' in str(caught.value)) == is_url


def test_a_url_is_downloaded(address, tmp_path):
    torch.save(WEIGHTS, tmp_path / 'weights.pth')
    content = read_checkpoint(f'{address}/weights.pth')
    assert all(torch.equal(content[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_written_files_are_read_back_and_not_overwritten(suffix, tmp_path):
    path, digest = write_checkpoint(WEIGHTS, tmp_path / 'new' / f'weights.{suffix}')
    content = read_checkpoint(path)
    assert all(torch.equal(content[name], value) for name, value in WEIGHTS.items())
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match='is there already'):
        write_checkpoint({}, path)
    assert path.read_bytes() == before
    hashed, again = write_checkpoint(WEIGHTS, path, hash_in_name=True)
    assert (hashed.name, again) == (f'weights-{digest[:8]}.{suffix}', digest)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r'weights\.bin must end in \.pth or \.safetensors'):
        write_checkpoint(WEIGHTS, tmp_path / 'weights.bin')


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A process whose files cannot grow past 1000 bytes overwrites a good file with a larger one."""
    path = tmp_path / 'weights.pth'
    write_file(b'good', path)
    code = (
        'import resource, sys; from mmsgformer.checkpoint.files import write_file;'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_file(bytes(5000), sys.argv[1])'
    )
    result = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True)
    assert 'OSError' in result.stderr
    assert path.read_bytes() == b'good'
    assert list(tmp_path.iterdir()) == [path]


def test_an_outdated_checkpoint_is_removed_after_the_next_is_written(tmp_path):
    """MMEngine removes it before, with another instance of the storage."""
    old, new = tmp_path / 'iter_1.pth', tmp_path / 'iter_2.pth'
    storage = {'backend': 'checkpoints'}
    get_file_backend(old, backend_args=storage).put(b'old', old)
    get_file_backend(old, backend_args=storage).remove(old)
    assert old.exists()
    get_file_backend(new, backend_args=storage).put(b'new', new)
    assert not old.exists()
    assert new.read_bytes() == b'new'


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_is_removed_after_a_save_that_failed(tmp_path, monkeypatch):
    storage = get_file_backend(backend_args={'backend': 'checkpoints'})
    storage.put(b'good', tmp_path / 'iter_1.pth')
    storage.remove(tmp_path / 'iter_1.pth')
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full_disk)
        with pytest.raises(CheckpointError, match=r'iter_2\.pth .*No space left.*--resume'):
            storage.put(b'new', tmp_path / 'iter_2.pth')
    storage.put(b'other', tmp_path / 'other_run.pth')
    assert (tmp_path / 'iter_1.pth').read_bytes() == b'good'


def test_a_checkpoint_that_replaces_itself_stays(tmp_path):
    path, storage = tmp_path / 'best.pth', get_file_backend(backend_args={'backend': 'checkpoints'})
    storage.put(b'old', path)
    storage.remove(path)
    storage.put(b'new', path)
    assert path.read_bytes() == b'new'


def test_the_latest_checkpoint_has_the_most_iterations(tmp_path):
    """Whatever the files' times and names say: copying changes both. In a mix of both kinds too."""
    for age, (name, iteration) in enumerate(
        [('iter_90.pth', 90), ('epoch_2.pth', 200), ('epoch_10.pth', 100), ('epoch_1.pth', 100)]
    ):
        torch.save({**WEIGHTS, 'meta': {'iter': iteration}}, tmp_path / name)
        os.utime(tmp_path / name, (age, age))
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'epoch_2.pth')
    (tmp_path / 'epoch_2.pth').write_bytes((tmp_path / 'epoch_2.pth').read_bytes()[:300])
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')  # the newer of two


def test_without_iterations_the_latest_checkpoint_is_the_newest_that_can_be_read(tmp_path):
    """Not the highest number; not a best or a published one."""
    assert latest_checkpoint(tmp_path) is None
    names = ('epoch_12.pth', 'epoch_3.pth', 'best_mIoU_iter_40.pth', 'model-12345678.pth', 'epoch_4.pth')
    for age, name in enumerate(names):
        torch.save(WEIGHTS, tmp_path / name)
        os.utime(tmp_path / name, (age, age))
    damaged = (tmp_path / 'epoch_4.pth').read_bytes()[:300]
    (tmp_path / 'epoch_4.pth').write_bytes(damaged)
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'epoch_3.pth')


def stop_within_a_write(child: int, folder: Path) -> None:
    """Stop a training process that has saved a checkpoint and is about to write the next one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.001)
        if (folder / 'announced').exists() and any(folder.glob('*.part')):
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)
            if any(folder.glob('*.part')):
                return
            os.kill(child, signal.SIGCONT)  # it was just done
    raise TimeoutError('no write was seen')


def kill_within_writes(folder: Path) -> None:
    """Training is killed within a write and resumed, three times; what was announced must be there."""
    import soak  # registers names that other tests register

    for attempt in range(3):
        (folder / 'announced').unlink(missing_ok=True)
        child = soak.fork(soak.train_weights, folder, attempt)
        try:
            stop_within_a_write(child, folder)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        promised = int((folder / 'announced').read_text() or 0)
        newest = latest_checkpoint(folder)
        assert newest, f'iteration {promised} was saved, nothing is left'
        iteration = read_checkpoint(newest)['meta']['iter']
        assert iteration >= promised, f'iteration {promised} was saved, {iteration} is left'


def test_killed_while_saving(tmp_path):
    """Training runs, killed while they write a checkpoint: the last one announced can be read."""
    code = f'from checkpoint import test_files as t; t.kill_within_writes(t.Path({str(tmp_path)!r}))'
    tests = Path(__file__).parents[1]
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, cwd=tests, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
