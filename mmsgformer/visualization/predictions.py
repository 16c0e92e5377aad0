"""A config and a checkpoint -> predictions for image files; the same for mmdet, mmseg and mmpretrain."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement

from mmsgformer.checkpoint.files import read_checkpoint
from mmsgformer.checkpoint.load import prepare_for_model
from mmsgformer.data.classes import require_agreement
from mmsgformer.visualization.maps import SignificanceMap, batch_maps

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


class Predictor:
    """A detector, segmenter or classifier with an `SGFormer` backbone, ready for image files.

    Args:
        config: Config file.
        checkpoint: Checkpoint of the whole model, in any layout that `tools/test.py` takes.
        device: torch's name of a device; None: the accelerator if there is one.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
        DataError: The classes of the config and of the checkpoint are not the same.
    """

    def __init__(self, config: str | Path, checkpoint: str | Path, device: str | None = None) -> None:
        cfg = Config.fromfile(config)
        init_default_scope(cfg.default_scope)
        content = dict(read_checkpoint(checkpoint))
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        prepare_for_model(content, model, checkpoint, strict=True)
        model.load_state_dict(content['state_dict'])
        self.model = model.to(device or get_device()).eval()
        trained_on = content.get('meta', {}).get('dataset_meta') or {}
        require_agreement(cfg, trained_on.get('classes'))
        dataset = cfg.test_dataloader.dataset
        self.pipeline = Compose([step for step in dataset.pipeline if step.type != 'LoadAnnotations'])
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
            default = registry.get(dataset.type).METAINFO
        self.visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None})
        self.visualizer.dataset_meta = trained_on or {**default, **dataset.get('metainfo', {})}

    @torch.no_grad()
    def predict(self, path: str | Path) -> BaseDataElement:
        """The framework's data sample for an image file, with the predictions.

        Raises:
            ValueError: The file is no image that can be read.
        """
        return self.model.test_step(self._batch(path))[0].cpu()

    def maps(self, path: str | Path) -> list[SignificanceMap]:
        """The significance maps of an image file, without the padding of the model's input.

        Raises:
            ValueError: The file is no image that can be read.
        """
        return batch_maps(self.model, self._batch(path))

    def draw(self, path: str | Path, sample: BaseDataElement) -> np.ndarray:
        """The image (H, W, 3), RGB uint8, with a data sample's predictions drawn by the framework."""
        image = read_image(path)
        if hasattr(self.visualizer, 'visualize_cls'):
            return self.visualizer.visualize_cls(image, sample, draw_gt=False)
        self.visualizer.add_datasample('prediction', image, sample, draw_gt=False)
        return self.visualizer.get_image()

    def _batch(self, path: str | Path) -> dict:
        read_image(path)
        return pseudo_collate([self.pipeline({'img_path': str(path), 'img_id': 0})])


def read_image(path: str | Path) -> np.ndarray:
    """An image file as RGB, (H, W, 3) uint8.

    Raises:
        ValueError: The file is no image that can be read.
    """
    try:
        image = mmcv.imread(str(path)) if Path(path).is_file() else None
    except cv2.error:  # an empty file; others that are no image give None
        image = None
    if image is None:
        raise ValueError(f'{path} is no image that can be read')
    return mmcv.bgr2rgb(image)


def find_images(path: str | Path) -> list[Path]:
    """The image itself, or all images of a folder, by name.

    Raises:
        FileNotFoundError: There is no such path, or no image in the folder.
    """
    path = Path(path)
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
    if not images or not path.exists():
        raise FileNotFoundError(f'{path} is no image and no folder with images ({", ".join(_SUFFIXES)})')
    return images
