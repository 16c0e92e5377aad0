"""The released S configs on real photos: they train, their loss falls, they are evaluated."""

import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[1]
DETECTOR = 'configs/coco/mask-rcnn_sgformer-s_fpn_1x_coco.py'
SEGMENTER = 'configs/ade20k/sgformer-s_upernet_8xb2-160k_ade20k-512x512.py'
# From random weights on a handful of photos: small pictures, no warm-up, a higher rate.
QUICK = {
    'randomness.seed': 0,
    'param_scheduler': None,
    'optim_wrapper.optimizer.lr': 2e-4,
    'optim_wrapper.clip_grad.max_norm': 1.0,
    'default_hooks.logger.interval': 1,
    'log_processor.window_size': 1,
    'model.backbone.drop_path_rate': 0.0,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
}


def options(values: dict) -> list[str]:
    return ['--cfg-options', *(f'{key}={value}' for key, value in (QUICK | values).items())]


def losses_and_metrics(work_dir: Path) -> tuple[list[float], dict]:
    """The training losses in order, and the last evaluation."""
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [e['loss'] for e in entries if 'loss' in e], [e for e in entries if 'loss' not in e][-1]


def test_mask_rcnn_trains_on_coco(run_tool, photos, tmp_path):
    small = '(256, 160)'
    values = {
        'train_cfg.max_epochs': 3,
        'train_cfg.val_interval': 3,
        'train_dataloader.dataset.data_prefix.img': 'images/train2017/',
        'val_dataloader.dataset.data_prefix.img': 'images/val2017/',
        'train_dataloader.dataset.pipeline.2.scale': small,
        'val_dataloader.dataset.pipeline.1.scale': small,
        'model.train_cfg.rcnn.sampler.num': 64,
    }
    arguments = ['--data-root', photos / 'coco_tiny', '--work-dir', tmp_path]
    result = run_tool('train.py', DETECTOR, *arguments, *options(values))
    assert result.returncode == 0, result.stderr
    losses, metrics = losses_and_metrics(tmp_path)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), losses
    assert {'coco/bbox_mAP', 'coco/segm_mAP_50'} <= set(metrics)


def test_upernet_trains_on_ade20k(run_tool, photos, tmp_path):
    values = {
        'train_cfg.max_iters': 40,
        'train_cfg.val_interval': 40,
        'train_dataloader.dataset.pipeline.2.scale': '(512, 160)',
        'train_dataloader.dataset.pipeline.3.crop_size': '(128, 128)',
        'val_dataloader.dataset.pipeline.1.scale': '(512, 128)',
        'model.data_preprocessor.size': '(128, 128)',
    }
    arguments = ['--data-root', photos / 'ade_tiny', '--work-dir', tmp_path]
    result = run_tool('train.py', SEGMENTER, *arguments, *options(values))
    assert result.returncode == 0, result.stderr
    losses, metrics = losses_and_metrics(tmp_path)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), losses
    assert metrics['mIoU'] > 0


def test_mask_rcnn_at_full_size():
    """One forward pass of the released S detector at 800 x 1333, the size that COCO images are resized to."""
    cfg = Config.fromfile(ROOT / DETECTOR)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    from mmdet.structures import DetDataSample

    sample = DetDataSample()
    size = (800, 1333)
    sample.set_metainfo({'img_shape': size, 'ori_shape': size, 'scale_factor': (1.0, 1.0)})
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    with torch.no_grad():
        (result,) = model.test_step({'inputs': [image], 'data_samples': [sample]})
    found = result.pred_instances
    assert found.masks.shape == (len(found), *size)
    assert found.bboxes.isfinite().all()
