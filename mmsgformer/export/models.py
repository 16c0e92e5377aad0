"""Whole models as modules with tensors in and out: preprocessing, network, predictions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsgformer.export.detectors import RCNN, Detector, RetinaNet
from mmsgformer.export.errors import ExportError
from mmsgformer.export.pooling import AdaptiveAveragePool


class Preprocess(nn.Module):
    """Images (B, H, W, 3) uint8 RGB -> what the network takes, as the model's data preprocessor does it."""

    def __init__(self, data_preprocessor: nn.Module) -> None:
        super().__init__()
        if data_preprocessor._enable_normalize:
            self.register_buffer('mean', data_preprocessor.mean.clone())
            self.register_buffer('std', data_preprocessor.std.clone())
        else:
            self.mean = self.std = None
        # The pipelines load BGR; a network that has it turned sees RGB.
        self.sees_rgb = getattr(
            data_preprocessor, '_channel_conversion', getattr(data_preprocessor, 'to_rgb', False)
        )
        self.divisor = data_preprocessor.pad_size_divisor
        self.pad_value = data_preprocessor.pad_value
        if getattr(data_preprocessor, 'test_cfg', None):
            raise ExportError('a data_preprocessor with test_cfg, which pads in testing, cannot be exported')

    def normalize(self, images: Tensor) -> Tensor:
        """-> (B, 3, H, W), float32."""
        x = images.permute(0, 3, 1, 2)
        x = (x if self.sees_rgb else x.flip(1)).float()
        return x if self.mean is None else (x - self.mean) / self.std

    def pad(self, x: Tensor) -> Tensor:
        """At the right and bottom, to a multiple of the divisor."""
        height, width = x.shape[2:]
        bottom, right = (
            (side + self.divisor - 1) // self.divisor * self.divisor - side for side in (height, width)
        )
        return F.pad(x, (0, right, 0, bottom), value=self.pad_value) if self.divisor > 1 else x

    def forward(self, images: Tensor) -> Tensor:
        """Both."""
        return self.pad(self.normalize(images))


class Classifier(nn.Module):
    """`forward(images (B, H, W, 3) uint8 RGB)` -> probabilities (B, classes)."""

    outputs = ('scores',)

    def __init__(self, model: nn.Module, preprocess: nn.Module) -> None:
        from mmpretrain.models.heads import ClsHead

        super().__init__()
        head = type(model.head)
        if getattr(head, '_get_predictions', None) is not ClsHead._get_predictions:
            raise ExportError(
                f'{head.__name__} cannot be exported; heads that end in the softmax of ClsHead can'
            )
        self.model, self.preprocess = model, preprocess

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """As the class says."""
        logits = self.model.head(self.model.extract_feat(self.preprocess(images)))
        return (logits.softmax(dim=1),)


class Segmenter(nn.Module):
    """`forward(images (B, H, W, 3) uint8 RGB, size (2,))` -> label maps (B, size[0], size[1]).

    The logits are resized twice, as mmseg does it: to the input's size and to `size`, that of the image
    before it was resized.
    """

    outputs = ('labels',)

    def __init__(self, model: nn.Module, preprocess: nn.Module) -> None:
        super().__init__()
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise ExportError("a segmenter is exported for whole images: set model.test_cfg.mode='whole'")
        for name, module in list(model.named_modules()):
            if type(module).__name__ == 'Upsample':  # mmseg's makes an integer of the size
                how = {'scale_factor': module.scale_factor, 'mode': module.mode}
                model.set_submodule(name, nn.Upsample(**how, align_corners=module.align_corners))
            elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size != 1:
                model.set_submodule(name, AdaptiveAveragePool(module.output_size))
        self.model, self.preprocess = model, preprocess

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor]:
        """As the class says."""
        # Not padded: mmseg does that in training alone.
        logits = self.model.decode_head(self.model.extract_feat(self.preprocess.normalize(images)))
        logits = self._resize(logits, *images.shape[1:3])
        height, width = size.tolist()
        torch._check(height >= 1)
        torch._check(width >= 1)
        logits = self._resize(logits, height, width)
        if logits.shape[1] == 1:
            return ((logits[:, 0].sigmoid() > self.model.decode_head.threshold).long(),)
        return (logits.argmax(dim=1),)

    def _resize(self, logits: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(logits, (height, width), mode='bilinear', align_corners=self.model.align_corners)


# By the name of a framework's class: the module, and the task in the metadata.
_KINDS: dict[str, tuple[type[nn.Module], str]] = {
    'ImageClassifier': (Classifier, 'classification'),
    'EncoderDecoder': (Segmenter, 'segmentation'),
    'RetinaNet': (RetinaNet, 'detection'),
    'FasterRCNN': (RCNN, 'detection'),
    'MaskRCNN': (RCNN, 'detection'),
}


def exportable(model: nn.Module) -> tuple[nn.Module, str]:
    """A framework's model as a module that can be exported, and its task.

    Raises:
        ExportError: The model is of a kind, or has a part, that is not known.
    """
    name = type(model).__name__
    if name not in _KINDS:
        raise ExportError(f'{name} cannot be exported; {", ".join(_KINDS)} can, and any with --what backbone')
    kind, task = _KINDS[name]
    return kind(model, Preprocess(model.data_preprocessor)), task


def takes_one_image(module: nn.Module) -> bool:
    """Whether a batch is one image: objects of several cannot be told apart by tensors of one size."""
    return isinstance(module, Detector)
