"""A study's YAML file, and which runs are to be started, given those that are finished."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import NamedTuple

import yaml

from mmsgformer.data.corrupt import corruption_names
from mmsgformer.data.paths import expanded


class Run(NamedTuple):
    """One training of one backbone, and its test."""

    backbone: str
    learning_rate: float
    seed: int

    @property
    def folder(self) -> str:
        """Where it lies in the study's folder."""
        return f'{self.backbone}/lr{self.learning_rate:g}_seed{self.seed}'


class Job(NamedTuple):
    """One process: 'train', 'test' or 'corrupt', which tests under corruption."""

    run: Run
    task: str


class Study(NamedTuple):
    """What a YAML file says; docs/study.md, "A study of your own", has an example.

    Attributes:
        data_root: Folder of the data set.
        metric: Its name in the logs, more is better: chooses learning rates, and leads the table.
        backbones: Name -> config. The first is what the others are compared with.
        learning_rates: Those tried for each backbone, with the first `search_seeds` of the seeds.
        seeds: Every backbone's, at its best learning rate.
        search_seeds: How many seeds a learning rate is tried with.
        ablations: Name -> config, of variants of the first backbone: they have its learning rate.
        pretrained: Folder of another study with the same backbones; a run starts from the backbone that has
            its name and seed there. None: from scratch.
        options: Overrides of every config, for training and test, as of `--cfg-options`.
        corruptions: Names of `imagecorruptions`; the tested checkpoints are tested again with each, at
            severities 1 to 5.
        corrupt_every: On every how manyth test image.
        slots: How many runs at once. On a machine with GPUs, one has one GPU.
        threads: Of each run, on a CPU.
    """

    data_root: str
    metric: str
    backbones: dict[str, str]
    learning_rates: list[float]
    seeds: list[int]
    search_seeds: int = 1
    ablations: Mapping[str, str] = MappingProxyType({})
    pretrained: str | None = None
    options: Mapping[str, object] = MappingProxyType({})
    corruptions: Sequence[str] = ()
    corrupt_every: int = 1
    slots: int = 1
    threads: int = 1

    @property
    def configs(self) -> dict[str, str]:
        """Name -> config of all that is run."""
        return self.backbones | self.ablations

    @property
    def reference(self) -> str:
        """The backbone that the others are compared with."""
        return next(iter(self.backbones))


# Of the entries, as YAML gives them.
_TYPES = {
    **dict.fromkeys(('data_root', 'metric', 'pretrained'), str),
    **dict.fromkeys(('backbones', 'ablations', 'options'), dict),
    **dict.fromkeys(('learning_rates', 'seeds', 'corruptions'), list),
    **dict.fromkeys(('search_seeds', 'corrupt_every', 'slots', 'threads'), int),
}


def read_study(path: Path) -> Study:
    """Read and check a study's file. `~` and variables in paths are replaced.

    Raises:
        FileNotFoundError: The file, or a config that it names, does not exist.
        ImportError: There are `corruptions`, and their package is not installed.
        ValueError: An entry is missing, unknown or out of range.
    """
    entries = yaml.safe_load(path.read_text())
    if not isinstance(entries, dict):
        raise ValueError(f'{path}: a study is a mapping of {list(Study._fields)}')
    unknown = set(entries) - set(Study._fields)
    missing = set(Study._fields) - set(Study._field_defaults) - set(entries)
    if unknown or missing:
        raise ValueError(f'{path}: unknown entries: {sorted(unknown)}, missing: {sorted(missing)}')
    for key, value in list(entries.items()):
        if value is None and key in Study._field_defaults:  # nothing stands after the colon
            del entries[key]
        elif not isinstance(value, _TYPES[key]):
            raise ValueError(f'{path}: {key} must be of type {_TYPES[key].__name__}, got {value!r}')
    study = Study(**entries)
    for key in ('backbones', 'learning_rates', 'seeds'):
        if not getattr(study, key):
            raise ValueError(f'{path}: {key} is empty')
    for key in ('learning_rates', 'seeds'):
        values = getattr(study, key)
        kind = int if key == 'seeds' else float
        # YAML takes 1e-3 without a point for text.
        if not all(isinstance(value, (int, kind)) for value in values) or len(set(values)) < len(values):
            raise ValueError(f'{path}: {key} must be different numbers (1.0e-3, not 1e-3), got {values}')
    if not 1 <= study.search_seeds <= len(study.seeds):
        raise ValueError(f'{path}: search_seeds must be 1 to {len(study.seeds)}, got {study.search_seeds}')
    for key in ('slots', 'threads', 'corrupt_every'):
        if getattr(study, key) < 1:
            raise ValueError(f'{path}: {key} must be 1 or more')
    known = corruption_names('all') if study.corruptions else []
    if unknown := set(study.corruptions).difference(known):
        raise ValueError(f'{path}: unknown corruptions {sorted(unknown)}; there are {known}')
    if both := set(study.backbones) & set(study.ablations):
        raise ValueError(f'{path}: {sorted(both)} are both backbones and ablations')
    for name, config in study.configs.items():
        if not re.fullmatch(r'[\w.+-]+', str(name)):
            raise ValueError(f'{path}: {name!r} names a folder: letters, digits, ".", "+", "-", "_" alone')
        if not Path(expanded(str(config))).is_file():
            raise FileNotFoundError(f'{path}: the config {config} of {name} does not exist')
    return study._replace(
        data_root=expanded(study.data_root),
        pretrained=study.pretrained and expanded(study.pretrained),
        backbones={name: expanded(config) for name, config in study.backbones.items()},
        ablations={name: expanded(config) for name, config in study.ablations.items()},
    )


def search_runs(study: Study, backbone: str) -> list[Run]:
    """The runs that choose a backbone's learning rate."""
    seeds = study.seeds[: study.search_seeds]
    return [Run(backbone, rate, seed) for rate in study.learning_rates for seed in seeds]


def best_learning_rate(study: Study, backbone: str, held_out: Mapping[Run, float]) -> float | None:
    """The learning rate with the best mean on the held-out slice; None until all are tried.

    Of equal ones the first counts. An ablation has the reference's.
    """
    if backbone in study.ablations:
        backbone = study.reference
    runs = search_runs(study, backbone)
    if not all(run in held_out for run in runs):
        return None
    means = {
        rate: fmean(held_out[run] for run in runs if run.learning_rate == rate)
        for rate in study.learning_rates
    }
    return max(study.learning_rates, key=means.__getitem__)


def final_runs(study: Study, held_out: Mapping[Run, float]) -> list[Run]:
    """The runs that are tested: every seed at the best learning rate, as far as that is known."""
    rates = {name: best_learning_rate(study, name, held_out) for name in study.configs}
    return [Run(name, rate, seed) for name, rate in rates.items() if rate is not None for seed in study.seeds]


def known_runs(study: Study, held_out: Mapping[Run, float]) -> list[Run]:
    """All runs that are known to be needed, a search's first."""
    search = [run for name in study.backbones for run in search_runs(study, name)]
    return list(dict.fromkeys([*search, *final_runs(study, held_out)]))


def next_jobs(
    study: Study, held_out: Mapping[Run, float], tested: Collection[Run], corrupted: Collection[Run]
) -> list[Job]:
    """The jobs that can be started, most urgent first.

    Args:
        study: The study.
        held_out: The metric on the held-out slice of every run that is trained.
        tested: The runs that are tested.
        corrupted: Those that are tested under corruption too.
    """
    final = [run for run in final_runs(study, held_out) if run in held_out]
    tests = [Job(run, 'test') for run in final if run not in tested]
    if study.corruptions:
        tests += [Job(run, 'corrupt') for run in final if run in tested and run not in corrupted]
    trainings = [Job(run, 'train') for run in known_runs(study, held_out) if run not in held_out]
    return tests + trainings
