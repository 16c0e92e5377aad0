"""Pictures of what SG-Former sees: panels and strips of significance maps and token allocation."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmsgformer.mixers.sgformer import RUN_LENGTHS
from mmsgformer.visualization.maps import SignificanceMap, token_allocation

# Finest first; told apart by colour-blind readers, and by lightness alone.
_ALLOCATION_COLORS = ('#F0E442', '#009E73', '#3B2F6B')


def seen_part(image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
    """The part of an image (H, W, 3) that the network saw: a classifier's pipeline cuts out the centre.

    Args:
        image: The image as it is in the file.
        sample: Its data sample, whose meta data say how it was resized and what size was left.
    """
    x_scale, y_scale = sample.metainfo.get('scale_factor', (1.0, 1.0))
    height, width = sample.img_shape[:2]
    height, width = round(height / y_scale), round(width / x_scale)
    top, left = max(image.shape[0] - height, 0) // 2, max(image.shape[1] - width, 0) // 2
    return image[top : top + height, left : left + width]


def draw_panel(
    image: np.ndarray, maps: Sequence[SignificanceMap], title: str, prediction: np.ndarray | None = None
) -> Figure:
    """One picture that says where a network looks: a column per stage beside the image.

    The rows are the significance of the stage's first and last hybrid-scale block, by rank, since the merge
    sees no more than the order; and what the block after the last one makes of it: which tokens stay fine and
    which are merged.

    Args:
        image: (H, W, 3), RGB uint8.
        maps: Maps of this image alone, B = 1.
        title: A line above.
        prediction: The image with predictions drawn, of the same shape.
    """
    stages = sorted({m.stage for m in maps})
    aspect = min(max(image.shape[1] / image.shape[0], 0.8), 2.0)
    figure = Figure(figsize=(3.2 * aspect * (1 + len(stages)), 10.5), layout='constrained')
    axes = figure.subplots(3, 1 + len(stages), squeeze=False)
    figure.suptitle(title)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.set_axis_off()
    _show(axes[0, 0], 'image', image)
    if prediction is not None:
        _show(axes[1, 0], 'prediction', prediction)
    for column, stage in zip(axes[:, 1:].T, stages, strict=True):
        of_stage = [m for m in maps if m.stage == stage]
        # Some stages have one such block only.
        for ax, m in zip(column, of_stage[:1] + of_stage[1:][-1:], strict=False):
            shown = _show_ranks(ax, f'stage {stage + 1}, block {m.block + 1}', image, m)
        levels = sorted(RUN_LENGTHS[stage])
        lengths = token_allocation(of_stage[-1].values, stage)[0]
        colors = ListedColormap(_ALLOCATION_COLORS[: len(levels)])
        _show(column[2], f'stage {stage + 1}, keys and values', _faded(image))
        _overlay(column[2], image, np.searchsorted(levels, lengths), cmap=colors)
        names = ['kept' if level == 1 else f'{level} to 1' for level in levels]
        handles = [Patch(color=color, label=name) for color, name in zip(colors.colors, names, strict=True)]
        place = dict(loc='upper center', bbox_to_anchor=(0.5, 0.0), ncols=3)
        column[2].legend(handles=handles, frameon=False, columnspacing=1.0, handlelength=1.2, **place)
    bar = figure.colorbar(shown, ax=axes[:2, -1], shrink=0.6, ticks=[0, 1])
    bar.set_ticklabels(['least', 'most'])
    bar.set_label('significance, by rank')
    return figure


def draw_strip(image: np.ndarray, maps: Sequence[SignificanceMap], title: str) -> Figure:
    """One row: the image and the significance, by rank, of each stage's last hybrid-scale block.

    Small enough to be put one below the other: how the maps change while a model trains.

    Args:
        image: (H, W, 3), RGB uint8.
        maps: Maps of this image alone, B = 1.
        title: What this is, written at the left.
    """
    last = {m.stage: m for m in maps}
    aspect = min(max(image.shape[1] / image.shape[0], 0.8), 2.0)
    figure = Figure(figsize=(2.0 * aspect * (1 + len(last)) + 0.4, 2.4), layout='constrained')
    axes = figure.subplots(1, 1 + len(last), squeeze=False)[0]
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    _show(axes[0], 'image', image)
    axes[0].set_ylabel(title)
    for ax, (stage, m) in zip(axes[1:], last.items(), strict=True):
        _show_ranks(ax, f'stage {stage + 1}', image, m)
    return figure


def draw_map(image: np.ndarray, significance: SignificanceMap) -> Figure:
    """The significance of one block, by rank, over the image; nothing else.

    Args:
        image: (H, W, 3), RGB uint8.
        significance: A map of this image alone, B = 1.
    """
    figure = Figure(figsize=(4, 4 * image.shape[0] / image.shape[1]))
    ax = figure.add_axes((0, 0, 1, 1))
    _show_ranks(ax, '', image, significance)
    ax.set_axis_off()
    return figure


def as_image(figure: Figure) -> np.ndarray:
    """A figure as an image (H, W, 3), RGB uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _show(ax: Axes, title: str, image: np.ndarray) -> None:
    """Show an image, in grey if it has one channel, under a title."""
    ax.set_axis_on()
    ax.set_title(title)
    ax.imshow(image, cmap='gray', vmin=0, vmax=255)


def _faded(image: np.ndarray) -> np.ndarray:
    """An image in grey of little contrast: what is dark in it must not look like a low value of the map."""
    return 64 + image.mean(axis=2) / 2


def _show_ranks(ax: Axes, title: str, image: np.ndarray, m: SignificanceMap) -> ScalarMappable:
    """Lay the ranks of a map, from 0 to 1, over an image in grey."""
    _show(ax, title, _faded(image))
    ranks = m.values.flatten().argsort().argsort().view_as(m.values[0])
    return _overlay(ax, image, ranks / max(ranks.max(), 1), cmap='cividis', vmin=0, vmax=1)


def _overlay(ax: Axes, image: np.ndarray, values: np.ndarray | Tensor, **scale: object) -> ScalarMappable:
    """Lay a map (h, w) of any resolution over the image that is shown."""
    height, width = image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    return ax.imshow(values, alpha=0.7, extent=extent, interpolation='nearest', **scale)
