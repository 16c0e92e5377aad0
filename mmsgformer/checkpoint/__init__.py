"""Checkpoints: reading them safely, fitting them strictly, writing them whole, and the official names."""

from mmsgformer.checkpoint.files import CheckpointError, latest_checkpoint, read_checkpoint, write_checkpoint
from mmsgformer.checkpoint.load import fit_backbone, load_backbone, prepare_for_model, split_weights
from mmsgformer.checkpoint.names import official_to_ours, ours_to_official

__all__ = [
    'CheckpointError',
    'fit_backbone',
    'latest_checkpoint',
    'load_backbone',
    'official_to_ours',
    'ours_to_official',
    'prepare_for_model',
    'read_checkpoint',
    'split_weights',
    'write_checkpoint',
]
