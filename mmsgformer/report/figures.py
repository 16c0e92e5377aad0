"""Pictures as text that a page holds itself: curves as SVG, images as WebP."""

import base64
import io
from collections.abc import Mapping, Set
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mmsgformer.report.logs import Curves

MAX_SIDE = 800  # pixels
QUALITY = 80
MAX_POINTS = 1000  # of a curve


class Panel(NamedTuple):
    """A picture of curves."""

    title: str
    uri: str


def as_uri(image: np.ndarray) -> str:
    """An image (H, W, 3), RGB uint8, as a data URI, made smaller where it is large."""
    scale = MAX_SIDE / max(image.shape[:2])
    if scale < 1:
        size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(
        '.webp', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, QUALITY]
    )
    return _uri('image/webp', data.tobytes())


def _uri(kind: str, data: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def draw_panels(curves: Curves, metrics: Set[str]) -> list[Panel]:
    """The loss, its parts, the learning rate, and those that are metrics of validations."""
    parts = {
        key: points
        for key, points in curves.items()
        if 'loss' in key and key != 'loss' and key not in metrics
    }
    groups = {'loss': {'loss': curves.get('loss', [])}, 'parts of the loss': parts}
    groups['learning rate'] = {'lr': curves.get('lr', [])}
    for key in sorted(metrics):
        known = [
            (at, value) for at, value in curves[key] if value >= 0
        ]  # COCO's -1: there are no such objects
        groups.setdefault(_group(key), {})[key.rpartition('/')[2]] = known
    panels = []
    for title, lines in groups.items():
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            panels.append(Panel(title, _draw(title, lines)))
    return panels


def _group(key: str) -> str:
    """Metrics of a name like coco/bbox_mAP_50 belong together by its beginning."""
    name = key.rpartition('/')[2]
    kind = {'bbox': ' of boxes', 'segm': ' of masks'}.get(name.partition('_')[0], '')
    return f'metrics{kind} in validations'


def _draw(title: str, lines: Mapping[str, list[tuple[int, float]]]) -> str:
    """Curves over iterations as a data URI of an SVG picture."""
    with matplotlib.rc_context({'font.size': 11, 'svg.hashsalt': title}):
        figure = Figure(figsize=(5.2, 3.4), layout='constrained')
        ax = figure.subplots()
        colors = matplotlib.colormaps['tab10'].colors
        for color, (name, points) in zip(np.resize(colors, (len(lines), 3)), lines.items(), strict=True):
            points = points[:: -(-len(points) // MAX_POINTS)]
            ax.plot(
                *zip(*points, strict=True), color=color, marker='o' if len(points) <= 20 else '', label=name
            )
        ax.set(
            xlabel='iteration',
            ylim=(0, 1.05 * max(value for points in lines.values() for _, value in points) or 1),
        )
        ax.grid(alpha=0.3)
        if list(lines) not in (['loss'], ['lr']):
            ax.legend(fontsize=8, ncols=2 if len(lines) > 5 else 1)
        file = io.BytesIO()
        figure.savefig(file, format='svg', metadata={'Date': None})
    return _uri('image/svg+xml', file.getvalue())
