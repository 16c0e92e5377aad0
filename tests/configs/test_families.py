"""Every family of configs trains two steps on real photos, small; UperNet more in test_photos.py."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmsgformer.checkpoint.files import read_checkpoint
from mmsgformer.data.paths import set_data_root

CONFIGS = Path(__file__).parents[2] / 'configs'
IN_PROCESS = {
    'default_hooks.logger.interval': 1,
    'randomness.seed': 0,
    **{
        f'{split}_dataloader.{key}': value
        for split in ('train', 'val', 'test')
        for key, value in {'num_workers': 0, 'persistent_workers': False}.items()
    },
}
NO_CHECKPOINT = {'default_hooks.checkpoint.interval': -1, 'default_hooks.checkpoint.save_last': False}
COCO = {
    'train_dataloader.dataset.data_prefix.img': 'images/train2017/',
    'val_dataloader.dataset.data_prefix.img': 'images/val2017/',
    'train_dataloader.dataset.indices': 4,
    'val_dataloader.dataset.indices': 2,
    'val_dataloader.dataset.pipeline.1.scale': (160, 96),
    'train_cfg.max_epochs': 1,
}
FIXED_SIZE = {'train_dataloader.dataset.pipeline.2.scale': (160, 96)}
MANY_SIZES = {'train_dataloader.dataset.pipeline.2.scale': [(160, 64), (160, 96)]}
FEWER_BOXES = {
    'model.train_cfg.rpn_proposal.max_per_img': 50,
    'model.test_cfg.rpn.max_per_img': 50,
}
SMALL_HEAD = {'model.train_cfg.rcnn.sampler.num': 16, 'model.roi_head.bbox_head.fc_out_channels': 64}
ADE20K = {
    'train_dataloader.dataset.pipeline.2.scale': (256, 96),
    'train_dataloader.dataset.pipeline.3.crop_size': (96, 96),
    'model.data_preprocessor.size': (96, 96),
    'val_dataloader.dataset.pipeline.1.scale': (256, 96),
    'train_cfg.max_iters': 2,
}
FAMILIES = {
    'coco/cascade-mask-rcnn_sgformer-s_fpn_ms-3x_coco': COCO
    | MANY_SIZES
    | FEWER_BOXES
    | {f'model.train_cfg.rcnn.{i}.sampler.num': 16 for i in range(3)}
    | {f'model.roi_head.bbox_head.{i}.fc_out_channels': 64 for i in range(3)},
    'coco/mask-rcnn_sgformer-s_fpn_1x_coco': COCO | FIXED_SIZE | FEWER_BOXES | SMALL_HEAD,
    'coco/mask-rcnn_sgformer-s_fpn_ms-3x_coco': COCO | MANY_SIZES | FEWER_BOXES | SMALL_HEAD,
    'coco/retinanet_sgformer-s_fpn_1x_coco': COCO | FIXED_SIZE,
    'ade20k/sgformer-s_semantic-fpn_8xb2-80k_ade20k-512x512': ADE20K,
    'ade20k/sgformer-s_upernet_8xb2-160k_ade20k-512x512': ADE20K,
}


def train(name: str, options: dict, data_root: Path, work_dir: Path) -> list[dict]:
    """Train a config in this process; returns what was logged."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    set_data_root(cfg, str(data_root))
    cfg.merge_from_dict(IN_PROCESS | options)
    cfg.work_dir = cfg.visualizer.name = str(work_dir)  # a visualizer of the same name would be used again
    Runner.from_cfg(cfg).train()
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


# Its parts are Cascade Mask R-CNN's data and schedule, and the model of the 1x config.
SLOW = 'coco/mask-rcnn_sgformer-s_fpn_ms-3x_coco'


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] if name == SLOW else []) for name in FAMILIES]
)
def test_dense_families_train_two_steps(name, photos, tmp_path):
    data = photos / ('coco_tiny' if name.startswith('coco') else 'ade_tiny')
    log = train(name, FAMILIES[name] | NO_CHECKPOINT, data, tmp_path)
    # Validation runs too; its detectors, sure of nothing yet, find no boxes to measure.
    losses = [entry['loss'] for entry in log if 'loss' in entry]
    assert len(losses) == 2
    assert torch.tensor(losses).isfinite().all()


def test_a_classifier_trains_on_a_folder_and_is_evaluated_with_its_average(photos, tmp_path):
    """Two classes of four photos; the checkpoint holds the averaged weights beside the trained ones."""
    files = sorted((photos / 'coco_tiny' / 'images' / 'train2017').glob('*.jpg'))[:8]
    for i, file in enumerate(files):
        for split in ('train', 'val'):
            folder = tmp_path / 'data' / split / ('first', 'second')[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder)
    options = {
        **{f'{split}_dataloader.dataset.type': 'CustomDataset' for split in ('train', 'val', 'test')},
        'train_dataloader.batch_size': 4,
        'val_dataloader.batch_size': 4,
        'train_dataloader.dataset.pipeline.1.scale': 64,
        'val_dataloader.dataset.pipeline.1.scale': 72,
        'val_dataloader.dataset.pipeline.2.crop_size': 64,
        'model.head.num_classes': 2,
        'model.data_preprocessor.num_classes': 2,
        'val_evaluator.topk': (1,),
        'train_cfg.max_epochs': 1,
        'param_scheduler': None,
        'custom_hooks.0.momentum': 0.25,
    }
    log = train('imagenet/sgformer-s_8xb128_in1k', options, tmp_path / 'data', tmp_path / 'run')
    assert len([entry for entry in log if 'loss' in entry]) == 2
    assert 0 <= log[-1]['accuracy/top1'] <= 100
    checkpoint = read_checkpoint(tmp_path / 'run' / 'epoch_1.pth')
    name = 'stages.0.blocks.0.ffn.fc1.weight'
    average, trained = checkpoint['state_dict'], checkpoint['ema_state_dict']
    assert not torch.equal(average[f'backbone.{name}'], trained[f'module.backbone.{name}'])
