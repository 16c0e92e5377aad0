"""A short run of each task."""

from collections.abc import Callable
from pathlib import Path

import pytest

SHORT = ['default_hooks.logger.interval=1', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0']
SHORT += ['test_dataloader.num_workers=0', 'train_dataloader.batch_size=2']
STEPS = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
EPOCHS = ['train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=4']
RUNS = {
    'detection': ('mask-rcnn_sgformer-tiny_fpn_shapes', EPOCHS),
    'segmentation': ('sgformer-tiny_upernet_shapes', STEPS),
    'classification': ('sgformer-tiny_shapes', EPOCHS),
}


@pytest.fixture(scope='session')
def run_of(tmp_path_factory, run_tool, shapes) -> Callable[[str], Path]:
    """A function that returns the work dir of a short run of a task; each is trained once."""
    made: dict[str, Path] = {}

    def train(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task)
            config, options = RUNS[task]
            arguments = [f'configs/demo/{config}.py', '--data-root', shapes, '--work-dir', made[task]]
            result = run_tool('train.py', *arguments, '--cfg-options', *SHORT, *options)
            assert result.returncode == 0, result.stderr
        return made[task]

    return train
