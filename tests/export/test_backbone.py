"""One graph of standard operators is the backbone for every size of image, in both runtimes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import NETWORK, assert_close
from torch import Tensor

from mmsgformer import SGFormer
from mmsgformer.attention import SelfGuidedAttention

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
import onnx
import onnxruntime

from mmsgformer.export import ExportError, export_backbone
from mmsgformer.export.sort import BLOCK
from mmsgformer_runtime import InputError, Model

BACKENDS = ('onnxruntime', 'openvino')
# All kinds of attention and merges of two and of three parts, in few blocks: exporting takes half a minute.
ARCH = {'embed_dims': (32, 64, 128, 256), 'depths': (2, 1, 2, 1), 'num_heads': (2, 4, 8, 16)}


def build(arch: str | dict) -> SGFormer:
    torch.manual_seed(0)
    return SGFormer(arch).eval()


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> tuple[SGFormer, Path]:
    backbone = build(ARCH)
    path = tmp_path_factory.mktemp('backbone') / 'backbone.onnx'
    export_backbone(backbone, path)
    return backbone, path


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# None is the example's. 224: the position embedding's own grid; 112: windows divide maps.
SIZES = [(1, 32, 32), (2, 33, 64), (1, 224, 224), (3, 112, 112), (2, 57, 130), (1, 97, 301)]


@pytest.mark.parametrize('backend', BACKENDS)
def test_every_size(exported, backend):
    pytest.importorskip(backend)
    backbone, path = exported
    model = Model(path, backend, threads=1)
    for batch, height, width in SIZES:
        x = images(batch, 3, height, width)
        with torch.no_grad():
            expected = backbone(x)
        for name, theirs in zip(model.run(x.numpy()).values(), expected, strict=True):
            assert_close(torch.tensor(name), theirs, NETWORK[torch.float32].forward, (batch, height, width))


def test_operators_are_onnxs_own(exported):
    model = onnx.load(exported[1])
    assert {node.domain for node in model.graph.node} == {''}
    assert not model.functions
    assert 'mmsgformer/' not in str(model)  # nor is there a path of this machine


def test_what_is_not_taken_is_described(exported):
    model = Model(exported[1])
    for shape, message in [
        ((1, 3, 31, 40), 'height 32 or more'),
        ((1, 4, 40, 40), 'channels 3, got'),
        ((40, 40, 3), 'of float32, got'),
    ]:
        with pytest.raises(InputError, match=message):
            model.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize('small_topk', [False, True])
def test_one_size(small_topk, tmp_path):
    """Of more tokens than a block of the sort has; without a TopK that TensorRT refuses."""
    backbone, path = build(ARCH), tmp_path / 'backbone.onnx'
    export_backbone(backbone, path, (196, 260), small_topk)
    x = images(1, 3, 196, 260)
    with torch.no_grad():
        expected = backbone(x)
    for ours, theirs in zip(Model(path).run(x.numpy()).values(), expected, strict=True):
        assert_close(torch.tensor(ours), theirs, NETWORK[torch.float32].forward)
    lengths = sorted_lengths(path)
    assert (max(lengths) <= BLOCK) == small_topk, lengths
    with pytest.raises(InputError, match='height 196, got'):
        Model(path).run(images(1, 3, 224, 224).numpy())


def sorted_lengths(path: Path) -> list[int]:
    """Of each TopK of a file for one size: how many elements it sorts."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    return [shapes[node.output[1]][-1].dim_value for node in graph.node if node.op_type == 'TopK']


def test_a_size_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(ExportError, match='sizes of 32 or more, not 31 x 64'):
        export_backbone(build(ARCH), tmp_path / 'backbone.onnx', (31, 64))


def with_significance_given(path: Path) -> Path:
    """The file with what it sorts as further inputs, not as what it has computed itself."""
    model = onnx.load(path)
    for i, node in enumerate(node for node in model.graph.node if node.op_type == 'TopK'):
        node.input[0] = f'significance{i}'
        given = onnx.helper.make_tensor_value_info(
            node.input[0], onnx.TensorProto.FLOAT, ['batch', f'tokens{i}']
        )
        model.graph.input.append(given)
    onnx.save(model, path.with_name('given.onnx'))
    return path.with_name('given.onnx')


def maps_and_significance(backbone: SGFormer, x: Tensor) -> tuple[tuple[Tensor, ...], dict[str, np.ndarray]]:
    """What PyTorch gives, and what it sorts on the way."""
    sorted_by = []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: sorted_by.append(inputs[1].flatten(1).numpy()))
        for module in backbone.modules()
        if isinstance(module, SelfGuidedAttention)
    ]
    with torch.no_grad():
        maps = backbone(x)
    for handle in handles:
        handle.remove()
    return maps, {f'significance{i}': values for i, values in enumerate(sorted_by)}


def largest_difference(ours: Iterable[np.ndarray], theirs: Iterable[Tensor]) -> float:
    """Of all maps, each relative to its largest entry."""
    return max(float(np.abs(a - b.numpy()).max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_nothing_but_the_order_of_equals_differs(exported):
    """Sorted by PyTorch's significance the maps agree to rounding; by its own, neighbours change places."""
    backbone, path = exported
    session = onnxruntime.InferenceSession(with_significance_given(path))
    for batch, height, width in SIZES:
        x = images(batch, 3, height, width)
        maps, significance = maps_and_significance(backbone, x)
        ours = session.run(None, {'images': x.numpy(), **significance})
        assert largest_difference(ours, maps) < 2e-5, (batch, height, width)


@pytest.mark.slow
@pytest.mark.parametrize('arch', ['t', 's'])
def test_thirty_sizes(arch, tmp_path):
    """Drawn at random, 32-900, batches of 1-3; prints the differences (-s)."""
    backbone, path = build(arch), tmp_path / 'backbone.onnx'
    export_backbone(backbone, path)
    models = {backend: Model(path, backend, threads=1) for backend in BACKENDS}
    given = onnxruntime.InferenceSession(with_significance_given(path))
    random = np.random.RandomState(7)
    for _ in range(30):
        batch, height, width = random.randint(1, 4), *random.randint(32, 901, 2).tolist()
        x = images(batch, 3, height, width)
        maps, significance = maps_and_significance(backbone, x)
        by_order = largest_difference(given.run(None, {'images': x.numpy(), **significance}), maps)
        differences = {
            name: largest_difference(model.run(x.numpy()).values(), maps) for name, model in models.items()
        }
        print(f'{arch} {batch}x{height}x{width}', {'given the order': by_order, **differences})
        assert by_order < 3e-4
        assert max(differences.values()) < 2e-3
