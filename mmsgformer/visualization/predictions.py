"""A config and a checkpoint -> predictions for image files; the same for mmdet, mmseg and mmpretrain."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from mmsgformer.checkpoint.config import stored_config
from mmsgformer.checkpoint.files import CheckpointError, read_checkpoint
from mmsgformer.checkpoint.load import prepare_for_model
from mmsgformer.data.classes import require_agreement
from mmsgformer.data.folders import IMAGE_ENDINGS, is_image
from mmsgformer.sgformer import SGFormer
from mmsgformer.visualization.maps import SignificanceMap, batch_maps


class Predictor:
    """A detector, segmenter or classifier, ready for image files; with another backbone than `SGFormer` too.

    Args:
        config: Config file, or a config that was read; None: the config that the checkpoint has in it.
        checkpoint: Checkpoint of the whole model, in any layout that `tools/test.py` takes.
        device: torch's name of a device; None: the accelerator if there is one.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
        DataError: The classes of the config and of the checkpoint are not the same.
    """

    def __init__(
        self, config: str | Path | Config | None, checkpoint: str | Path, device: str | None = None
    ) -> None:
        content = dict(read_checkpoint(checkpoint))
        if config is None:
            cfg = stored_config(content, checkpoint)
        else:
            cfg = config if isinstance(config, Config) else Config.fromfile(config)
        init_default_scope(cfg.default_scope)
        trained_on = content.get('meta', {}).get('dataset_meta') or {}
        require_agreement(cfg, trained_on.get('classes'))
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        if isinstance(getattr(model, 'backbone', None), SGFormer):
            prepare_for_model(content, model, checkpoint, strict=True)
        try:
            model.load_state_dict(content['state_dict'])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f'{checkpoint} does not fit the model: {error}') from error
        self.model = model.to(device or get_device()).eval()
        dataset = cfg.test_dataloader.dataset
        steps = Compose([step for step in dataset.pipeline if step.type != 'LoadAnnotations']).transforms
        self.load, self.pipeline = steps[0], Compose(steps[1:])
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

    def read(self, path: str | Path) -> np.ndarray:
        """An image file as the pipeline reads it, in whose pixels predictions are; see `read_image`."""
        return read_image(path, self.load)

    def draw(self, path: str | Path, sample: BaseDataElement) -> np.ndarray:
        """The image (H, W, 3), RGB uint8, with a data sample's predictions drawn by the framework."""
        image = self.read(path)
        if hasattr(self.visualizer, 'visualize_cls'):
            return self.visualizer.visualize_cls(image, sample, draw_gt=False)
        self.visualizer.add_datasample('prediction', image, sample, draw_gt=False)
        return self.visualizer.get_image()

    def _batch(self, path: str | Path) -> dict:
        return pseudo_collate([self.pipeline(_loaded(path, self.load))])


def read_image(path: str | Path, load: Callable[[dict], dict | None] | None = None) -> np.ndarray:
    """An image file as a picture to draw on: RGB, (H, W, 3) uint8.

    Args:
        path: The file.
        load: The loading step of the pipeline whose pixels are meant; it may turn the image by its EXIF
            orientation or not. None: MMCV's own `LoadImageFromFile`, which does.

    Raises:
        ValueError: The file is no image that can be read.
    """
    image = np.atleast_3d(_loaded(path, load or LoadImageFromFile())['img'])
    image = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[..., :3]
    if image.dtype != np.uint8:  # to_float32, or 16 bits
        image = (image * (255 / max(255, image.max()))).astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1])


def _loaded(path: str | Path, load: Callable[[dict], dict | None]) -> dict:
    """What a pipeline's loading step makes of an image file."""
    try:
        results = load({'img_path': str(path), 'img_id': 0})
    except Exception as error:  # every decoder raises its own kinds
        raise ValueError(f'{path} is no image that can be read') from error
    if results is None:  # the step ignores what it cannot read
        raise ValueError(f'{path} is no image that can be read')
    return results


def describe_failure(path: Path, error: Exception) -> str:
    """One line on an image that failed; an unreadable file's error names it already."""
    text = ' '.join(str(error).split())
    return text if text.startswith(str(path)) else f'{path} failed: {type(error).__name__}: {text}'


def loading_step(dataset: Dataset) -> Callable[[dict], dict | None]:
    """The first step of a data set's pipeline; of the first one's where several are one after another."""
    while not hasattr(dataset, 'pipeline'):
        dataset = dataset.dataset if hasattr(dataset, 'dataset') else dataset.datasets[0]
    return dataset.pipeline.transforms[0]


def find_images(path: str | Path) -> list[Path]:
    """The image itself, or all images of a folder, by name.

    Raises:
        FileNotFoundError: There is no such path, or no image in the folder.
    """
    path = Path(path)
    images = sorted(p for p in path.iterdir() if is_image(p.name)) if path.is_dir() else [path]
    if not images or not path.exists():
        raise FileNotFoundError(f'{path} is no image and no folder with images ({", ".join(IMAGE_ENDINGS)})')
    return images
