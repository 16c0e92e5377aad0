"""The released S configs on real photos: they train, their loss falls, they are evaluated."""

import json
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[2]
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
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
}


def options(values: dict) -> list[str]:
    return ['--cfg-options', *(f'{key}={value}' for key, value in (QUICK | values).items())]


# Options that make the pictures small.
SMALL = {
    DETECTOR: {
        'train_dataloader.dataset.data_prefix.img': 'images/train2017/',
        'val_dataloader.dataset.data_prefix.img': 'images/val2017/',
        'train_dataloader.dataset.pipeline.2.scale': '(224, 128)',
        'val_dataloader.dataset.pipeline.1.scale': '(224, 128)',
        'model.train_cfg.rpn_proposal.max_per_img': 200,
        'model.train_cfg.rcnn.sampler.num': 32,
        'model.test_cfg.rpn.max_per_img': 100,
    },
    SEGMENTER: {
        'train_dataloader.dataset.pipeline.2.scale': '(512, 160)',
        'train_dataloader.dataset.pipeline.3.crop_size': '(128, 128)',
        'val_dataloader.dataset.pipeline.1.scale': '(512, 128)',
        'model.data_preprocessor.size': '(128, 128)',
    },
}


def entries(work_dir: Path) -> list[dict]:
    """What the one run in this folder logged."""
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


# The least that shows that the network learns: narrow heads, and nearly the same pixels in every iteration.
NARROW = {
    'train_dataloader.dataset.pipeline.2.scale': '(256, 96)',
    'train_dataloader.dataset.pipeline.2.ratio_range': '(1.0, 1.0)',
    'train_dataloader.dataset.pipeline.3.crop_size': '(96, 96)',
    'val_dataloader.dataset.pipeline.1.scale': '(256, 96)',
    'model.data_preprocessor.size': '(96, 96)',
    'model.decode_head.channels': 64,
    'model.auxiliary_head.channels': 64,
    'optim_wrapper.optimizer.lr': 5e-3,
}


@pytest.mark.parametrize(
    ('config', 'data', 'length', 'metric'),
    [
        (SEGMENTER, 'ade_tiny', {'train_cfg.max_iters': 15, 'train_cfg.val_interval': 15} | NARROW, 'mIoU'),
        pytest.param(
            SEGMENTER,
            'ade_tiny',
            {'train_cfg.max_iters': 25, 'train_cfg.val_interval': 25},
            'mIoU',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            DETECTOR,
            'coco_tiny',
            {'train_cfg.max_epochs': 4, 'train_cfg.val_interval': 4},
            'coco/segm_mAP',
            marks=pytest.mark.slow,
        ),
    ],
    ids=['segmenter, narrow', 'segmenter', 'detector'],
)
def test_the_loss_falls_and_the_model_is_evaluated(run_tool, photos, tmp_path, config, data, length, metric):
    arguments = ['--data-root', photos / data, '--work-dir', tmp_path, *options(SMALL[config] | length)]
    result = run_tool('train.py', config, *arguments)
    assert result.returncode == 0, result.stderr
    losses = [entry['loss'] for entry in entries(tmp_path) if 'loss' in entry]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), losses
    assert metric in entries(tmp_path)[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'data', 'length', 'iterations'),
    [
        (DETECTOR, 'coco_tiny', {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 2}, 8),
        (SEGMENTER, 'ade_tiny', {'train_cfg.max_iters': 3}, 3),
    ],
)
def test_two_processes_train(run_in_a_process, photos, tmp_path, free_port, config, data, length, iterations):
    arguments = ['--data-root', photos / data, '--work-dir', tmp_path, *options(SMALL[config] | length)]
    on_cpu = {'PORT': free_port(), 'CUDA_VISIBLE_DEVICES': ''}
    result = run_in_a_process('dist_train.sh', config, 2, *arguments, **on_cpu)
    assert result.returncode == 0, result.stderr
    losses = [entry['loss'] for entry in entries(tmp_path) if 'loss' in entry]
    assert len(losses) == iterations


def test_mask_rcnn_at_full_size(photos):
    """One forward pass of the released S detector on a photo at 800 x 1333, as COCO images are resized."""
    cfg = Config.fromfile(ROOT / DETECTOR)
    init_default_scope(cfg.default_scope)
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # random weights are sure of nothing
    model = MODELS.build(cfg.model).eval()
    from mmdet.structures import DetDataSample

    photo = next((photos / 'coco_tiny' / 'images' / 'val2017').glob('*.jpg'))
    size = (800, 1333)
    image = torch.from_numpy(cv2.resize(cv2.imread(str(photo)), size[::-1])).permute(2, 0, 1)
    sample = DetDataSample()
    sample.set_metainfo({'img_shape': size, 'ori_shape': size, 'scale_factor': (1.0, 1.0)})
    data = model.data_preprocessor({'inputs': [image], 'data_samples': [sample]})
    maps = []
    model.neck.register_forward_hook(lambda _, __, output: maps.extend(output))
    with torch.no_grad():
        (result,) = model(**data, mode='predict')
    assert [m.shape for m in maps] == [(1, 256, 800 // s, 1344 // s) for s in (4, 8, 16, 32)] + [
        (1, 256, 13, 21)
    ]
    assert all(m.isfinite().all() for m in maps)
    found = result.pred_instances
    assert found.masks.shape == (100, *size)
    assert found.bboxes.isfinite().all()
