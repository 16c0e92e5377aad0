"""Padded batches without their padding: how `SGFormer(ignore_padding=True)` gets and uses the images' sizes.

The frameworks pad the images of a batch at the right and bottom to one size. How large each was stands in the
data samples (`img_shape`), which a model has and its backbone has not. So the model gets two of torch's
hooks, as soon as the backbone is put into it, that hand the sizes on for the time of a forward pass. This
holds for training, testing and the frameworks' inferencers, within DDP and test-time augmentation, since all
call the model. What never calls it, as a backbone that is called by itself, runs with its padding.

What a pipeline pads (a `Pad` before packing) is part of the image to the frameworks and here.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook


def run_without_padding(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    min_size: int,
) -> tuple[Tensor, ...]:
    """A backbone's maps of every image as if it were alone, in maps of the batch's size that are 0 elsewhere.

    Args:
        function: Images (B, C, h, w) -> one map (B, C_i, ceil(h / s_i), ceil(w / s_i)) for each stride.
        images: The padded batch (B, C, H, W). Images of one size run together.
        sizes: Height and width of each image in it.
        strides: The s_i.
        min_size: Smaller sides keep padding up to this many pixels.
    """
    height, width = images.shape[2:]
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (h, w) in enumerate(sizes):
        groups[min(max(h, min_size), height), min(max(w, min_size), width)].append(i)
    if set(groups) == {(height, width)}:
        return function(images)
    maps_of_groups = [function(images[members, :, :h, :w]) for (h, w), members in groups.items()]
    place = {image: i for i, image in enumerate(chain(*groups.values()))}
    order = [place[i] for i in range(len(images))]

    def to_one_size(maps: Sequence[Tensor], stride: int) -> Tensor:
        rows, columns = -(-height // stride), -(-width // stride)
        padded = [F.pad(m, (0, columns - m.shape[3], 0, rows - m.shape[2])) for m in maps]
        return torch.cat(padded)[order]

    return tuple(
        to_one_size(maps, stride)
        for maps, stride in zip(zip(*maps_of_groups, strict=True), strides, strict=True)
    )


@functools.cache
def tell_image_sizes() -> None:
    """From now on, models tell backbones with `ignore_padding` that are put into them the images' sizes."""
    register_module_module_registration_hook(_meet)


def _meet(model: nn.Module, name: str, module: nn.Module | None) -> None:
    if getattr(module, 'ignore_padding', False):
        model.register_forward_pre_hook(_tell, with_kwargs=True)
        model.register_forward_hook(_forget, always_call=True)


def _tell(model: nn.Module, args: tuple, kwargs: dict) -> None:
    """Before `model(inputs, data_samples, mode)`. Raises ValueError if the samples have no `img_shape`."""
    given = dict(zip(('inputs', 'data_samples'), args, strict=False)) | kwargs
    if given.get('data_samples') is None or not torch.is_tensor(given.get('inputs')):
        return
    samples = [sample.metainfo for sample in given['data_samples']]
    if not all('img_shape' in sample for sample in samples):
        raise ValueError(
            'ignore_padding needs the size of every image: add img_shape to the meta_keys of the last step '
            'of the pipeline'
        )
    for backbone in _backbones(model):
        backbone.image_sizes = {given['inputs'].shape: [tuple(s['img_shape'][:2]) for s in samples]}


def _forget(model: nn.Module, *_: object) -> None:
    for backbone in _backbones(model):
        backbone.image_sizes = {}


def _backbones(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if getattr(module, 'ignore_padding', False)]
