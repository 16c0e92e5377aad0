"""Running a file: what it takes, and a message for everything that it does not."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsgformer_runtime import InputError, Model, ModelError
from mmsgformer_runtime.header import read_header
from mmsgformer_runtime.model import OPSET

ROOT = Path(__file__).parents[2]
NOT_NEEDED = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'matplotlib', 'onnx')
RED = np.full((40, 50, 3), (200, 10, 20), np.uint8)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_an_image_is_predicted(write_model, backend):
    pytest.importorskip(backend)
    found = Model(write_model(), backend, threads=1).predict(RED)
    np.testing.assert_allclose(found['scores'], [200, 10, 20], rtol=1e-6)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (RED[:31], r'height 32 or more, got \(1, 31, 50, 3\)'),
        (RED[:, :31], 'width 32 or more'),
        (RED.transpose(2, 0, 1), r'\(height, width, 3\) of uint8, RGB; got \(3, 40, 50\)'),
        (RED.astype(np.float32), 'of float32'),
        (RED[..., 0], r'got \(40, 50\)'),
        (np.concatenate([RED, RED[..., :1]], axis=2), r'got \(40, 50, 4\)'),
        ([[1, 2, 3]], 'got list'),
    ],
    ids=['low', 'narrow', 'channels first', 'floats', 'grey', 'alpha', 'list'],
)
def test_an_image_that_is_not_taken_is_described(write_model, image, message):
    with pytest.raises(InputError, match=message):
        Model(write_model()).predict(image)


def test_another_size_than_the_exported_one_is_named(write_model):
    axes = [['batch', 1, 1], ['height', 64, 64], ['width', 96, 96], ['channels', 3, 3]]
    model = Model(write_model(inputs={'images': {'dtype': 'uint8', 'axes': axes}}))
    with pytest.raises(InputError, match=r'\(1, 64, 96, 3\) with height 64, got \(1, 40, 50, 3\)'):
        model.predict(RED)


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (RED[None].astype(np.float32), 'of uint8, got .* of float32'),
        (RED, r'\(batch, height, width, 3\) of uint8, got \(40, 50, 3\)'),
        (RED[None].transpose(0, 3, 1, 2), 'height 32 or more'),
    ],
    ids=['floats', 'no batch', 'channels first'],
)
def test_a_batch_that_is_not_taken_is_described(write_model, images, message):
    with pytest.raises(InputError, match=message):
        Model(write_model()).run(images)


def test_a_truncated_file_is_named_wherever_it_ends(write_model):
    path = write_model()
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelError, match=r'model\.onnx'):
            Model(path)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'opset': OPSET - 1}, f'is of opset {OPSET - 1}, tools/export.py writes {OPSET}'),
        ({'metadata': False}, 'is not from tools/export.py'),
        ({'format': 99}, 'is of format 99'),
    ],
    ids=['opset', 'metadata', 'format'],
)
def test_a_file_of_another_kind_is_named(write_model, arguments, message):
    with pytest.raises(ModelError, match=message):
        Model(write_model(**arguments))


def test_damaged_metadata_are_named(write_model):
    path = write_model()
    path.write_bytes(path.read_bytes().replace(b'{"format"', b'["format"'))
    with pytest.raises(ModelError, match=r'the metadata .* cannot be read'):
        Model(path)


@pytest.mark.parametrize('content', [b'', b'no model', b'\x00' * 100], ids=['empty', 'text', 'zeros'])
def test_what_is_no_onnx_file_is_named(content, tmp_path):
    (tmp_path / 'model.onnx').write_bytes(content)
    with pytest.raises(ModelError, match=r'model\.onnx is truncated or no ONNX file'):
        Model(tmp_path / 'model.onnx')
    with pytest.raises(ModelError, match=r'absent\.onnx cannot be read'):
        Model(tmp_path / 'absent.onnx')


def test_a_backend_that_is_missing_is_named(write_model, monkeypatch):
    path = write_model()
    with pytest.raises(ModelError, match='must be one of onnxruntime, openvino'):
        Model(path, 'tensorrt')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ModelError, match='pip install openvino'):
        Model(path, 'openvino')


def test_the_header_is_onnxs(write_model):
    """As the onnx package reads it."""
    onnx = pytest.importorskip('onnx')
    path = write_model()
    header = read_header(path)
    model = onnx.load(path)
    assert header.opset == model.opset_import[0].version
    assert header.metadata == {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize(
    ('run', 'target'), [('run_module', 'mmsgformer_runtime'), ('run_path', 'tools/infer.py')]
)
def test_torch_and_the_frameworks_are_not_needed(write_model, run, target, tmp_path):
    """Pictures and JSON, with their imports made to fail."""
    (tmp_path / 'images').mkdir()
    Image.fromarray(RED).save(tmp_path / 'images' / 'red.png')
    Image.fromarray(RED[:20]).save(tmp_path / 'images' / 'small.png')
    arguments = [tmp_path / 'images', '--model', write_model(), '--out-dir', tmp_path / 'out']
    program = f"""
import sys, runpy
for name in {NOT_NEEDED}:
    sys.modules[name] = None
sys.argv = {['infer', *map(str, arguments)]}
runpy.{run}({target!r}, run_name='__main__')
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert 'small.png failed: model.onnx takes' in done.stderr
    assert 'Traceback' not in done.stderr
    assert '"red.png"' in (tmp_path / 'out' / 'predictions.json').read_text()
    assert (tmp_path / 'out' / 'pictures' / 'red.png.png').exists()
