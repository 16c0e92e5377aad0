"""The demo's pictures: predictions beside ground truth."""

import contextlib
from pathlib import Path

import cv2
import matplotlib
import mmengine
import numpy as np
from make_shapes import CLASSES
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

# Okabe-Ito: told apart by colour-blind readers too. They differ from the shapes' own hues on purpose.
COLORS = ('#D55E00', '#56B4E9', '#009E73', '#F0E442')
NUM_PICTURES = 6
SCORE_THRESHOLD = 0.5
ROWS = ('image', 'ground truth', 'prediction')


def _sheet(title: str) -> tuple[plt.Figure, np.ndarray]:
    """A figure with one column per picture and the rows of `ROWS`, a legend of the classes below."""
    fig, axes = plt.subplots(len(ROWS), NUM_PICTURES, figsize=(13, 7.4), layout='constrained')
    fig.suptitle(title)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, row in zip(axes[:, 0], ROWS, strict=True):
        ax.set_ylabel(row, fontsize=12)
    handles = [Patch(color=color, label=name) for name, color in zip(CLASSES, COLORS, strict=True)]
    fig.legend(handles=handles, loc='outside lower center', ncols=len(handles), frameon=False)
    return fig, axes


def _paint(ax: Axes, image: np.ndarray, masks: list[tuple[int, np.ndarray]], alpha: float) -> None:
    """Show an image in grey with the class's colour over every (class index, mask)."""
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2) / 255
    for kind, mask in masks:
        color = matplotlib.colors.to_rgb(COLORS[kind])
        grey[mask] = (1 - alpha) * grey[mask] + alpha * np.array(color)
    ax.imshow(grey)


def _box(ax: Axes, kind: int, x: float, y: float, width: float, height: float, text: str = '') -> None:
    ax.add_patch(Rectangle((x, y), width, height, fill=False, color=COLORS[kind], linewidth=1.5))
    if text:
        background = {'facecolor': 'black', 'alpha': 0.6, 'pad': 1, 'linewidth': 0}
        ax.text(max(x, 0) + 2, max(y, 0) + 2, text, color='white', fontsize=7, va='top', bbox=background)


def _read_image(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def draw_detections(data: Path, predictions: Path, out: Path) -> Path:
    """Boxes and masks of the first held-out images: the annotations and what the detector says."""
    with contextlib.redirect_stdout(None):  # pycocotools reports its progress there
        coco = COCO(str(data / 'annotations' / 'instances_val2017.json'))
    fig, axes = _sheet(f'Detection on held-out images (score >= {SCORE_THRESHOLD})')
    samples = sorted(mmengine.load(predictions), key=lambda sample: sample['img_id'])
    for column, sample in zip(axes.T, samples, strict=False):
        image = _read_image(Path(sample['img_path']))
        column[0].imshow(image)
        annotations = coco.loadAnns(coco.getAnnIds(sample['img_id']))
        _paint(
            column[1],
            image,
            [(a['category_id'] - 1, coco.annToMask(a).astype(bool)) for a in annotations],
            0.6,
        )
        for a in annotations:
            _box(column[1], a['category_id'] - 1, *a['bbox'])
        found = sample['pred_instances']
        kept = [i for i, score in enumerate(found['scores']) if score >= SCORE_THRESHOLD]
        masks = [(int(found['labels'][i]), coco_mask.decode(found['masks'][i]).astype(bool)) for i in kept]
        _paint(column[2], image, masks, 0.6)
        for i in kept:
            left, top, right, bottom = found['bboxes'][i].tolist()
            text = f'{found["scores"][i]:.2f}'
            _box(column[2], int(found['labels'][i]), left, top, right - left, bottom - top, text)
    fig.savefig(out, dpi=110)
    plt.close(fig)
    return out


def draw_segmentations(data: Path, predictions: Path, out: Path) -> Path:
    """Label maps of the first held-out images: the annotations and what the segmenter says."""
    fig, axes = _sheet('Semantic segmentation on held-out images')
    samples = sorted(mmengine.load(predictions), key=lambda sample: sample['img_path'])
    for column, sample in zip(axes.T, samples, strict=False):
        path = Path(sample['img_path'])
        image = _read_image(path)
        truth = cv2.imread(
            str(data / 'annotations' / 'validation' / f'{path.stem}.png'), cv2.IMREAD_GRAYSCALE
        )
        # In the files 1 is background and shapes start at 2, in the predictions both are one less.
        labels = [truth.astype(int) - 2, sample['pred_sem_seg']['data'][0].numpy().astype(int) - 1]
        column[0].imshow(image)
        for ax, label in zip(column[1:], labels, strict=True):
            _paint(ax, image, [(kind, label == kind) for kind in range(len(CLASSES))], 0.8)
    fig.savefig(out, dpi=110)
    plt.close(fig)
    return out
