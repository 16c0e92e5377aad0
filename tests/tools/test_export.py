"""tools/export.py, and tools/infer.py with what it wrote, as a user would run them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tool_calls import load_tool

from mmsgformer.compat import EXPORTS_ANY_SIZE

CONFIG = Path(__file__).parents[2] / 'configs' / 'demo' / 'sgformer-tiny_shapes.py'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('checkpoint') / 'weights.pth'
    meta = {'dataset_meta': {'classes': cfg.test_dataloader.dataset.classes}}
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': meta}, path)
    return path


@pytest.mark.parametrize(
    ('name', 'values', 'points'),
    [('coco/segm_mAP_s', (0.397, 0.396), 0.1), ('mIoU', (19.97, 20.07), 0.1), ('accuracy/top1', (50, 50), 0)],
)
def test_a_last_digit_is_a_tenth_of_a_point(name, values, points):
    """And no more: COCO's metrics have three digits, and 0.1 points are allowed."""
    assert load_tool('export')._points(name, *values) == points


def test_an_exported_model_predicts_the_same(run_tool, shapes, checkpoint, tmp_path):
    """The metrics on a data set, and the JSON and the pictures' names of the two routes of tools/infer.py."""
    for name in ('onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    model = tmp_path / 'model.onnx'
    arguments = ('--out', model, '--size', 64, 64, '--verify', shapes)
    result = run_tool('export.py', CONFIG, checkpoint, *arguments)
    assert result.returncode == 0, result.stderr
    assert 'accuracy/top1' in result.stdout
    routes = {'torch': [CONFIG, checkpoint], 'onnx': []}
    for route, arguments in routes.items():
        end = ['--out-dir', tmp_path / route, *(['--model', model] if route == 'onnx' else [])]
        result = run_tool('infer.py', *arguments, shapes / 'val2017', *end)
        assert result.returncode == 0, result.stderr
    ours, others = (json.loads((tmp_path / route / 'predictions.json').read_text()) for route in routes)
    assert list(ours) == list(others)
    for name, prediction in ours.items():
        assert others[name]['class'] == prediction['class']
        # Decoders of JPEG differ by a step of 255 here and there.
        assert others[name]['score'] == pytest.approx(prediction['score'], abs=1e-3)
        assert (tmp_path / 'onnx' / 'pictures' / f'{name}.png').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--size', 31, 64], 'sizes of 32 or more, not 31 x 64'),
        (['--what', 'backbone', '--verify', 'data'], '--verify compares metrics, which a backbone has not'),
        (['--dynamic', '--size', 64, 64], 'not allowed with argument'),
    ],
)
def test_what_cannot_be_is_one_line(run_tool, checkpoint, arguments, message, tmp_path):
    if EXPORTS_ANY_SIZE:
        pytest.importorskip('onnxscript')
    result = run_tool('export.py', CONFIG, checkpoint, '--out', tmp_path / 'model.onnx', *arguments)
    assert result.returncode != 0
    assert message in result.stderr or not EXPORTS_ANY_SIZE
    assert 'Traceback' not in result.stderr


def test_without_onnx_it_says_what_to_install(run_tool, checkpoint, monkeypatch, tmp_path):
    for name in list(sys.modules):
        if name.startswith('mmsgformer.export'):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    result = run_tool('export.py', CONFIG, checkpoint, '--out', tmp_path / 'model.onnx')
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert 'requirements/export.txt' in line or 'needs torch 2.10' in line
