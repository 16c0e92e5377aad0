"""What runs add to MMEngine's: hooks, exact resuming, batch sizes, several processes on a CPU."""

from mmsgformer.engine.attention_diversification import AttentionDiversificationHook
from mmsgformer.engine.batch_size import accumulate_to_base
from mmsgformer.engine.distributed import prepare_cpu_distributed
from mmsgformer.engine.exact_resume import (
    ExactResumeHook,
    PlaceSeededDataset,
    ResumableBatchSampler,
    disable_exact_resume,
    enable_exact_resume,
    make_exact,
)
from mmsgformer.engine.hooks import BadNumberError, BadNumberHook, CheckpointLoadHook, SignificanceVisHook
from mmsgformer.engine.pictures import PicturesHook
from mmsgformer.engine.resume_report import ResumeReportHook

__all__ = [
    'AttentionDiversificationHook',
    'BadNumberError',
    'BadNumberHook',
    'CheckpointLoadHook',
    'ExactResumeHook',
    'PicturesHook',
    'PlaceSeededDataset',
    'ResumableBatchSampler',
    'ResumeReportHook',
    'SignificanceVisHook',
    'accumulate_to_base',
    'disable_exact_resume',
    'enable_exact_resume',
    'make_exact',
    'prepare_cpu_distributed',
]
