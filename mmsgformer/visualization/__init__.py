"""Seeing what SG-Former sees: maps, drawings of them, and predictions on image files.

Drawing needs matplotlib, predictions need mmcv; either is imported when it is first asked for.
"""

from importlib import import_module

from mmsgformer.visualization.maps import (
    SignificanceMap,
    batch_maps,
    record_significance,
    significance_maps,
    token_allocation,
)

_WHERE = {
    **dict.fromkeys(('as_image', 'draw_map', 'draw_panel', 'draw_strip', 'seen_part'), 'drawing'),
    **dict.fromkeys(('Predictor', 'find_images', 'read_image'), 'predictions'),
}

__all__ = [
    'Predictor',
    'SignificanceMap',
    'as_image',
    'batch_maps',
    'draw_map',
    'draw_panel',
    'draw_strip',
    'find_images',
    'read_image',
    'record_significance',
    'seen_part',
    'significance_maps',
    'token_allocation',
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_WHERE[name]}'), name)
