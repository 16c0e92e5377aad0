"""Write a small synthetic dataset of shapes on textures, in COCO's, ADE20K's and ImageNet's format.

OUT/annotations/instances_{train,val}2017.json with OUT/{train,val}2017/ is what mmdet's CocoDataset reads;
OUT/images/{training,validation}/ with OUT/annotations/{training,validation}/ (0 = unlabelled, 1 =
background, then the shapes) is what mmseg reads; OUT/{train,val}/CLASS/ with one crop per shape is what
mmpretrain reads. All show the same pictures. The same seed writes the same files.
"""

import argparse
import colorsys
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from rich.progress import track

CLASSES = ('disc', 'square', 'triangle', 'star')
HUES = (0, 220, 120, 50)  # degrees: red, blue, green, yellow
SPLITS = {'train': 'training', 'val': 'validation'}
# Objects overlap, but at least this share of each stays visible.
MIN_VISIBLE = 0.3


def textured(rng: np.random.Generator, size: int, base: np.ndarray, contrast: float) -> np.ndarray:
    """A random texture around a colour: smooth noise of a random scale plus stripes, (size, size, 3)."""
    cells = int(rng.integers(3, size // 4))
    noise = cv2.resize(rng.normal(0, 1, (cells, cells, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(0.1, 0.8)
    y, x = np.mgrid[:size, :size]
    stripes = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
    return base + contrast * (noise + rng.uniform(0, 1) * stripes)


def bgr(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour in OpenCV's channel order, (3,) in 0-255; the hue in degrees, the others in 0-1."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue / 360 % 1.0, saturation, value))[::-1]


def polygon(rng: np.random.Generator, kind: str, radius: float) -> np.ndarray:
    """Corner offsets (n, 2) of a randomly turned shape that fits a circle of this radius, in pixels."""
    corners, radii = {
        'disc': (48, [1.0]),
        'square': (4, [1.0]),
        'triangle': (3, [1.0]),
        'star': (10, [1.0, 0.42]),
    }[kind]
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    lengths = radius * np.resize(radii, corners)
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1)


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One picture (size, size, 3) uint8 and its objects, (class index, visible mask (size, size) bool)."""
    background = bgr(rng.uniform(0, 360), rng.uniform(0.0, 0.4), rng.uniform(0.2, 0.9))
    image = textured(rng, size, background, rng.uniform(8, 25))
    objects: list[tuple[int, np.ndarray]] = []
    areas: list[float] = []
    for _ in range(rng.integers(2, 6)):
        kind = int(rng.integers(len(CLASSES)))
        radius = rng.uniform(0.10, 0.22) * size
        center = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        mask = np.zeros((size, size), np.uint8)
        corners = np.round(center + polygon(rng, CLASSES[kind], radius)).astype(np.int32)
        cv2.fillPoly(mask, [corners], 1)
        mask = mask.astype(bool)
        if any(
            (seen & ~mask).sum() < MIN_VISIBLE * area for (_, seen), area in zip(objects, areas, strict=True)
        ):
            continue
        # A class has a typical hue, as things do, so that a few minutes are enough to learn it.
        hue = HUES[kind] + rng.uniform(-20, 20)
        colour = bgr(hue, rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0))
        image[mask] = textured(rng, size, colour, rng.uniform(2, 15))[mask]
        objects = [(other, seen & ~mask) for other, seen in objects] + [(kind, mask)]
        areas.append(mask.sum())
    image = cv2.GaussianBlur(image, (3, 3), 0) + rng.normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), objects


def crop_around(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The square around a mask (size, size), with a tenth of margin and moved inside the image."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    side = min(int(1.2 * max(np.ptp(rows), np.ptp(columns))) + 1, len(mask))
    top, left = (
        int(np.clip((found[0] + found[-1] - side) // 2, 0, len(mask) - side)) for found in (rows, columns)
    )
    return image[top : top + side, left : left + side]


def write_split(out: Path, split: str, num_images: int, size: int, rng: np.random.Generator) -> None:
    """Write one split's pictures, label maps and COCO annotations under `out`."""
    long_name = SPLITS[split]
    folders = [out / f'{split}2017', out / 'images' / long_name, out / 'annotations' / long_name]
    for folder in [*folders, *(out / split / name for name in CLASSES)]:
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in track(range(1, num_images + 1), description=f'{split}: writing {num_images} images'):
        image, objects = draw_scene(rng, size)
        stem = f'{image_id:06d}'
        labels = np.ones((size, size), np.uint8)
        for kind, mask in objects:
            labels[mask] = kind + 2
            crop = out / split / CLASSES[kind] / f'{stem}_{len(annotations) + 1}.jpg'
            cv2.imwrite(str(crop), crop_around(image, mask))
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': kind + 1,
                    'bbox': coco_mask.toBbox(rle).tolist(),
                    'area': int(mask.sum()),
                    'iscrowd': 0,
                    'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()},
                }
            )
        images.append({'id': image_id, 'file_name': f'{stem}.jpg', 'width': size, 'height': size})
        for folder, suffix, array in zip(folders, ['jpg', 'jpg', 'png'], [image, image, labels], strict=True):
            cv2.imwrite(str(folder / f'{stem}.{suffix}'), array)
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES, 1)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (out / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(content))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and write both splits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='folder to write to; made if needed')
    parser.add_argument('--train', type=int, default=800, help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=60, help='held-out images (default: %(default)s)')
    parser.add_argument(
        '--size', type=int, default=112, help='side of an image, pixels (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    for index, (split, count) in enumerate([('train', args.train), ('val', args.val)]):
        write_split(args.out, split, count, args.size, np.random.default_rng([args.seed, index]))


if __name__ == '__main__':
    main()
