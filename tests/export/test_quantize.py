"""A file in 8 bits: every linear layer is, and the maps are nearly those of the model, at any size."""

import sys
from pathlib import Path

import pytest
import torch

from mmsgformer import SGFormer

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
import onnx

from mmsgformer.export import ExportError, export_backbone
from mmsgformer.export.quantize import with_int8_weights
from mmsgformer_runtime import Model

ARCH = {'embed_dims': (32, 64, 128, 256), 'depths': (2, 1, 2, 1), 'num_heads': (2, 4, 8, 16)}


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> tuple[SGFormer, Path]:
    torch.manual_seed(0)
    backbone = SGFormer(ARCH).eval()
    path = tmp_path_factory.mktemp('int8') / 'backbone.onnx'
    export_backbone(backbone, path, int8=True)
    return backbone, path


def test_every_linear_layer_has_8_bits(exported):
    """In ONNX's own operators; what is said of the file stays in it."""
    backbone, path = exported
    model = onnx.load(path)
    weights = {weight.name: weight for weight in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == 'MatMulInteger']
    linear = [module for module in backbone.modules() if isinstance(module, torch.nn.Linear)]
    # Those with one output merge tokens: a vector each, applied to whole maps of values.
    assert len(products) == sum(module.out_features > 1 for module in linear)
    assert all(weights[node.input[1]].data_type == onnx.TensorProto.INT8 for node in products)
    in_float = [node for node in model.graph.node if node.op_type in ('MatMul', 'Gemm')]
    left = {name for node in in_float for name in node.input if name in weights}
    assert all(len(weights[name].dims) == 1 for name in left)
    assert {node.domain for node in model.graph.node} == {''}
    assert [entry.key for entry in model.metadata_props] == ['mmsgformer']


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('shape', [(1, 3, 97, 301), (2, 3, 57, 130), (1, 3, 32, 32)], ids=str)
def test_the_maps_are_nearly_the_same(shape, backend, exported):
    """Within 5 % in the Frobenius norm, as in bfloat16."""
    pytest.importorskip(backend)
    backbone, path = exported
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(images)
    for ours, theirs in zip(
        Model(path, backend, threads=1).run(images.numpy()).values(), expected, strict=True
    ):
        assert (torch.tensor(ours) - theirs).norm() < 0.05 * theirs.norm()


def test_without_onnx_runtime_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime.quantization', None)
    with pytest.raises(ExportError, match='pip install -r requirements/export'):
        with_int8_weights(onnx.ModelProto())
