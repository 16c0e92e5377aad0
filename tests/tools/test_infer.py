"""tools/infer.py on a folder with a bad image and on a video, as a user would run it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from mmpretrain.structures import DataSample
from pycocotools import mask as coco_mask
from tool_calls import load_tool

from mmsgformer.visualization.predictions import Predictor

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


@pytest.fixture
def folder(shapes, tmp_path) -> Path:
    """Three images, a.jpg, b.jpg and c.jpg."""
    (tmp_path / 'images').mkdir()
    for number, name in enumerate('abc', start=1):
        image = shapes / 'val2017' / f'{number:06d}.jpg'
        shutil.copy(image, tmp_path / 'images' / f'{name}.jpg')
    return tmp_path / 'images'


@pytest.mark.parametrize(
    ('failure', 'code', 'left', 'message'),
    [
        (RuntimeError('too large'), 1, ['a.jpg', 'c.jpg'], 'b.jpg failed: RuntimeError: too large'),
        (KeyboardInterrupt(), 130, ['a.jpg'], 'has the images until then'),
    ],
    ids=['failure', 'Ctrl-C'],
)
@pytest.mark.parametrize('step', ['predict', 'draw'])
def test_what_was_predicted_is_kept(
    run_tool, monkeypatch, failure, code, left, message, step, folder, tmp_path
):
    """When one image fails in any way, and when the user stops."""
    plain = getattr(Predictor, step)

    def fails(self: Predictor, path: Path, *arguments: object) -> object:
        if path.name == 'b.jpg':
            raise failure
        return plain(self, path, *arguments)

    monkeypatch.setattr(Predictor, step, fails)
    arguments = model_arguments('sgformer-tiny_upernet_shapes.py', tmp_path)
    result = run_tool('infer.py', folder, *arguments, '--out-dir', tmp_path / 'out')
    assert result.returncode == code
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
    predictions = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert [name for name in predictions if step == 'predict' or name != 'b.jpg'] == left


def test_predictions_are_written_in_between(monkeypatch, folder, tmp_path):
    """For a run that is killed: those of the images before are in the file."""
    tool = load_tool('infer')
    monkeypatch.setattr(tool, 'SAVED_EVERY', -1)
    seen = []

    class Killed(Predictor):
        def __init__(self) -> None:
            self.visualizer = SimpleNamespace(dataset_meta={'classes': ('disc',)})

        def predict(self, path: Path) -> SimpleNamespace:
            seen.append(list(json.loads((tmp_path / 'predictions.json').read_text())))
            return DataSample().set_pred_label(0).set_pred_score(torch.ones(1))

        def draw(self, path: Path, sample: object) -> np.ndarray:
            return np.zeros((1, 1, 3), np.uint8)

    assert tool.infer(Killed(), sorted(folder.iterdir()), tmp_path) == []
    assert seen == [[], ['a.jpg'], ['a.jpg', 'b.jpg']]


def test_what_of_a_folder_is_left_out_is_said(run_tool, folder, tmp_path):
    (folder / 'more').mkdir()
    (folder / 'moving.gif').touch()
    arguments = model_arguments('sgformer-tiny_upernet_shapes.py', tmp_path)
    result = run_tool('infer.py', folder, *arguments, '--out-dir', tmp_path / 'out')
    assert result.returncode == 0, result.stderr
    assert 'left out: 2 entries' in result.stdout


@pytest.mark.parametrize(
    ('tool', 'there', 'message'),
    [
        ('infer.py', 'out/predictions.json', 'predictions.json is there already'),
        ('infer.py', 'out/pictures/a.jpg.png', 'a.jpg.png is there already'),
        ('visualize_significance.py', 'out/a.jpg.png', 'a.jpg.png is there already'),
        ('infer.py', 'out', 'out cannot be written to'),
        ('visualize_significance.py', 'out', 'out cannot be written to'),
    ],
)
def test_a_place_for_the_results_is_checked_first(run_tool, tool, there, message, folder, tmp_path):
    """Before the model, which does not exist here: earlier results are kept, a file is no folder."""
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    result = run_tool(tool, 'a.py', 'b.pth', folder, '--out-dir', tmp_path / 'out')
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert message in line
    assert '--out-dir' in line
