"""Images are prepared without OpenCV and MMCV as the frameworks' pipelines prepare them."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import CenterCrop, Compose, LoadImageFromFile, Resize
from mmpretrain.datasets import ResizeEdge
from PIL import Image

pytest.importorskip('onnxscript')
from mmsgformer.export.metadata import preparation
from mmsgformer_runtime import InputError
from mmsgformer_runtime.images import find_images, prepare, read_image, resize_like_opencv


def noise(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ('size', 'new_size'),
    [
        ((48, 64), (80, 107)),
        ((50, 33), (133, 88)),
        ((64, 48), (32, 24)),
        ((37, 61), (64, 64)),
        ((100, 100), (33, 47)),
        ((1, 5), (7, 3)),
    ],
)
def test_resizing_is_opencvs(size, new_size):
    """Every pixel, larger and smaller, at the edges too."""
    image = noise(*size)
    expected = cv2.resize(image, new_size[::-1])
    np.testing.assert_array_equal(resize_like_opencv(image, *new_size), expected)


PIPELINES = {
    'within': [dict(type='Resize', scale=(133, 80), keep_ratio=True)],
    'exactly': [dict(type='Resize', scale=(64, 48), keep_ratio=False)],
    'imagenet': [
        dict(type='ResizeEdge', scale=56, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=48),
    ],
    'crop': [dict(type='CenterCrop', crop_size=48)],
}
CLASSES = {'Resize': Resize, 'ResizeEdge': ResizeEdge, 'CenterCrop': CenterCrop}


@pytest.mark.parametrize('pipeline', PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize('size', [(61, 90), (90, 61), (40, 200)])
def test_steps_are_those_of_the_pipeline(pipeline, size, tmp_path):
    """From the file to the network's input; a PNG, since decoders of JPEG may differ."""
    Image.fromarray(noise(*size)).save(tmp_path / 'image.png')
    steps = [CLASSES[step['type']](**{k: v for k, v in step.items() if k != 'type'}) for step in pipeline]
    expected = Compose([LoadImageFromFile(), *steps])({'img_path': str(tmp_path / 'image.png')})['img']
    prepared = prepare(
        read_image(tmp_path / 'image.png'), preparation([dict(type='LoadImageFromFile'), *pipeline])
    )
    np.testing.assert_array_equal(prepared, expected[..., ::-1])


def test_a_photo_is_turned_by_its_exif_data(tmp_path):
    """As MMCV turns it, or boxes would be in another picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30)).save(tmp_path / 'turned.jpg', exif=exif, quality=100, subsampling=0)
    expected = LoadImageFromFile()({'img_path': str(tmp_path / 'turned.jpg')})['img'][..., ::-1]
    image = read_image(tmp_path / 'turned.jpg')
    assert image.shape == expected.shape == (30, 20, 3)
    assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (lambda path: path.write_bytes(b'no image'), 'is no image that can be read'),
        (lambda path: None, 'is no image that can be read'),
        (lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path), '8 bits'),
    ],
    ids=['text', 'missing', '16 bits'],
)
def test_what_cannot_be_read_is_named(write, message, tmp_path):
    write(tmp_path / 'bad.png')
    with pytest.raises(InputError, match=rf'bad\.png .*{message}'):
        read_image(tmp_path / 'bad.png')


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(InputError, match='no folder with images'):
        find_images(tmp_path)
