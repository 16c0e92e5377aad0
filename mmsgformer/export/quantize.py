"""Linear layers in 8 bits, by ONNX Runtime's dynamic quantisation: no data is needed for it."""

import logging
import tempfile
from pathlib import Path

import onnx

from mmsgformer.export.errors import ExportError


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose products with weights are of integers; their other factor is rounded as it comes.

    Products of two maps, as in attention, and convolutions stay in float32. Weights have 7 of the 8 bits, so
    that processors without VNNI do not overflow.

    Raises:
        ExportError: ONNX Runtime is not installed.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ModuleNotFoundError as error:
        raise ExportError(
            f'8 bits need {error.name}, which is not installed: pip install -r requirements/export.txt'
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.onnx')
        root, level = logging.getLogger(), logging.getLogger().level
        root.setLevel(logging.ERROR)  # it recommends a preparation that cannot be had for sizes that vary
        try:
            quantize_dynamic(
                model,
                path,
                op_types_to_quantize=['MatMul', 'Gemm'],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
        return onnx.load(path)
