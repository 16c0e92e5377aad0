"""tools/infer.py on a folder with a bad image and on a video, as a user would run it."""

import json
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from pycocotools import mask as coco_mask
from tool_calls import load_tool

CONFIGS = Path(__file__).parents[2] / 'configs' / 'demo'


def model_arguments(config: str, folder: Path) -> list:
    """The config and a checkpoint of a freshly initialised model."""
    cfg = Config.fromfile(CONFIGS / config)
    init_default_scope(cfg.default_scope)
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, folder / 'weights.pth')
    return ['--config', CONFIGS / config, '--checkpoint', folder / 'weights.pth', '--device', 'cpu']


def test_a_folder_with_a_bad_image(run_tool, shapes, tmp_path):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    (images / 'bad.jpg').write_text('no image')
    (images / 'good.jpg').write_bytes((shapes / 'val2017' / '000001.jpg').read_bytes())
    arguments = model_arguments('sgformer-tiny_upernet_shapes.py', tmp_path)
    result = run_tool('infer.py', images, *arguments, '--out-dir', out)
    assert result.returncode == 1
    assert 'bad.jpg is no image' in result.stderr
    assert 'Traceback' not in result.stderr
    (prediction,) = json.loads((out / 'predictions.json').read_text()).values()
    labels = mmcv.imread(str(out / prediction['label_map']), flag='unchanged')
    assert labels.shape == mmcv.imread(str(out / 'pictures' / 'good.jpg.png')).shape[:2] == (112, 112)
    assert sum(prediction['shares'].values()) == pytest.approx(1)
    assert len(prediction['shares']) == len(np.unique(labels))


@pytest.mark.parametrize(('num_classes', 'dtype'), [(256, np.uint8), (300, np.uint16)])
def test_a_label_map_holds_every_class(num_classes, dtype, tmp_path):
    """Also above 256 of them, where 8 bits would count from 0 again."""
    infer = load_tool('infer')
    last = num_classes - 1
    sample = BaseDataElement(pred_sem_seg=PixelData(data=torch.tensor([[[0, 1], [last, last]]])))
    classes = tuple(f'class {i}' for i in range(num_classes))
    found = infer.describe(sample, classes, tmp_path / 'map.png')
    assert found['shares'] == {'class 0': 0.25, 'class 1': 0.25, f'class {last}': 0.5}
    labels = mmcv.imread(str(tmp_path / 'map.png'), flag='unchanged')
    assert labels.dtype == dtype
    assert labels.tolist() == [[0, 1], [last, last]]


def test_a_video(run_tool, shapes, tmp_path):
    video, out = tmp_path / 'scene.avi', tmp_path / 'out'
    frames = str(shapes / 'val2017')
    mmcv.frames2video(frames, str(video), fps=5, start=1, end=4, fourcc='MJPG', show_progress=False)
    arguments = model_arguments('mask-rcnn_sgformer-tiny_fpn_shapes.py', tmp_path)
    result = run_tool('infer.py', video, *arguments, '--out-dir', out)
    assert result.returncode == 0, result.stderr
    predictions = json.loads((out / 'predictions.json').read_text())
    assert len(predictions) == len(mmcv.VideoReader(str(out / 'scene.mp4'))) == 3
    for prediction in predictions.values():
        for found in prediction['instances']:
            assert found['class'] in ('disc', 'square', 'triangle', 'star')
            assert coco_mask.decode(found['mask']).shape == (112, 112)
            assert len(found['box']) == 4


@pytest.mark.parametrize('name', ['broken.mp4', 'empty'])
def test_what_cannot_be_read_is_named(run_tool, name, tmp_path):
    (tmp_path / 'broken.mp4').write_text('no video')
    (tmp_path / 'empty').mkdir()
    result = run_tool('infer.py', tmp_path / name, '--config', 'a.py', '--checkpoint', 'b', '--out-dir', 'c')
    assert result.returncode == 1
    assert name in result.stderr
    assert 'Traceback' not in result.stderr
