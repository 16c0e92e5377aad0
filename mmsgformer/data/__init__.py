"""The data that a config trains on: where it lies, and (in `check`) what is wrong with it."""

from mmsgformer.data.errors import DataError
from mmsgformer.data.paths import check_dataset_paths, set_data_root

__all__ = ['DataError', 'check_dataset_paths', 'set_data_root']
