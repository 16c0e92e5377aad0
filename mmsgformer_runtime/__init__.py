"""Runs what tools/export.py wrote, with numpy, Pillow and ONNX Runtime (or OpenVINO), and nothing else.

    from mmsgformer_runtime import Model

    model = Model('model.onnx')
    result = model.predict(model.read('photo.jpg'))

A package of its own, since importing `mmsgformer` registers it with MMEngine and so loads torch.
"""

from mmsgformer_runtime.errors import InputError, ModelError
from mmsgformer_runtime.model import Model

__all__ = ['InputError', 'Model', 'ModelError']
