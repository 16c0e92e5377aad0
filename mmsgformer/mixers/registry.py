"""The token mixers by name, and how one is built.

A mixer is what stands between a block's first norm and its residual. It is a module
`Mixer(dim, num_heads, stage, block, **arguments)` with

    forward(x (B, H, W, C), significance (B, H, W) or None) -> (out (B, H, W, C), significance)

for any H, W >= 1. One that has no use for the significance passes it on as it came.
"""

import inspect

from mmengine.registry import Registry
from torch import nn

MIXERS = Registry('mixer', scope='mmsgformer')


def as_config(mixer: str | dict) -> dict:
    """A name or a dict with a name as `type` -> such a dict, a new one. Raises TypeError if it is neither."""
    config = {'type': mixer} if isinstance(mixer, str) else mixer
    if not isinstance(config, dict) or not isinstance(config.get('type'), str):
        raise TypeError(f"mixer must be a name or a dict with a name as 'type', got {mixer!r}")
    return dict(config)


def build(
    mixer: str | dict, dim: int, num_heads: int, stage: int = 0, block: int = 0, **arguments: object
) -> nn.Module:
    """The mixer of one block.

    Args:
        mixer: A name of `MIXERS`, or a dict with that as `type` and with the mixer's own arguments.
        dim: Channels C.
        num_heads: Heads h, of C / h channels each.
        stage: 0-3. Sizes of some mixers grow with it.
        block: Place within the stage, from 0. Some mixers alternate by it.
        arguments: More of the mixer's own arguments.

    Raises:
        TypeError, ValueError: There is no such mixer, or it does not take these arguments.
    """
    own = as_config(mixer)
    name = own.pop('type')
    factory = MIXERS.module_dict.get(name)
    if factory is None:
        raise ValueError(
            f'unknown mixer {name!r}; choose from {sorted(MIXERS.module_dict)}, or register your own with '
            '@MIXERS.register_module() and import its file (custom_imports in a config)'
        )
    given = {'dim': dim, 'num_heads': num_heads, 'stage': stage, 'block': block, **own, **arguments}
    signature = inspect.signature(factory)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise TypeError(f'the mixer {name!r} {error}; it takes {", ".join(signature.parameters)}') from None
    return factory(**given)
