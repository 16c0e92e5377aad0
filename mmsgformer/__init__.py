"""SG-Former, a self-guided vision transformer, for the OpenMMLab ecosystem.

Importing the package registers `SGFormer`, its hooks and what makes resuming exact in MMEngine's root
registries, where mmdet, mmseg and mmpretrain find them, as `dict(type='SGFormer', arch='s')`.
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

from mmsgformer.exact_resume import ExactResumeHook, PlaceSeededDataset, ResumableBatchSampler
from mmsgformer.hooks import BadNumberHook, CheckpointLoadHook, SignificanceVisHook
from mmsgformer.sgformer import SGFormer
from mmsgformer.version import __version__

__all__ = [
    'BadNumberHook',
    'CheckpointLoadHook',
    'ExactResumeHook',
    'PlaceSeededDataset',
    'ResumableBatchSampler',
    'SGFormer',
    'SignificanceVisHook',
    '__version__',
]
