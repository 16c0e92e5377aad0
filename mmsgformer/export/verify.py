"""The metrics of an exported file beside those of the model that it was made of, on the same data."""

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from rich.progress import track
from torch import Tensor, nn

from mmsgformer_runtime.model import Model


@torch.no_grad()
def compare(cfg: Config, model: nn.Module, path: str | Path, backend: str) -> dict[str, tuple[float, float]]:
    """Run the model and the file on a config's test data.

    Args:
        cfg: Its test_dataloader and test_evaluator are used; their data must be there.
        model: The framework's model, in evaluation mode.
        path: The exported file.
        backend: Of `mmsgformer_runtime.Model`.

    Returns:
        By the name of a metric its value for the model and for the file.
    """
    exported = Model(path, backend)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluators = [Evaluator(cfg.test_evaluator) for _ in range(2)]
    for evaluator in evaluators:
        evaluator.dataset_meta = loader.dataset.metainfo
    for batch in track(loader, description=f'comparing with {backend}'):
        found = [
            with_predictions(sample, exported.predict_prepared(as_rgb(image), _size(sample)))
            for image, sample in zip(batch['inputs'], copy.deepcopy(batch['data_samples']), strict=True)
        ]
        for evaluator, samples in zip(evaluators, (model.test_step(batch), found), strict=True):
            evaluator.process(samples, batch)
    ours, others = (evaluator.evaluate(len(loader.dataset)) for evaluator in evaluators)
    return {name: (ours[name], others[name]) for name in ours}


def as_rgb(image: Tensor) -> np.ndarray:
    """What a pipeline packs, (3, H, W) BGR uint8 -> (H, W, 3) RGB, as the runtime takes it."""
    return np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())


def with_predictions(sample: BaseDataElement, found: Mapping[str, np.ndarray]) -> BaseDataElement:
    """The data sample with what `Model.predict_prepared` gave, where the framework's metrics look for it."""
    tensors = {name: torch.from_numpy(values) for name, values in found.items()}
    if 'boxes' in tensors:
        sample.pred_instances = InstanceData(bboxes=tensors.pop('boxes'), **tensors)
    elif 'labels' in tensors:
        sample.pred_sem_seg = PixelData(data=tensors['labels'][None])
    else:
        sample.set_pred_score(tensors['scores']).set_pred_label(tensors['scores'].argmax())
    return sample


def _size(sample: BaseDataElement) -> tuple[int, int]:
    return tuple(sample.ori_shape[:2])
