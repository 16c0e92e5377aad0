"""Pictures of predictions: boxes and masks, label maps, or the class."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHOWN_FROM = 0.3  # score; the frameworks' pictures have no weaker objects either
_OPACITY = 0.5


def draw(image: np.ndarray, task: str, found: Mapping[str, np.ndarray], metadata: Mapping) -> np.ndarray:
    """An image (H, W, 3) with what `Model.predict` found in it; RGB uint8."""
    classes, colors = metadata['classes'], palette(metadata)
    if task == 'segmentation':
        return _blend(image, colors[found['labels'] % len(colors)])
    if task == 'classification':
        best = int(found['scores'].argmax())
        return _with_texts(image, [((2, 2), f'{classes[best]} {found["scores"][best]:.2f}', (0, 0, 0))], [])
    shown = [i for i in range(len(found['scores'])) if found['scores'][i] >= SHOWN_FROM]
    texts, boxes = [], []
    for i in shown:
        label = int(found['labels'][i])
        color = tuple(map(int, colors[label]))
        if 'masks' in found:
            mask = found['masks'][i]
            image = np.where(
                mask[..., None], _blend(image, np.broadcast_to(colors[label], image.shape)), image
            )
        x1, y1, x2, y2 = map(float, found['boxes'][i])
        boxes.append(((x1, y1, max(x1, x2), max(y1, y2)), color))
        texts.append(((x1, y1), f'{classes[label]} {found["scores"][i]:.2f}', color))
    return _with_texts(image, texts, boxes)


def palette(metadata: Mapping) -> np.ndarray:
    """A colour for each class, (classes, 3) uint8: the metadata's, or hues around the circle."""
    if metadata['palette']:
        return np.array(metadata['palette'], np.uint8)
    number = len(metadata['classes'])
    hues = [colorsys.hsv_to_rgb(i / number, 0.8, 0.9) for i in range(number)]
    return (np.array(hues) * 255).astype(np.uint8)


def _blend(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (image * (1 - _OPACITY) + other * _OPACITY).astype(np.uint8)


def _with_texts(image: np.ndarray, texts: Sequence[tuple], boxes: Sequence[tuple]) -> np.ndarray:
    """Boxes with a colour; texts with a place and the colour of what is behind them."""
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, min(image.shape[:2]) // 40))
    for box, color in boxes:
        canvas.rectangle(box, outline=color, width=max(1, min(image.shape[:2]) // 250))
    for place, text, color in texts:
        canvas.rectangle(canvas.textbbox(place, text, font), fill=color)
        canvas.text(place, text, fill='white' if sum(color) < 450 else 'black', font=font)
    return np.asarray(picture)
