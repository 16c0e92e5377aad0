"""The modules that are exported are what the frameworks' own models predict, on pictures with padding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

pytest.importorskip('onnxscript')
from mmsgformer.export import ExportError, export_model
from mmsgformer.export.detectors import decode_boxes
from mmsgformer.export.models import exportable
from mmsgformer_runtime import Model
from mmsgformer_runtime.masks import paste_masks

CONFIGS = Path(__file__).parents[2] / 'configs'
ARCH = {'embed_dims': (32, 64, 128, 256), 'depths': (2, 1, 1, 1), 'num_heads': (2, 4, 8, 16)}
SIZE, ORIGINAL = (90, 141), (60, 94)


def build(config: str, **options: object) -> nn.Module:
    """A small model of the config's kind, with weights by which it finds things."""
    cfg = Config.fromfile(CONFIGS / config)
    cfg.merge_from_dict(options)
    cfg.model.backbone.arch = ARCH
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    for name, module in model.named_modules():
        if name.endswith(('rpn_cls', 'rpn_reg', 'retina_cls', 'retina_reg', 'fc_cls', 'fc_reg')):
            nn.init.normal_(module.weight, std=0.003 if name.endswith('retina_cls') else 0.03)
    return model


SMALL = {
    'model.neck.in_channels': [32, 64, 128, 256],
    'model.neck.out_channels': 64,
    'model.data_preprocessor.pad_size_divisor': 32,
}
DETECTORS = {
    'mask-rcnn': ('demo/mask-rcnn_sgformer-tiny_fpn_shapes.py', SMALL),
    'ignoring padding': (
        'demo/mask-rcnn_sgformer-tiny_fpn_shapes.py',
        {**SMALL, 'model.backbone.ignore_padding': True},
    ),
    'retinanet': (
        'coco/retinanet_sgformer-s_fpn_1x_coco.py',
        {**SMALL, 'model.bbox_head.in_channels': 64, 'model.bbox_head.feat_channels': 64},
    ),
}


def picture() -> tuple[Tensor, dict]:
    """A packed image (3, H, W), BGR, and what is known of it."""
    image = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scale = (SIZE[1] / ORIGINAL[1], SIZE[0] / ORIGINAL[0])
    return image, {'img_shape': SIZE, 'ori_shape': ORIGINAL, 'scale_factor': scale, 'img_id': 0}


def outputs(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    module, _ = exportable(model)
    size = () if module.outputs == ('scores',) else (torch.tensor(ORIGINAL),)
    with torch.no_grad():
        return dict(zip(module.outputs, module(image.flip(0).permute(1, 2, 0)[None], *size), strict=True))


@pytest.mark.parametrize(('config', 'options'), DETECTORS.values(), ids=DETECTORS)
def test_detectors(config, options):
    """Boxes, scores, labels and masks, in the pixels of the image before it was resized."""
    from mmdet.structures import DetDataSample

    model = build(config, **options)
    image, meta = picture()
    sample = DetDataSample(metainfo=meta)
    with torch.no_grad():
        expected = model.test_step({'inputs': [image], 'data_samples': [sample]})[0].pred_instances
    found = outputs(model, image)
    assert len(expected) == 100
    torch.testing.assert_close(found['scores'], expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found['boxes'], expected.bboxes, rtol=1e-4, atol=1e-2)
    assert torch.equal(found['labels'], expected.labels)
    if 'masks' in expected:
        masks = paste_masks(found['masks'].numpy(), found['boxes'].numpy(), ORIGINAL, 0.5)
        assert (masks != expected.masks.numpy()).mean() < 1e-3


@pytest.mark.parametrize(
    ('kind', 'threshold'),
    [('mask-rcnn', 'model.test_cfg.rcnn.score_thr'), ('retinanet', 'model.test_cfg.score_thr')],
)
def test_a_picture_without_objects(kind, threshold, tmp_path):
    """Every output is there, of no objects; in the file too."""
    pytest.importorskip('onnxruntime')
    config, options = DETECTORS[kind]
    model, (image, _) = build(config, **options, **{threshold: 1.1}), picture()
    pipeline = Config.fromfile(CONFIGS / config).test_dataloader.dataset.pipeline
    export_model(model, {'classes': ['one'] * 80}, pipeline, tmp_path / 'model.onnx', SIZE)
    file = Model(tmp_path / 'model.onnx')
    found = file.predict_prepared(np.ascontiguousarray(image.flip(0).permute(1, 2, 0)), ORIGINAL)
    assert found['boxes'].shape == outputs(model, image)['boxes'].shape == (0, 4)
    assert found['scores'].shape == found['labels'].shape == (0,)
    if kind == 'mask-rcnn':
        assert found['masks'].shape == (0, *ORIGINAL)


SEGMENTERS = {
    'upernet': ('demo/sgformer-tiny_upernet_shapes.py', {}),
    'semantic-fpn': (
        'ade20k/sgformer-s_semantic-fpn_8xb2-80k_ade20k-512x512.py',
        {'model.neck.in_channels': [32, 64, 128, 256]},
    ),
    # Which mmseg heeds in training alone.
    'size_divisor': ('demo/sgformer-tiny_upernet_shapes.py', {'model.data_preprocessor.size_divisor': 32}),
}


@pytest.mark.parametrize(('config', 'options'), SEGMENTERS.values(), ids=SEGMENTERS)
def test_segmenters(config, options):
    from mmseg.structures import SegDataSample

    model = build(config, **options)
    image, meta = picture()
    with torch.no_grad():
        sample = SegDataSample(metainfo=meta)
        expected = model.test_step({'inputs': [image], 'data_samples': [sample]})[0].pred_sem_seg.data
    labels = outputs(model, image)['labels']
    assert labels.shape == expected.shape
    assert (labels != expected).float().mean() < 1e-3


def test_classifiers():
    from mmpretrain.structures import DataSample

    model = build('demo/sgformer-tiny_shapes.py')
    image, _ = picture()
    with torch.no_grad():
        expected = model.test_step({'inputs': [image], 'data_samples': [DataSample()]})[0].pred_score
    torch.testing.assert_close(outputs(model, image)['scores'][0], expected)


def test_boxes_are_decoded_as_mmdet_does():
    """Huge and tiny ones, and those across the border."""
    coder = build(*DETECTORS['mask-rcnn'][:1], **SMALL).roi_head.bbox_head.bbox_coder
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(500, 4, generator=generator).sort(dim=1).values * 200
    deltas = torch.randn(500, 4, generator=generator) * 20
    expected = coder.decode(anchors, deltas, max_shape=(90, 120))
    border = torch.tensor([120.0, 90.0, 120.0, 90.0])
    torch.testing.assert_close(decode_boxes(coder, anchors, deltas, border), expected)


@pytest.mark.parametrize(
    ('config', 'options', 'message'),
    [
        ('coco/cascade-mask-rcnn_sgformer-s_fpn_ms-3x_coco.py', {}, 'CascadeRCNN cannot be exported'),
        (
            'demo/sgformer-tiny_upernet_shapes.py',
            {'model.test_cfg': dict(mode='slide', crop_size=(64, 64), stride=(32, 32))},
            "mode='whole'",
        ),
        (
            'demo/mask-rcnn_sgformer-tiny_fpn_shapes.py',
            {**SMALL, 'model.test_cfg.rcnn.nms.type': 'soft_nms'},
            'plain nms can',
        ),
        (
            'demo/sgformer-tiny_shapes.py',
            {'model.head': dict(type='MultiLabelLinearClsHead', num_classes=4, in_channels=256)},
            'MultiLabelLinearClsHead cannot be exported; heads that end in the softmax',
        ),
    ],
    ids=['cascade', 'slide', 'soft nms', 'multi-label'],
)
def test_what_is_not_known_is_refused(config, options, message):
    if 'cascade' in config:
        options = {'model.neck.in_channels': [32, 64, 128, 256]}
    with pytest.raises(ExportError, match=message):
        exportable(build(config, **options))
