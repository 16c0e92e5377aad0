"""An exported model: what its file says of it, and its predictions for images."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mmsgformer_runtime.errors import InputError, ModelError
from mmsgformer_runtime.header import read_header
from mmsgformer_runtime.images import prepare, read_image
from mmsgformer_runtime.masks import paste_masks

# Of the operators, and of the metadata, that tools/export.py writes and this package reads.
OPSET = 20
FORMAT = 1
METADATA = 'mmsgformer'

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Model:
    """A detector, segmenter or classifier in an ONNX file, ready for images.

    Args:
        path: What tools/export.py wrote.
        backend: 'onnxruntime' or 'openvino', which must be installed; both compute in float32.
        threads: Of the CPU; 0: as many as the backend likes.

    Raises:
        ModelError: The file cannot be read, is not from tools/export.py or is for another version of this
            package, or the backend is not installed or refuses the file; the message says why.
    """

    def __init__(self, path: str | Path, backend: str = 'onnxruntime', threads: int = 0) -> None:
        self.path = Path(path)
        self.metadata = read_metadata(path)
        self.task: str = self.metadata['task']
        self.classes: tuple[str, ...] = tuple(self.metadata['classes'])
        self._run = _open(self.path, backend, threads)

    read = staticmethod(read_image)

    def predict(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The predictions for one image, in its own pixels.

        Args:
            image: RGB, (H, W, 3) uint8, as `read` gives it; resized and cropped here as in training.

        Returns:
            Of a detector `boxes` (N, 4: x1, y1, x2, y2), `scores` (N,), `labels` (N,) and, if it makes them,
            `masks` (N, H, W) bool; of a segmenter `labels` (H, W); of a classifier `scores` (classes,).

        Raises:
            InputError: It is no such image, or of a size that the model does not take.
        """
        _check_image(image)
        return self.predict_prepared(prepare(image, self.metadata['steps']), image.shape[:2])

    def predict_prepared(self, prepared: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """`predict` for an image that was resized and cropped, which had this height and width before."""
        outputs = self.run(prepared[None], size)
        if self.task != 'detection':
            return {name: output[0] for name, output in outputs.items()}
        if 'masks' in outputs:
            threshold = self.metadata['mask_threshold']
            outputs['masks'] = paste_masks(outputs['masks'], outputs['boxes'], size, threshold)
        return outputs

    def run(self, images: np.ndarray, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """What the file itself gives: its outputs by name.

        Args:
            images: A batch of what the metadata describe: of a model (B, H, W, 3) uint8, RGB.
            size: Height and width that boxes and label maps are for; None: those of the batch.

        Raises:
            InputError: The batch has another layout or type, or a size that was not exported.
        """
        inputs = self.metadata['inputs']
        self._check_batch(images, inputs['images'])
        given = {'images': images}
        if 'size' in inputs:
            given['size'] = np.array(size or images.shape[1:3], np.int64)
        return dict(zip(self.metadata['outputs'], self._run(given), strict=True))

    def _check_batch(self, images: np.ndarray, expected: Mapping) -> None:
        """Raise an InputError if this is no batch that the file takes."""
        if not isinstance(images, np.ndarray):
            raise InputError(f'{self.path.name} takes a NumPy array, got {type(images).__name__}')
        axes = expected['axes']  # of each: its name and the lowest and highest length, None for no limit
        layout = ', '.join(axis if low != high else f'{low}' for axis, low, high in axes)
        if images.dtype != expected['dtype'] or images.ndim != len(axes):
            raise InputError(
                f'{self.path.name} takes ({layout}) of {expected["dtype"]}, '
                f'got {tuple(images.shape)} of {images.dtype}'
            )
        for (axis, low, high), length in zip(axes, images.shape, strict=True):
            if length < low or (high is not None and length > high):
                reach = f'{low}' if low == high else f'{low} or more' if high is None else f'{low} to {high}'
                raise InputError(
                    f'{self.path.name} takes ({layout}) with {axis} {reach}, got {tuple(images.shape)}; '
                    'give an image of such a size, or export the model for this one'
                )


def read_metadata(path: str | Path) -> dict:
    """What tools/export.py wrote about a model.

    Raises:
        ModelError: As `Model`.
    """
    header = read_header(path)
    if METADATA not in header.metadata:
        raise ModelError(f"{path} has no metadata '{METADATA}': it is not from tools/export.py")
    try:
        metadata = json.loads(header.metadata[METADATA])
    except ValueError as error:
        raise ModelError(f"the metadata '{METADATA}' of {path} cannot be read: {error}") from error
    if metadata['format'] != FORMAT:
        raise ModelError(
            f'{path} is of format {metadata["format"]}, this package reads {FORMAT}; '
            'export the model again, or install the version that it was exported with'
        )
    if header.opset != OPSET:
        raise ModelError(
            f'{path} is of opset {header.opset}, tools/export.py writes {OPSET}: it was changed since; '
            'export the model again'
        )
    return metadata


def _open(path: Path, backend: str, threads: int) -> Run:
    """A function that runs a file."""
    if backend not in _BACKENDS:
        raise ModelError(f'the backend must be one of {", ".join(_BACKENDS)}, got {backend!r}')
    try:
        return _BACKENDS[backend](path, threads)
    except ModuleNotFoundError as error:
        raise ModelError(f'{backend} is not installed: pip install {backend}') from error
    except Exception as error:  # each backend raises its own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f'{backend} cannot load {path}: {reason}') from error


def _open_onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; it warns of every shape that depends on the image
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda inputs: session.run(None, inputs)


def _open_openvino(path: Path, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    for operator in network.get_ops():
        if operator.get_type_name() == 'TopK':
            operator.set_attribute('stable', True)  # as ONNX has it
    settings = {
        'INFERENCE_PRECISION_HINT': 'f32',  # else bfloat16, where the processor can
        # Its own kernels of fused operators, once they ran on a map of one pixel, are wrong for larger ones.
        'SNIPPETS_MODE': 'DISABLE',
        **({'INFERENCE_NUM_THREADS': threads} if threads else {}),
    }
    request = core.compile_model(network, 'CPU', settings).create_infer_request()
    return lambda inputs: [output.copy() for output in request.infer(inputs).values()]


_BACKENDS = {'onnxruntime': _open_onnxruntime, 'openvino': _open_openvino}
BACKENDS = tuple(_BACKENDS)


def _check_image(image: np.ndarray) -> None:
    """Raise an InputError if this is no image as `read_image` gives it."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f'{image.shape} of {image.dtype}' if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f'an image is an array (height, width, 3) of uint8, RGB; got {kind}')
