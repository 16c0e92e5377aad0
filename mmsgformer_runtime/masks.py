"""Masks of objects: from their boxes into the image, and as COCO's run lengths."""

import numpy as np


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Resize each mask into its box and cut it at a threshold, as mmdet does.

    Args:
        masks: Probabilities over the boxes, (N, h, w).
        boxes: x1, y1, x2, y2 in the image's pixels, (N, 4).
        size: Height and width of the image.

    Returns:
        (N, height, width), bool.
    """
    height, width = size
    pasted = np.zeros((len(masks), height, width), bool)
    for image, mask, (x1, y1, x2, y2) in zip(pasted, masks, boxes, strict=True):
        # Only around the box, where alone the mask is not 0.
        rows = _reach(y1, y2, height)
        columns = _reach(x1, x2, width)
        y_weights = _weights(rows, y1, y2, mask.shape[0])
        x_weights = _weights(columns, x1, x2, mask.shape[1])
        image[rows, columns] = y_weights @ mask @ x_weights.T >= threshold
    return pasted


def _reach(start: float, stop: float, limit: int) -> slice:
    """The pixels of a box along one axis, and one more on each side."""
    return slice(max(int(np.floor(start)) - 1, 0), min(int(np.ceil(stop)) + 1, limit))


def _weights(pixels: slice, start: float, stop: float, size: int) -> np.ndarray:
    """The matrix (pixels, size) that resizes one axis of a mask, linearly, with zeros around the mask."""
    centers = np.arange(pixels.start, pixels.stop, dtype=np.float32) + 0.5
    with np.errstate(divide='ignore', invalid='ignore'):
        places = (centers - start) / (stop - start) * size - 0.5
    places[~np.isfinite(places)] = (size - 1) / 2  # a box without an extent shows the middle, as mmdet's
    return np.maximum(1 - np.abs(places[:, None] - np.arange(size, dtype=np.float32)), 0).astype(np.float32)


def encode_rle(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths of a mask (H, W): column by column, as pycocotools writes them."""
    pixels = np.concatenate([[False], mask.flatten('F'), [False]])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    ends = np.concatenate([changes, [mask.size]]) if not len(changes) or changes[-1] != mask.size else changes
    counts = np.diff(ends, prepend=0).tolist()
    # From the fourth on, the difference to the count before the last.
    numbers = [count - counts[i - 2] if i > 2 else count for i, count in enumerate(counts)]
    return {'size': list(mask.shape), 'counts': ''.join(map(_characters, numbers))}


def _characters(number: int) -> str:
    """Five bits and a sign a character, lowest first; 32 says that more follow."""
    text = ''
    while True:
        bits = number & 0x1F
        number >>= 5
        more = number != (-1 if bits & 0x10 else 0)
        text += chr(bits + 0x20 * more + 48)
        if not more:
            return text
