"""Files from http(s), kept where torch.hub keeps them: downloaded once per machine, whole or not at all."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from filelock import FileLock
from mmengine.logging import print_log

# As in name-0123abcd.pth. torch.hub's own pattern also takes the b of sgformer-b.pth for a hash.
_HASH = re.compile(r'-([0-9a-f]{8,})\.')


def cached_download(url: str, check: Callable[[Path], object]) -> Path:
    """The local file of a URL, in `TORCH_HOME/hub/checkpoints` under the name that the URL ends in.

    Of several processes one downloads and the others wait, however they were started. A hash in the name is
    verified.

    Args:
        url: Its file is downloaded if there is none of its name.
        check: Is given what was downloaded before it gets its name, and raises if it is no good. torch takes
            a connection that breaks off, or a login page, for the whole file.

    Raises:
        OSError: The server or the folder cannot be reached, or another error of the network.
        RuntimeError: The file does not have the hash in its name.
    """
    path = Path(torch.hub.get_dir(), 'checkpoints', PurePosixPath(urlsplit(url).path).name)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        if not path.is_file():
            print_log(f'downloading {url} to {path}', 'current')
            partial = path.with_stem(f'{path.stem}.part')
            digest = _HASH.search(path.name)
            try:
                torch.hub.download_url_to_file(url, str(partial), digest and digest[1])
                check(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    return path
