"""A file as tools/export.py writes it, by hand: the mean colour of an image are its scores."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsgformer_runtime.model import FORMAT, METADATA, OPSET


@pytest.fixture
def write_model(tmp_path) -> Callable[..., Path]:
    """A function that writes such a file; what is given replaces entries of its metadata."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')

    def write(opset: int = OPSET, metadata: bool = True, **entries: object) -> Path:
        shape = ['batch', 'height', 'width', 3]
        graph = onnx.helper.make_graph(
            [
                onnx.helper.make_node('Cast', ['images'], ['floats'], to=onnx.TensorProto.FLOAT),
                onnx.helper.make_node('ReduceMean', ['floats', 'axes'], ['scores'], keepdims=0),
            ],
            'mean',
            [onnx.helper.make_tensor_value_info('images', onnx.TensorProto.UINT8, shape)],
            [onnx.helper.make_tensor_value_info('scores', onnx.TensorProto.FLOAT, ['batch', 3])],
            [onnx.helper.make_tensor('axes', onnx.TensorProto.INT64, [2], [1, 2])],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid('', opset)], ir_version=9
        )
        if metadata:
            axes = [['batch', 1, None], ['height', 32, None], ['width', 32, None], ['channels', 3, 3]]
            content = {
                'format': FORMAT,
                'task': 'classification',
                'inputs': {'images': {'dtype': 'uint8', 'axes': axes}},
                'outputs': ['scores'],
                'steps': [],
                'classes': ['red', 'green', 'blue'],
                'palette': [],
                **entries,
            }
            onnx.helper.set_model_props(model, {'other': 'ä' * 300, METADATA: json.dumps(content)})
        path = tmp_path / 'model.onnx'
        path.write_bytes(model.SerializeToString())
        return path

    return write
