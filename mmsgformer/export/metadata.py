"""How a model's test pipeline prepares images, as steps that a file of it can hold."""

from collections.abc import Mapping, Sequence

from mmengine.config import ConfigDict

from mmsgformer.export.errors import ExportError

_IGNORED = ('LoadAnnotations', 'PackDetInputs', 'PackInputs', 'PackSegInputs')


def preparation(pipeline: Sequence[Mapping]) -> list[dict]:
    """The steps of a test pipeline that change the image, as `mmsgformer_runtime.images.prepare` takes them.

    Raises:
        ExportError: A step is none of those that are known, or is used in another way.
    """
    load, *steps = (dict(step) for step in pipeline)
    if load.pop('type') != 'LoadImageFromFile' or set(load) - {'backend_args'}:
        raise ExportError(f'the test pipeline must start with a plain LoadImageFromFile, not {pipeline[0]}')
    translated = []
    for step in steps:
        name = step.pop('type').rpartition('.')[2]
        if name in _IGNORED or (name, step) == ('Resize', {'scale_factor': 1.0}):  # which changes nothing
            continue
        if name not in _STEPS:
            raise ExportError(
                f'the step {name} of the test pipeline is not known to the runtime, which has '
                f'{", ".join(_STEPS)}; leave it out of the test pipeline'
            )
        translated.append(_STEPS[name](ConfigDict(step)))
    return translated


def _resize(step: ConfigDict) -> dict:
    _check_arguments('Resize', step, {'scale', 'keep_ratio', 'backend', 'interpolation'})
    return {
        'step': 'resize',
        'size': _pair(step.get('scale')),
        'keep_ratio': bool(step.get('keep_ratio', False)),
        **_how(step),
    }


def _resize_edge(step: ConfigDict) -> dict:
    _check_arguments('ResizeEdge', step, {'scale', 'edge', 'backend', 'interpolation'})
    if step.get('edge', 'short') != 'short':
        raise ExportError(f"ResizeEdge is known with edge='short' only, not {step.edge!r}")
    return {'step': 'resize_edge', 'size': step.scale, **_how(step)}


def _center_crop(step: ConfigDict) -> dict:
    _check_arguments('CenterCrop', step, {'crop_size'})
    return {'step': 'center_crop', 'size': _pair(step.crop_size)}


_STEPS = {'Resize': _resize, 'ResizeEdge': _resize_edge, 'CenterCrop': _center_crop}


def _check_arguments(name: str, step: ConfigDict, known: set[str]) -> None:
    if set(step) - known:
        raise ExportError(
            f'{name} has {", ".join(sorted(set(step) - known))}, which the runtime does not know'
        )


def _how(step: ConfigDict) -> dict:
    """By which library a step resizes, and how."""
    how = {'like': step.get('backend', 'cv2'), 'interpolation': step.get('interpolation', 'bilinear')}
    known = [('cv2', 'bilinear'), ('pillow', 'bilinear'), ('pillow', 'bicubic')]
    if tuple(how.values()) not in known:
        raise ExportError(f'{how["interpolation"]} by {how["like"]} is not known to the runtime')
    return how


def _pair(size: int | Sequence[int] | None) -> list[int]:
    """(width, height)."""
    if isinstance(size, int):
        return [size, size]
    if size is None or len(size) != 2:
        raise ExportError(f'a size must be one number or (width, height), got {size!r}')
    return list(size)
