"""Does the significance follow the objects? Objects against background, on the validation data of a config.

    python tools/measure_significance.py CONFIG CHECKPOINT --data-root DATA

For every hybrid-scale block, before training (newly initialised weights, seed 0) and after: the mean
significance of a token on an object divided by that of one on the background, and the share of the tokens
that the merge keeps finest that lie on objects. Objects are the annotated instances of detection data, or
every labelled class but "background" of segmentation data.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.cli import expanded, read_config
from mmsgformer.data import DataError
from mmsgformer.visualization.maps import batch_maps, require_significance, token_allocation
from mmsgformer.visualization.predictions import Predictor

IGNORED_LABEL = 255


def object_mask(sample: BaseDataElement, classes: tuple[str, ...]) -> Tensor:
    """Where a sample's annotated objects are, (H, W), 1.0 or 0.0.

    Raises:
        ValueError: They are boxes without masks.
    """
    if 'gt_instances' in sample:
        if 'masks' not in sample.gt_instances:
            raise ValueError(
                'the validation data has boxes without masks, and the measurement needs the shapes of the '
                'objects: set with_mask=True in LoadAnnotations of val_dataloader.dataset.pipeline'
            )
        return torch.from_numpy(sample.gt_instances.masks.to_ndarray()).sum(dim=0).clamp(max=1).float()
    labels = sample.gt_sem_seg.data[0]
    background = classes.index('background') if 'background' in classes else IGNORED_LABEL
    return ((labels != background) & (labels != IGNORED_LABEL)).float()


class Share(NamedTuple):
    """How one block's significance meets the objects."""

    ratio: float
    """Mean significance of a token on an object divided by that of one on the background."""
    finest_on_objects: float
    """Share of the tokens that the merge keeps finest that lie on objects."""
    area: float
    """Share of all tokens that lie on objects."""


def measure(model: nn.Module, dataset: BaseDataset, title: str) -> dict[str, Share]:
    """Over all images of a data set, for every hybrid-scale block by its name.

    Raises:
        ValueError: There is nothing to compare.
    """
    sums: dict[str, Tensor] = {}
    for i in track(range(len(dataset)), description=title):
        batch = pseudo_collate([dataset[i]])
        mask = object_mask(batch['data_samples'][0], dataset.metainfo['classes'])
        for stage, block, values in batch_maps(model, batch):
            on = F.adaptive_avg_pool2d(mask[None], values.shape[1:])
            lengths = token_allocation(values, stage)
            finest = (lengths == lengths.min()).float()
            parts = [values * on, values * (1 - on), finest * on, finest, on, 1 - on]
            name = f'stage {stage + 1}, block {block + 1}'
            sums[name] = sums.get(name, 0) + torch.stack([part.sum().double() for part in parts])
    shares = {}
    for name, values in sums.items():
        on_objects, on_background, finest_on, finest, area, rest = values.tolist()
        if not (area and rest and finest):
            raise ValueError(f'{name}: no object or no background in any image')
        shares[name] = Share(
            on_objects / area / (on_background / rest), finest_on / finest, area / (area + rest)
        )
    return shares


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure both models, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config', type=expanded, help='config file of a detector with masks or of a segmenter'
    )
    parser.add_argument('checkpoint', type=expanded, help='checkpoint of the whole model')
    parser.add_argument(
        '--data-root', type=expanded, help="folder of the data set, instead of the config's data_root"
    )
    args = parser.parse_args(argv)
    cfg = read_config(args.config, ('val',), args.data_root)
    try:
        trained = Predictor(args.config, args.checkpoint).model
        require_significance(getattr(trained, 'backbone', None))
    except (CheckpointError, DataError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    MMLogger.get_instance('mmengine', log_level='WARNING')  # or every initialised parameter is listed
    torch.manual_seed(0)
    untrained = revert_sync_batchnorm(MODELS.build(cfg.model))
    untrained.init_weights()
    untrained.to(next(trained.parameters()).device)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    try:
        before, after = measure(untrained, dataset, 'before'), measure(trained, dataset, 'after')
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error

    area = next(iter(after.values())).area
    table = Table(title=f'{len(dataset)} images, objects cover {area:.1%} of them', title_justify='left')
    for column in ('', 'ratio before', 'ratio after', 'finest tokens on objects before', 'after'):
        table.add_column(column)
    for name in after:
        shares = (before[name], after[name])
        table.add_row(
            name, *(f'{s.ratio:.2f}' for s in shares), *(f'{s.finest_on_objects:.1%}' for s in shares)
        )
    Console().print(table)


if __name__ == '__main__':
    main()
