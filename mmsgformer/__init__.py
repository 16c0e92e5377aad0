"""SG-Former, a self-guided vision transformer, for the OpenMMLab ecosystem.

Importing the package registers `SGFormer`, its hooks and what makes resuming exact in MMEngine's root
registries, where mmdet, mmseg and mmpretrain find them, as `dict(type='SGFormer', arch='s')`.
"""

import sys

try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ImportError(
        'mmsgformer needs MMEngine: '
        '`pip install onedl-mmengine` (the maintained fork) or `pip install mmengine`'
    ) from error

from mmsgformer.checkpoint import names
from mmsgformer.data import paths
from mmsgformer.engine import (
    AttentionDiversificationHook,
    BadNumberHook,
    CheckpointLoadHook,
    ExactResumeHook,
    PlaceSeededDataset,
    ResumableBatchSampler,
    SignificanceVisHook,
    exact_resume,
)
from mmsgformer.sgformer import SGFormer
from mmsgformer.version import __version__

# Under the names that scripts know from before.
for _name, _module in {'dataset_paths': paths, 'exact_resume': exact_resume, 'official_names': names}.items():
    sys.modules[f'{__name__}.{_name}'] = _module

__all__ = [
    'AttentionDiversificationHook',
    'BadNumberHook',
    'CheckpointLoadHook',
    'ExactResumeHook',
    'PlaceSeededDataset',
    'ResumableBatchSampler',
    'SGFormer',
    'SignificanceVisHook',
    '__version__',
]
