"""Image files and the steps that make a model's input of them, as OpenMMLab's pipelines do."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmsgformer_runtime.errors import InputError

ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
_FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


def read_image(path: str | Path) -> np.ndarray:
    """An image file, turned as its EXIF data says: RGB, (H, W, 3) uint8.

    Raises:
        InputError: It is no image that can be read, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(('I', 'F')):
                raise InputError(f'{path} has more than 8 bits a channel; convert it to 8 bits')
            return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    except OSError as error:
        raise InputError(f'{path} is no image that can be read') from error


def find_images(path: str | Path) -> list[Path]:
    """The image itself, or all images of a folder, by name.

    Raises:
        InputError: There is no such path, or no image in the folder.
    """
    path = Path(path)
    images = [path]
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.name.lower().endswith(ENDINGS))
    if not images or not path.exists():
        raise InputError(f'{path} is no image and no folder with images ({", ".join(ENDINGS)})')
    return images


def prepare(image: np.ndarray, steps: Sequence[Mapping]) -> np.ndarray:
    """Take an image (H, W, 3) through the steps of a model's metadata -> (H', W', 3), uint8."""
    for step in steps:
        image = _STEPS[step['step']](image, step)
    return image


def _resize(image: np.ndarray, step: Mapping) -> np.ndarray:
    """To `size` (width, height); with `keep_ratio` the largest that fits into it, however it is turned."""
    height, width = image.shape[:2]
    new_width, new_height = step['size']
    if step['keep_ratio']:
        long, short = max(step['size']), min(step['size'])
        scale = min(long / max(height, width), short / min(height, width))
        new_width, new_height = int(width * scale + 0.5), int(height * scale + 0.5)
    return _resized(image, new_height, new_width, step)


def _resize_edge(image: np.ndarray, step: Mapping) -> np.ndarray:
    """The shorter edge to `size`."""
    height, width = image.shape[:2]
    size = step['size']
    if width < height:
        return _resized(image, int(size * height / width), size, step)
    return _resized(image, size, int(size * width / height), step)


def _center_crop(image: np.ndarray, step: Mapping) -> np.ndarray:
    """The middle of `size` (width, height), or what there is of it."""
    height, width = image.shape[:2]
    new_width, new_height = (min(new, old) for new, old in zip(step['size'], (width, height), strict=True))
    top, left = round((height - new_height) / 2), round((width - new_width) / 2)
    return image[top : top + new_height, left : left + new_width]


_STEPS = {'resize': _resize, 'resize_edge': _resize_edge, 'center_crop': _center_crop}


def _resized(image: np.ndarray, height: int, width: int, step: Mapping) -> np.ndarray:
    """By Pillow, or as OpenCV does, whichever the model was trained with."""
    if image.shape[:2] == (height, width):
        return image
    if step['like'] == 'pillow':
        return np.asarray(Image.fromarray(image).resize((width, height), _FILTERS[step['interpolation']]))
    return resize_like_opencv(image, height, width)


def resize_like_opencv(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, of the two nearest pixels however much smaller the result is, in OpenCV's integers.

    Args:
        image: (H, W, C) uint8.
        height, width: Of the result.

    Returns:
        (height, width, C) uint8, what `cv2.resize` gives.
    """
    left, right, x_weights = _neighbours(image.shape[1], width)
    top, bottom, y_weights = _neighbours(image.shape[0], height)
    pixels = image.astype(np.int32)
    weights = x_weights[:, :, None]
    rows = (pixels[:, left] * weights[0] + pixels[:, right] * weights[1]) >> 4
    weights = y_weights[:, :, None, None]
    blended = ((rows[top] * weights[0]) >> 16) + ((rows[bottom] * weights[1]) >> 16)
    return ((blended + 2) >> 2).clip(0, 255).astype(np.uint8)


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each new pixel: the two old ones, and their weights (2, new_size), which add up to 2048."""
    places = ((np.arange(new_size) + 0.5) * (size / new_size) - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.int64)
    fraction = places - first.astype(np.float32)
    weights = np.rint(np.stack([1 - fraction, fraction]) * 2048).astype(np.int32)
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), weights
