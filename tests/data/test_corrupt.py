"""Corrupted images: as `imagecorruptions` makes them, and the same every time."""

import sys

import numpy as np
import pytest

from mmsgformer.data.corrupt import CorruptImage, corruption_names

imagecorruptions = pytest.importorskip('imagecorruptions')
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def corrupt(name: str, severity: int, path: str = 'a/photo.png') -> np.ndarray:
    return CorruptImage(name, severity)({'img': IMAGE.copy(), 'img_path': path})['img']


@pytest.mark.parametrize('name', corruption_names('all'))
def test_a_file_is_corrupted_the_same_way_every_time(name):
    """Wherever it lies, whatever was drawn before; and nobody else's random numbers change."""
    np.random.seed(1)
    first = corrupt(name, 2)
    drawn = np.random.rand()
    np.random.seed(1)
    assert np.random.rand() == drawn
    np.random.seed(2)
    assert np.array_equal(first, corrupt(name, 2, 'elsewhere/photo.png'))
    assert first.dtype == np.uint8
    assert first.shape == IMAGE.shape
    assert not np.array_equal(first, IMAGE)


@pytest.mark.parametrize('name', ['gaussian_noise', 'impulse_noise', 'glass_blur', 'frost'])
def test_files_and_severities_are_corrupted_differently(name):
    first = corrupt(name, 2)
    assert not np.array_equal(first, corrupt(name, 2, 'a/other.png'))
    assert not np.array_equal(first, corrupt(name, 3))


def test_the_package_sees_red_first():
    expected = imagecorruptions.corrupt(
        np.ascontiguousarray(IMAGE[..., ::-1]), corruption_name='jpeg_compression', severity=3
    )
    assert np.array_equal(corrupt('jpeg_compression', 3), expected[..., ::-1])


@pytest.mark.parametrize(
    ('name', 'severity', 'message'),
    [('haze', 1, "one of gaussian_noise, .* got 'haze'"), ('fog', 0, 'severity must be 1 to 5, got 0')],
)
def test_bad_arguments_are_named(name, severity, message):
    with pytest.raises(ValueError, match=message):
        CorruptImage(name, severity)


def test_a_small_image_is_named():
    with pytest.raises(ValueError, match=r'a/b\.png: 40 x 31 pixels; corruptions need 32'):
        CorruptImage('fog', 1)({'img': IMAGE[:31, :40], 'img_path': 'a/b.png'})


def test_without_the_package_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, 'imagecorruptions', None)
    with pytest.raises(ImportError, match='pip install imagecorruptions-imaug'):
        CorruptImage('fog', 1)
