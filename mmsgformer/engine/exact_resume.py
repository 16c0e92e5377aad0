"""A run that is interrupted and resumed computes, bit for bit, what it would have computed without a break.

MMEngine saves weights, optimizer, schedulers and moving averages. It loses randomness (the order of the data,
its augmentation, dropout and sampling within the model) and gradients that are being accumulated. The first
is no state here that could be lost: what a sample or an iteration draws follows from the run's seed and from
its place in the run alone. The second is saved.

tools/train.py puts these parts into every config (`enable_exact_resume`).
"""

import logging
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mmsgformer.data.errors import DataError
from mmsgformer.engine.custom_imports import import_mmsgformer

_ADVICE = 'tools/check_dataset.py lists all that is wrong with a data set'


class SeededIndex(NamedTuple):
    """A sample's index in its data set, and its place in the run (integers >= 0), which seeds it."""

    index: Any
    place: tuple[int, ...]


def seed_everything(*place: int) -> None:
    """Seed Python, NumPy and torch from a place in the run."""
    for_random, for_numpy, for_torch = np.random.SeedSequence(place).generate_state(3)
    random.seed(int(for_random))
    np.random.seed(for_numpy)
    torch.manual_seed(int(for_torch))


@DATASETS.register_module()
class PlaceSeededDataset(Dataset):
    """A data set whose random numbers for a sample follow from the sample's place in the run alone.

    Everything else of the inner data set is reached through this one. Samples are read one by one, since each
    is seeded and skipped by itself: a data set that reads batches alone (torch's `__getitems__`) is asked for
    batches of one.

    Args:
        dataset: The inner data set, or its config.
        skip_bad: Take another sample, drawn from the same place, for one that cannot be loaded.

    Raises:
        DataError: The data set cannot be built.
    """

    max_skips = 100  # in a row: then something else is wrong

    def __init__(self, dataset: Dataset | dict, skip_bad: bool = False) -> None:
        if isinstance(dataset, dict):
            name = dataset.get('ann_file') or dataset.get('data_prefix') or dataset['type']
            try:
                dataset = DATASETS.build(dataset)
            except Exception as error:  # the frameworks raise many kinds, and seldom name the file
                raise DataError(
                    f'the training data ({name}) cannot be listed: {error!r}. {_ADVICE}'
                ) from error
        # Which ones were skipped, over all workers.
        bad = torch.zeros(len(dataset), dtype=torch.bool).share_memory_() if skip_bad else None
        self.__dict__.update(dataset=dataset, bad=bad)  # past __setattr__

    def __getitem__(self, item: Any) -> Any:
        """The sample of a `SeededIndex` index; of a plain one as the inner data set gives it.

        Raises:
            DataError: It cannot be loaded.
        """
        if not isinstance(item, SeededIndex):
            return self._read(item)
        index = item.index
        for attempt in range(self.max_skips):
            seed_everything(*item.place, attempt)
            try:
                return self._read(index)
            except Exception as error:  # libraries of images raise many kinds
                problem = DataError(
                    f'sample {index} of the training data{self._files(index)} cannot be loaded: {error!r}. '
                    f'{_ADVICE}; tools/train.py --skip-bad-samples trains without such samples'
                )
                if self.bad is None:
                    raise problem from error
                if not self.bad[index]:
                    self.bad[index] = True
                    print_log(
                        f'skipped, {int(self.bad.sum())} now: sample {index}{self._files(index)}: {error!r}',
                        'current',
                        logging.WARNING,
                    )
                index = int(np.random.randint(len(self)))
        raise problem

    def __getitems__(self, items: list) -> list:
        """The samples of a batch. Without this, torch would take the inner data set's, past the seeding."""
        return [self[item] for item in items]

    def _read(self, index: Any) -> Any:
        """The inner data set's sample; `Dataset.__getitem__` is torch's placeholder, which only raises."""
        method = getattr(type(self.dataset), '__getitem__', Dataset.__getitem__)
        if method is Dataset.__getitem__ and hasattr(self.dataset, '__getitems__'):
            return self.dataset.__getitems__([index])[0]
        return self.dataset[index]

    def _files(self, index: Any) -> str:
        """The sample's files, for a message."""
        try:
            info = self.dataset.get_data_info(index)
            return f' ({", ".join(str(info[key]) for key in ("img_path", "seg_map_path") if info.get(key))})'
        except Exception:  # not every data set can tell
            return ''

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.dataset, name, value)


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler:
    """Batches of a sampler whose indices know their place, and of which the first can be left out.

    Yields nothing until `ExactResumeHook` starts it: MMEngine can ask for batches before it has read the
    seed that a resumed run had. An epoch without any batch is a `DataError`.

    Args:
        sampler: Where the indices come from.
        batch_size: Samples per batch.
        drop_last: Leave out the last batch if it is smaller.
        batch_sampler: Config of a batch sampler that makes the batches instead of torch's.
    """

    def __init__(
        self, sampler: Any, batch_size: int, drop_last: bool = False, batch_sampler: dict | None = None
    ) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        if batch_sampler is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            defaults = dict(sampler=sampler, batch_size=batch_size)
            self.batches = DATA_SAMPLERS.build(batch_sampler, default_args=defaults)
        self.seed: int | None = None
        self.epoch = 0
        self.num_skipped = 0

    def start(self, seed: int, epoch: int, num_skipped: int) -> None:
        """Begin with an epoch; the first batches, which can be those of several epochs, are left out."""
        self.seed, self.num_skipped = seed, num_skipped
        if hasattr(self.sampler, 'seed'):
            self.sampler.seed = seed
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another order."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        if self.seed is None:
            return
        number = -1
        # Endless samplers search for ever in nothing.
        for number, batch in enumerate(self.batches if len(self.sampler) else ()):
            if self.num_skipped > 0:
                self.num_skipped -= 1
                continue
            place = (self.seed, get_rank(), self.epoch, number)
            yield [SeededIndex(index, (*place, i)) for i, index in enumerate(batch)]
        if number < 0:
            raise DataError(
                f'the training data has {len(self.sampler)} samples for this process, not enough for one '
                f'batch of {self.batch_size}; lower train_dataloader.batch_size or leave out drop_last. '
                f'{_ADVICE}'
            )

    def __len__(self) -> int:
        return len(self.batches)


class EndlessBatches:
    """A data loader's batches, epoch after epoch, in the place of the iterator of MMEngine's loop.

    The loop of a resumed run first asks for all batches that were trained already, by `skip_iter` or, in
    older versions, one by one. The batch sampler has left them out, so nothing is loaded for these.
    """

    def __init__(self, dataloader: DataLoader, num_done: int) -> None:
        self.dataloader, self.num_done = dataloader, num_done
        self.batches: Iterator | None = None

    def skip_iter(self, num_iters: int) -> None:
        """They are left out already."""
        self.num_done = 0

    def __iter__(self) -> 'EndlessBatches':
        return self

    def __next__(self) -> Any:
        if self.num_done > 0:
            self.num_done -= 1
            return None
        if self.batches is None:
            self.batches = iter(self.dataloader)
        while True:
            try:
                return next(self.batches)
            except StopIteration:
                sampler = self.dataloader.batch_sampler
                sampler.set_epoch(sampler.epoch + 1)
                self.batches = iter(self.dataloader)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Starts the data where a resumed run stopped, seeds every iteration by its number, keeps gradients."""

    # Nothing comes between the seeding and the training step.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.gradients: list | None = None

    def before_train(self, runner: Runner) -> None:
        """Start the batch sampler, and go on with an unfinished sum of gradients."""
        loop, done = runner.train_loop, runner.iter
        sampler, seed = loop.dataloader.batch_sampler, runner.seed
        if (runner.cfg.get('randomness') or {}).get('diff_rank_seed'):
            seed -= get_rank()  # samplers divide one order among the processes
        if isinstance(loop, IterBasedTrainLoop):
            sampler.start(seed, epoch=0, num_skipped=done)
            jumps = getattr(loop, 'fast_forward_on_resume', False)  # then the loop does not ask
            loop.dataloader_iterator = EndlessBatches(loop.dataloader, num_done=0 if jumps else done)
        else:  # within an epoch too, if a checkpoint was saved there
            done_in_epoch = done - runner.epoch * len(loop.dataloader)
            if not 0 <= done_in_epoch <= len(loop.dataloader):  # another batch size than before
                done_in_epoch = 0
            sampler.start(seed, runner.epoch, num_skipped=done_in_epoch)
        if self.gradients is not None:
            for parameter, gradient in zip(runner.model.parameters(), self.gradients, strict=True):
                parameter.grad = gradient
            self.gradients = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the batch sampler, which MMEngine's hook passes over, the epoch."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            runner.train_loop.dataloader.batch_sampler.set_epoch(runner.epoch)

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Seed what the model draws in this iteration."""
        seed_everything(runner.seed, get_rank(), runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Say how many samples were skipped."""
        bad = getattr(runner.train_dataloader.dataset, 'bad', None)
        if bad is not None:
            runner.logger.info(f'{int(bad.sum())} of {len(bad)} training samples were skipped')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save gradients that are being accumulated, but not those of several processes: all differ."""
        gradients = [parameter.grad for parameter in runner.model.parameters()]
        if get_world_size() == 1 and any(gradient is not None for gradient in gradients):
            checkpoint['gradients'] = gradients

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the gradients until the model is there."""
        if runner._resume:
            self.gradients = checkpoint.get('gradients')


def enable_exact_resume(cfg: ConfigDict, skip_bad: bool = False) -> None:
    """Put the parts of this module into a training config, in place.

    Args:
        cfg: A config with a `train_dataloader`.
        skip_bad: Train without the samples that cannot be loaded.
    """
    import_mmsgformer(cfg)
    loader = cfg.train_dataloader
    if _is_enabled(cfg):
        loader.dataset.skip_bad = skip_bad
        return
    loader.batch_sampler = dict(
        type='ResumableBatchSampler',
        batch_sampler=loader.get('batch_sampler'),
        drop_last=loader.pop('drop_last', False),
    )
    loader.dataset = dict(type='PlaceSeededDataset', dataset=loader.dataset, skip_bad=skip_bad)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='ExactResumeHook')]


def disable_exact_resume(cfg: ConfigDict) -> None:
    """Take the parts of this module out of a training config again, in place."""
    if not _is_enabled(cfg):
        return
    loader = cfg.train_dataloader
    own = loader.batch_sampler
    loader.batch_sampler, loader.drop_last = own.batch_sampler, own.drop_last
    loader.dataset = loader.dataset.dataset
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook['type'] != 'ExactResumeHook']


def _is_enabled(cfg: ConfigDict) -> bool:
    """As in a config that an earlier run dumped."""
    return (cfg.train_dataloader.get('batch_sampler') or {}).get('type') == 'ResumableBatchSampler'


make_exact = enable_exact_resume  # the name that the docs gave it at first
