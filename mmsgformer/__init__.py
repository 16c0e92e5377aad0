"""SG-Former, a self-guided vision transformer, for the OpenMMLab ecosystem.

Importing the package registers `SGFormer` in MMEngine's root registry, where mmdet, mmseg and mmpretrain
find it under `dict(type='SGFormer', arch='s')`.
"""

try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ImportError(
        'mmsgformer needs MMEngine: '
        '`pip install onedl-mmengine` (the maintained fork) or `pip install mmengine`'
    ) from error

from mmsgformer.sgformer import SGFormer
from mmsgformer.version import __version__

__all__ = ['SGFormer', '__version__']
