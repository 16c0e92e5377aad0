"""The pictures of a test: which files, of which pixels, from which process."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from PIL import Image

from mmsgformer.engine import pictures
from mmsgformer.engine.pictures import PicturesHook


@pytest.fixture
def runner(tmp_path):
    """What the hook needs of a Runner, with two batches and a visualizer that writes the image as it is."""
    init_default_scope('mmseg')

    def write(name: str, image: np.ndarray, data_sample: BaseDataElement, out_file: str) -> None:
        Path(out_file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(out_file)

    steps = [dict(type='LoadImageFromFile', color_type='color_ignore_orientation')]
    dataset = SimpleNamespace(pipeline=Compose(steps), data_root=str(tmp_path / 'data'))
    loader = type('Loader', (), {'__len__': lambda _: 2, 'dataset': dataset})()
    return SimpleNamespace(test_dataloader=loader, visualizer=SimpleNamespace(add_datasample=write))


def test_images_keep_their_names_and_pixels(runner, tmp_path):
    """Of one name in two folders, and outside the data root; turned by EXIF, which the pipeline ignores."""
    rng = np.random.default_rng(0)
    stored, samples = {}, []
    for name in ('data/disc/1.png', 'data/star/1.png', 'elsewhere/1.png'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stored[f'{name.removeprefix("data/")}.png'] = image = rng.integers(0, 256, (4, 6, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(image).save(path, exif=exif)
        samples.append(BaseDataElement(metainfo={'img_path': str(path)}))
    hook = PicturesHook(str(tmp_path / 'out'))
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, outputs=samples[:2])
    hook.after_test_iter(runner, 1, outputs=samples[2:])
    written = {str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.png')}
    assert written == set(stored)
    for name, image in stored.items():
        drawn = cv2.imread(str(tmp_path / 'out' / name))[..., ::-1]
        np.testing.assert_array_equal(drawn, image)


def test_every_process_exchanges_as_often(runner, monkeypatch, tmp_path):
    """The one with the fewest batches too: the others would wait for it for ever."""
    calls = []
    monkeypatch.setattr(pictures, 'all_gather_object', lambda own: calls.append(own) or [2, 5])
    monkeypatch.setattr(pictures, 'is_main_process', lambda: False)
    hook = PicturesHook(str(tmp_path))
    hook.before_test(runner)
    for batch in range(2):
        hook.after_test_iter(runner, batch, outputs=[BaseDataElement()])
    assert len(calls) == 1 + 5
    assert calls[-3:] == [[], [], []]
