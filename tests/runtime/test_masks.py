"""Masks without mmdet and pycocotools, as those make them."""

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from pycocotools import mask as coco_mask

from mmsgformer_runtime.masks import encode_rle, paste_masks


def test_masks_are_pasted_as_mmdet_does():
    """Boxes of all sizes, also thin ones and at the border; rounding may turn a pixel at the threshold."""
    random = np.random.RandomState(0)
    height, width, number = 90, 120, 60
    corners = random.rand(number, 2, 2) * [width, height]
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    boxes[0] = [0, 0, width, height]
    boxes[1] = [5.2, 7.1, 5.9, 60]
    boxes[2] = [10, 10, 10, 10]
    masks = random.rand(number, 28, 28).astype(np.float32)
    expected = torch.zeros(number, height, width)
    for one, mask, box in zip(expected, torch.tensor(masks), torch.tensor(boxes), strict=True):
        values, place = _do_paste_mask(mask[None, None], box[None], height, width)
        one[place] = values[0]
    pasted = paste_masks(masks, boxes, (height, width), 0.5)
    different = pasted != (expected >= 0.5).numpy()
    assert different.mean() < 1e-4
    np.testing.assert_allclose(expected.numpy()[different], 0.5, atol=1e-4)


@pytest.mark.parametrize(
    'mask',
    [
        np.random.RandomState(0).rand(37, 53) > 0.5,
        np.zeros((5, 7), bool),
        np.ones((5, 7), bool),
        np.eye(300, dtype=bool),
        np.arange(1000 * 700).reshape(1000, 700) // 70000 % 2 == 1,
    ],
    ids=['noise', 'empty', 'full', 'diagonal', 'long runs'],
)
def test_run_lengths_are_pycocotools(mask):
    expected = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert encode_rle(mask) == {'size': list(mask.shape), 'counts': expected['counts'].decode()}
