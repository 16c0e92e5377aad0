"""Test pipelines become steps of the runtime, which tests/runtime runs, or are refused."""

from pathlib import Path

import pytest
from mmengine.config import Config

pytest.importorskip('onnxscript')
from mmsgformer.export import ExportError
from mmsgformer.export.metadata import preparation

ROOT = Path(__file__).parents[2]
LOAD = dict(type='LoadImageFromFile')


@pytest.mark.parametrize(
    ('config', 'steps'),
    [
        ('coco/mask-rcnn_sgformer-s_fpn_1x_coco.py', [('resize', [1333, 800])]),
        ('ade20k/sgformer-s_upernet_8xb2-160k_ade20k-512x512.py', [('resize', [2048, 512])]),
        ('imagenet/sgformer-s_8xb128_in1k.py', [('resize_edge', 256), ('center_crop', [224, 224])]),
        ('camvid/sgformer-t_upernet_camvid.py', []),
        ('nuclei/mask-rcnn_sgformer-t_fpn_nuclei.py', []),
    ],
)
def test_the_configs_pipelines(config, steps):
    pipeline = Config.fromfile(ROOT / 'configs' / config).test_dataloader.dataset.pipeline
    assert [(step['step'], step['size']) for step in preparation(pipeline)] == steps


@pytest.mark.parametrize(
    ('pipeline', 'message'),
    [
        ([dict(type='LoadImageFromNDArray')], 'must start with a plain LoadImageFromFile'),
        ([dict(type='LoadImageFromFile', to_float32=True)], 'must start with a plain LoadImageFromFile'),
        ([LOAD, dict(type='Pad', size_divisor=32)], 'Pad of the test pipeline is not known'),
        ([LOAD, dict(type='Resize', scale_factor=0.5)], 'Resize has scale_factor'),
        ([LOAD, dict(type='Resize', scale=(8, 8), interpolation='lanczos')], 'lanczos by cv2'),
        ([LOAD, dict(type='ResizeEdge', scale=8, edge='long')], "edge='short' only"),
        ([LOAD, dict(type='Resize', keep_ratio=True)], 'got None'),
    ],
)
def test_what_the_runtime_does_not_know_is_refused(pipeline, message):
    with pytest.raises(ExportError, match=message):
        preparation(pipeline)
