"""Token mixers for SG-Former's blocks: its own, its rivals' and yours (docs/mixers.md).

One file each, named as the mixer.
"""

import sys

from torch import Tensor

# Importing a file registers its mixer.
import mmsgformer.mixers.agent
import mmsgformer.mixers.biformer
import mmsgformer.mixers.davit
import mmsgformer.mixers.flow
import mmsgformer.mixers.hornet
import mmsgformer.mixers.maxvit
import mmsgformer.mixers.neighborhood
import mmsgformer.mixers.sgformer
import mmsgformer.mixers.svit
import mmsgformer.mixers.swin  # noqa: F401
from mmsgformer.mixers.registry import MIXERS, build

__all__ = ['MIXERS', 'build', 'from_official']


def from_official(name: str, state_dict: dict[str, Tensor], **arguments: object) -> dict[str, Tensor]:
    """The weights of a mixer's official module under the names that ours has.

    Args:
        name: The mixer.
        state_dict: The official module's; buffers may be in it and are left out.
        arguments: What the mapping of this mixer needs to know besides, see its file.

    Raises:
        ValueError: The mixer has no such mapping.
    """
    module = sys.modules.get(f'{__name__}.{name}') if name in MIXERS.module_dict else None
    if not hasattr(module, 'from_official'):
        raise ValueError(f'no official weights are known for the mixer {name!r}')
    return module.from_official(state_dict, **arguments)
