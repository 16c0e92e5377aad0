"""A module with tensors in and out -> one ONNX file of standard operators, for one size or for any."""

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
import torch.fx.experimental._config
from onnxscript import BOOL, INT64
from onnxscript import opset20 as op
from torch import Tensor, nn
from torch.export import Dim

from mmsgformer.checkpoint.files import write_file
from mmsgformer.export.errors import ExportError
from mmsgformer.export.quantize import with_int8_weights
from mmsgformer.export.sort import argsort, sort_by_topk, sort_in_blocks
from mmsgformer_runtime.model import OPSET

aten = torch.ops.aten
# The longest side and the largest batch, for torch's reckoning with lengths.
_LARGEST = 2**14


def export_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic: Mapping[str, dict[int, str]],
    outputs: Sequence[str],
    path: str | Path,
    metadata: Mapping[str, str],
    small_topk: bool = False,
    int8: bool = False,
) -> None:
    """Write a module as an ONNX file.

    Args:
        module: In evaluation mode; its `forward` takes the inputs by name and returns a tuple of tensors.
        inputs: Examples; each dimension that is dynamic must be larger than 1.
        dynamic: Of each input those dimensions, with a name for each.
        outputs: A name for each output.
        path: The file to write.
        metadata: Written into the file.
        small_topk: Sort in blocks: no TopK is larger than `sort.BLOCK`, for TensorRT.
        int8: Linear layers in 8 bits (`quantize.with_int8_weights`).

    Raises:
        ExportError: An operator is left that is not ONNX's own.
    """
    shapes = {name: {i: Dim.DYNAMIC(max=_LARGEST) for i in dynamic.get(name, {})} for name in inputs}
    # Lengths of 1 are not told from others: what is recorded holds for them too.
    with torch.no_grad(), torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(module, (), dict(inputs), dynamic_shapes=shapes, strict=False)
        if small_topk:
            program = program.run_decompositions(
                {aten.sort.stable: sort_in_blocks, aten.argsort.stable: argsort}
            )
        exported = torch.onnx.export(
            program,
            (),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            custom_translation_table={aten.sort.stable: sort_by_topk, operator.le: _no_larger},
            verbose=False,
        )
    model = with_int8_weights(exported.model_proto) if int8 else exported.model_proto
    _forget(model.graph, dynamic)
    foreign = {node.domain for node in model.graph.node} - {''}
    if foreign:
        raise ExportError(f'operators of {", ".join(sorted(foreign))} are left; ONNX alone must do')
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    write_file(model.SerializeToString(), path)


def _forget(graph: onnx.GraphProto, dynamic: Mapping[str, dict[int, str]]) -> None:
    """Leave out what the exporter says of shapes and of where each operator comes from, in place.

    Of the shapes it has assumed things of the example (that there were 1000 boxes), by which ONNX Runtime
    would plan memory; and where operators come from are paths of this machine.
    """
    del graph.value_info[:]
    for output in graph.output:
        for dim in output.type.tensor_type.shape.dim:
            dim.Clear()
    for taken in graph.input:
        for i, name in dynamic.get(taken.name, {}).items():
            taken.type.tensor_type.shape.dim[i].dim_param = name
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')


def _no_larger(number: INT64, limit: INT64) -> BOOL:
    """A comparison of lengths, which nothing reads: torch asserts limits that no integer of ONNX holds."""
    return op.LessOrEqual(number, min(limit, 2**63 - 1) if isinstance(limit, int) else limit)
