"""Pictures of a test's ground truth and predictions, whatever the framework and the number of processes."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draws every tested image on the pixels that the pipeline read, into files under the images' names.

    DATA_ROOT/val/a.jpg becomes OUT_DIR/val/a.jpg.png. The frameworks' own hooks number their files, read
    images anew by MMCV's defaults, and draw in the first process only what that process tested. MMEngine's
    visualizers draw in no other; so here it is given the samples of all.

    Args:
        out_dir: The folder to write to.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def before_test(self, runner: Runner) -> None:
        """Note how many batches each process has: all have to take part as often in the exchange."""
        self.num_batches = all_gather_object(len(runner.test_dataloader))

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: object = None,
        outputs: Sequence[BaseDataElement] = (),
    ) -> None:
        """Draw a batch of every process."""
        self._draw(runner, [sample.cpu() for sample in outputs])
        if batch_idx + 1 == len(runner.test_dataloader):
            for _ in range(max(self.num_batches) - len(runner.test_dataloader)):
                self._draw(runner, [])

    def _draw(self, runner: Runner, samples: list[BaseDataElement]) -> None:
        # These need mmcv, which the backbone alone does not.
        from mmsgformer.visualization.predictions import loading_step, read_image

        gathered = all_gather_object(samples)
        if not is_main_process():
            return
        dataset = runner.test_dataloader.dataset
        root = getattr(dataset, 'data_root', None) or '/'
        visualizer = runner.visualizer
        draw = getattr(visualizer, 'visualize_cls', None) or partial(visualizer.add_datasample, 'test')
        for sample in (sample for of_process in gathered for sample in of_process):
            image = read_image(sample.img_path, loading_step(dataset))
            name = os.path.relpath(sample.img_path, root).replace('../', '')
            draw(image=image, data_sample=sample, out_file=str(self.out_dir / f'{name}.png'))
