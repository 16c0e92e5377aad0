"""Models as ONNX files of standard operators, for any size of image; mmsgformer_runtime runs them."""

from mmsgformer.export.errors import ExportError
from mmsgformer.export.files import export_backbone, export_model

__all__ = ['ExportError', 'export_backbone', 'export_model']
