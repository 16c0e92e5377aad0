"""Checkpoints from http(s): downloaded once, whole or not at all, into torch.hub's folder."""

import functools
import http.server
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.fileio import LocalBackend, register_backend
from safetensors.torch import save_file

from mmsgformer.checkpoint.files import CheckpointError, read_checkpoint, write_checkpoint

WEIGHTS = {'stem.conv1.weight': torch.arange(1200.0).view(30, 40)}


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, slowly; counts requests, and breaks off those that are to be cut."""

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[str] = Counter()
        self.cut = False
        super().__init__(('127.0.0.1', 0), functools.partial(Handler, directory=folder))

    @property
    def address(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        time.sleep(0.2)
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.server.cut else content)


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    (tmp_path / 'served').mkdir()
    with Server(tmp_path / 'served') as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home' / 'hub' / 'checkpoints'


def downloaded(cache: Path) -> list[str]:
    """The files there, without locks."""
    return sorted(path.name for path in cache.glob('*') if path.suffix != '.lock')


@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors', 'weights.safetensors?download=true'])
def test_a_file_is_downloaded_once(name, server, cache, tmp_path):
    """Other URLs follow the same way after it, whatever was asked for with it."""
    file = tmp_path / 'served' / name.partition('?')[0]
    (save_file if file.suffix == '.safetensors' else torch.save)(WEIGHTS, file)
    for _ in range(3):
        content = read_checkpoint(f'{server.address}/{name}')
        assert all(torch.equal(content[key], value) for key, value in WEIGHTS.items())
    assert server.requests == {f'/{name}': 1}
    assert downloaded(cache) == [file.name]


def test_what_torch_hub_has_is_not_downloaded(server, cache, tmp_path):
    torch.save(WEIGHTS, tmp_path / 'served' / 'weights.pth')
    url = f'{server.address}/weights.pth'
    torch.hub.load_state_dict_from_url(url, progress=False)
    read_checkpoint(url)
    assert server.requests.total() == 1


def test_one_of_several_processes_downloads(server, tmp_path):
    """Started together, as by torchrun; nothing else connects them."""
    torch.save(WEIGHTS, tmp_path / 'served' / 'weights.pth')
    with multiprocessing.get_context('fork').Pool(3) as pool:
        contents = pool.map(read_sum, [f'{server.address}/weights.pth'] * 3, chunksize=1)
    assert contents == [float(WEIGHTS['stem.conv1.weight'].sum())] * 3
    assert server.requests.total() == 1


def read_sum(url: str) -> float:
    return float(read_checkpoint(url)['stem.conv1.weight'].sum())


@pytest.mark.parametrize('kind', ['cut', 'a web page', 'empty'])
def test_what_is_no_whole_checkpoint_is_not_kept(kind, server, cache, tmp_path):
    """torch.hub would, and every later start would fail."""
    served, url = tmp_path / 'served' / 'weights.pth', f'{server.address}/weights.pth'
    torch.save(WEIGHTS, served)
    whole = served.read_bytes()
    server.cut = kind == 'cut'
    served.write_bytes({'cut': whole, 'a web page': b'<html>log in</html>', 'empty': b''}[kind])
    with pytest.raises(CheckpointError, match=r'weights\.pth .*(damaged|is empty)'):
        read_checkpoint(url)
    assert downloaded(cache) == []
    server.cut = False
    served.write_bytes(whole)
    assert torch.equal(read_checkpoint(url)['stem.conv1.weight'], WEIGHTS['stem.conv1.weight'])


def test_a_hash_in_the_name_is_verified(server, cache, tmp_path):
    path, _ = write_checkpoint(WEIGHTS, tmp_path / 'served' / 'weights.pth', hash_in_name=True)
    read_checkpoint(f'{server.address}/{path.name}')
    torch.save({'other': torch.ones(1)}, path.with_name('weights-0123abcd.pth'))
    with pytest.raises(CheckpointError, match=r'weights-0123abcd\.pth could not .*invalid hash.*0123abcd'):
        read_checkpoint(f'{server.address}/weights-0123abcd.pth')
    assert downloaded(cache) == [path.name]


def test_the_b_of_a_name_is_no_hash(server, tmp_path):
    """torch.hub's pattern takes it for one."""
    torch.save(WEIGHTS, tmp_path / 'served' / 'sgformer-b.pth')
    assert torch.hub.HASH_REGEX.search('sgformer-b.pth')
    assert read_checkpoint(f'{server.address}/sgformer-b.pth').keys() == WEIGHTS.keys()


def test_a_damaged_file_in_the_cache_is_named(cache):
    cache.mkdir(parents=True)
    (cache / 'weights.pth').write_text('damaged')
    with pytest.raises(CheckpointError, match=rf'http://a\.b/weights\.pth .* read from {cache}/weights\.pth'):
        read_checkpoint('http://a.b/weights.pth')


def test_a_folder_that_cannot_be_written_to_is_named(cache):
    """A file is in its place."""
    cache.parents[1].touch()
    with pytest.raises(CheckpointError, match=f'could not be downloaded: .*{cache}'):
        read_checkpoint('http://127.0.0.1:9/weights.pth')


def test_other_storages_are_mmengines(cache, tmp_path):
    class Bucket(LocalBackend):
        def get_local_path(self, filepath):
            return super().get_local_path(filepath.replace('bucket://', f'{tmp_path}/'))

    register_backend('bucket', Bucket, prefixes='bucket', force=True)
    torch.save(WEIGHTS, tmp_path / 'weights.pth')
    assert read_checkpoint('bucket://weights.pth').keys() == WEIGHTS.keys()
    assert not cache.exists()
