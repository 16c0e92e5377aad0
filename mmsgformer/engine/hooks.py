"""Hooks for MMEngine's Runner."""

import math
from collections.abc import Mapping

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

from mmsgformer.checkpoint.files import CheckpointError, latest_checkpoint, read_checkpoint
from mmsgformer.checkpoint.load import prepare_for_model
from mmsgformer.data.classes import same_classes
from mmsgformer.sgformer import SGFormer
from mmsgformer.visualization.maps import batch_maps, require_significance


@HOOKS.register_module()
class CheckpointLoadHook(Hook):
    """Files and http(s) URLs are read without running code from them, and loaded strictly or not at all.

    Other storages, such as s3://, keep the reader that MMEngine has for them.

    `load_from`, `resume` and test checkpoints of a model with an `SGFormer` backbone go through
    `mmsgformer.checkpoint.prepare_for_model`: official files fit as they are; the backbone has to fit
    completely, and for testing and resuming the whole model. Other models load as MMEngine does it.

    Args:
        partial: Load what fits, and only report the rest.
    """

    # Before EMAHook, which copies what it finds in the checkpoint.
    priority = 'VERY_HIGH'

    def __init__(self, partial: bool = False) -> None:
        self.partial = partial

    def before_run(self, runner: Runner) -> None:
        """Register the safe reader; MMEngine's own falls back to unpickling whatever a file holds."""
        schemes = ('', 'http://', 'https://')
        CheckpointLoader.register_scheme(prefixes=schemes, loader=load_from_safe_reader, force=True)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Translate and check what was read, before MMEngine loads it."""
        model = _unwrapped(runner)
        if isinstance(getattr(model, 'backbone', None), SGFormer):
            training = isinstance(runner.optim_wrapper, (OptimWrapper, OptimWrapperDict))
            path = runner._load_from or 'the checkpoint'
            lacking = [entry for entry in ('meta', 'message_hub', 'optimizer') if entry not in checkpoint]
            if runner._resume and lacking:
                raise CheckpointError(
                    f'{path} cannot be resumed, it has no {", ".join(lacking)}; train from it as load_from'
                )
            whole = runner._resume or not training
            if whole:
                trained_on = (checkpoint.get('meta', {}).get('dataset_meta') or {}).get('classes')
                # That of the data that the run is about to use.
                own = (getattr(runner.visualizer, 'dataset_meta', None) or {}).get('classes')
                difference = same_classes(trained_on, own)
                if difference:
                    raise CheckpointError(
                        f'{path} {difference} than the data of the config; set metainfo.classes and '
                        'num_classes of the config to those that it was trained on'
                    )
            prepare_for_model(checkpoint, model, path, strict=whole, partial=self.partial)


class BadNumberError(RuntimeError):
    """A loss or a weight that is NaN or infinite; the message says when, and what is left."""


@HOOKS.register_module()
class BadNumberHook(Hook):
    """Stops training at the first NaN or infinite loss, and saves no checkpoint with such a weight.

    Checking a loss waits for the GPU no more than MMEngine's log does, which reads it in every iteration.
    """

    # Before EMAHook takes it into its average and CheckpointHook saves it.
    priority = 'VERY_HIGH'

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Check the losses.

        Raises:
            BadNumberError: One is not finite.
        """
        losses = {
            name: float(torch.as_tensor(value).detach())
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        if not all(map(math.isfinite, losses.values())):
            listed = ', '.join(f'{name} {value:g}' for name, value in losses.items())
            raise BadNumberError(
                f'iteration {runner.iter + 1} has a loss that is not finite: {listed}. {_advice(runner)}'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights: they can become NaN in a step whose loss was still finite.

        Raises:
            BadNumberError: One is not finite.
        """
        for name, parameter in _unwrapped(runner).named_parameters():
            if not parameter.isfinite().all():
                raise BadNumberError(
                    f'after iteration {runner.iter + 1}, {name} has NaN or infinite values. {_advice(runner)}'
                )


@HOOKS.register_module()
class SignificanceVisHook(Hook):
    """Draw the significance on the same few validation images again and again while a model trains.

    The pictures (`mmsgformer.visualization.draw_strip`) go to the Visualizer's backends, local files or
    TensorBoard or others, as `significance_0`, `significance_1`, ... at each step; tools/make_evolution.py
    puts them together. Only the first process draws; nothing that training depends on changes.

    Args:
        interval: Iterations between drawings; the first is before training.
        num_images: How many images, the first ones of the validation data.

    Raises:
        ValueError: Before training: the run has no validation data, or another backbone.
    """

    def __init__(self, interval: int, num_images: int = 2) -> None:
        self.interval = interval
        self.num_images = num_images

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to draw, and draw it untrained."""
        if runner.val_loop is None:
            raise ValueError('SignificanceVisHook needs a val_dataloader, from whose images it draws')
        require_significance(getattr(_unwrapped(runner), 'backbone', None))
        self._draw(runner, runner.iter)

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Draw every `interval` iterations."""
        if self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    @master_only
    def _draw(self, runner: Runner, step: int) -> None:
        # These need matplotlib and mmcv, which the backbone alone does not.
        from mmsgformer.visualization.drawing import as_image, draw_strip, seen_part
        from mmsgformer.visualization.predictions import loading_step, read_image

        model, dataset = _unwrapped(runner), runner.val_loop.dataloader.dataset
        for i in range(min(self.num_images, len(dataset))):
            batch = pseudo_collate([dataset[i]])
            sample = batch['data_samples'][0]
            image = seen_part(read_image(sample.img_path, loading_step(dataset)), sample)
            figure = draw_strip(image, batch_maps(model, batch), f'iteration {step}')
            runner.visualizer.add_image(f'significance_{i}', as_image(figure), step)


def _advice(runner: Runner) -> str:
    """What a run that stops leaves behind, and what to do."""
    saved = latest_checkpoint(runner.work_dir) or 'none is there yet'
    return (
        f'Training stops before anything is saved. The last checkpoint: {saved}. Lower the learning rate, '
        'clip gradients (optim_wrapper.clip_grad) or train without --amp, and look for broken annotations '
        'with tools/check_dataset.py'
    )


def _unwrapped(runner: Runner) -> nn.Module:
    """The model itself, without what distributed training and test-time augmentation wrap around it."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def load_from_safe_reader(path: str, map_location: object = 'cpu') -> Mapping:
    """`read_checkpoint`, under a name from which MMEngine's log makes "by safe_reader backend"."""
    return read_checkpoint(path, map_location)
