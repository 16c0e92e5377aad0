"""What a study found: a table of all runs, statistics of each backbone, a plot.

Statistics as in Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks" (MLSys 2021):
every source of randomness varies between runs, and beside means stands how often one backbone beats another.
"""

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt

RESAMPLES = 10_000


class Summary(NamedTuple):
    """A backbone's runs in numbers; `std`, `difference`, `interval`, `beats` are None where undefined.

    Attributes:
        mean, std: Of the metric; the sample's standard deviation.
        difference: Of the means, to the reference.
        interval: 95 % bootstrap interval of that difference, where both have several runs.
        beats: Probability that a run of it beats a run of the reference.
        corrupted: Mean under corruption, and what part that is of the clean images', where it was tested so.
    """

    backbone: str
    learning_rate: float
    runs: int
    mean: float
    std: float | None
    difference: float | None
    interval: tuple[float, float] | None
    beats: float | None
    corrupted: tuple[float, float] | None
    seconds: float


def bootstrap_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of mean(a) - mean(b), each resampled by itself; the same every time."""
    random = np.random.default_rng(0)
    means = [random.choice(values, (RESAMPLES, len(values))).mean(axis=1) for values in (a, b)]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return float(low), float(high)


def probability_of_beating(a: Sequence[float], b: Sequence[float]) -> float:
    """The part of all pairs in which a's is greater; ties count half (Mann-Whitney's U by the pairs)."""
    differences = np.subtract.outer(a, b)
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def summarise(rows: Sequence[Mapping], metric: str, reference: str) -> list[Summary]:
    """One summary per backbone that has tested runs, in the order of the rows.

    Args:
        rows: `backbone`, `learning_rate`, `seconds` and the metric of each tested run, and of those tested
            under corruption `corrupted/clean` and `corrupted/mean`.
        metric: The column.
        reference: The backbone that the others are compared with; it has no difference to itself.
    """
    groups: dict[str, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(row['backbone'], []).append(row)
    of_reference = [row[metric] for row in groups.get(reference, [])]
    summaries = []
    for backbone, group in groups.items():
        values = [row[metric] for row in group]
        again = [row for row in group if 'corrupted/mean' in row]
        corrupted = float(np.mean([row['corrupted/mean'] for row in again])) if again else 0.0
        clean = float(np.mean([row['corrupted/clean'] for row in again])) if again else 0.0
        compared = backbone != reference and bool(of_reference)
        repeated = min(len(values), len(of_reference)) > 1
        summaries.append(
            Summary(
                backbone,
                learning_rate=group[0]['learning_rate'],
                runs=len(values),
                mean=float(np.mean(values)),
                std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                difference=float(np.mean(values) - np.mean(of_reference)) if compared else None,
                interval=bootstrap_difference(values, of_reference) if compared and repeated else None,
                beats=probability_of_beating(values, of_reference) if compared else None,
                corrupted=(corrupted, corrupted / clean) if clean else None,
                seconds=float(np.mean([row['seconds'] for row in group])),
            )
        )
    return summaries


def to_markdown(summaries: Sequence[Summary], metric: str, reference: str, digits: int) -> str:
    """The summaries as a table."""
    robust = any(s.corrupted for s in summaries)
    lines = [
        f'| backbone | learning rate | runs | {metric} | difference to {reference} (95 %) '
        f'| beats {reference} ' + ('| corrupted | of clean ' if robust else '') + '| training, min |',
        '|---|' + '---:|' * (8 if robust else 6),
    ]
    for s in summaries:
        spread = '' if s.std is None else f' ± {s.std:.{digits}f}'
        difference = beats = corrupted = ''
        if s.difference is not None:
            difference = f'{s.difference:+.{digits}f}'
            if s.interval is not None:
                difference += ' ({:+.{digits}f} to {:+.{digits}f})'.format(*s.interval, digits=digits)
            beats = f'{s.beats:.2f}'
        if robust:
            corrupted = f'| {s.corrupted[0]:.{digits}f} | {s.corrupted[1]:.0%} ' if s.corrupted else '| | '
        lines.append(
            f'| {s.backbone} | {s.learning_rate:g} | {s.runs} | {s.mean:.{digits}f}{spread} '
            f'| {difference} | {beats} {corrupted}| {s.seconds / 60:.1f} |'
        )
    return '\n'.join(lines) + '\n'


def write_csv(rows: Sequence[Mapping], path: Path) -> None:
    """One line per row; the columns are those of any row, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def draw(rows: Sequence[Mapping], metric: str, path: Path) -> None:
    """One line per backbone: a dot for each run, a bar at their mean."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row['backbone'], []).append(row[metric])
    fig, ax = plt.subplots(figsize=(7, 0.5 * len(groups) + 1), layout='constrained')
    for y, values in enumerate(groups.values()):
        ax.plot(values, [y] * len(values), 'o', color='#0072B2', alpha=0.7)
        ax.plot([np.mean(values)], [y], '|', color='black', markersize=18, markeredgewidth=2)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set(xlabel=metric, ylim=(len(groups) - 0.5, -0.5))
    ax.grid(axis='x', alpha=0.3)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def draw_costs(
    rows: Sequence[Mapping], metrics: Sequence[str], gmacs: Mapping[str, float], path: Path, ylabel: str
) -> None:
    """What a backbone costs and what it reaches: its runs' mean over its GMACs, with their range as a bar.

    Args:
        rows: As of `summarise`, or as `csv.DictReader` reads them from results.csv; those without the first
            metric were not tested.
        metrics: One column or two, as of the same images clean and corrupted: filled and hollow.
        gmacs: Of each backbone.
        path: File to write.
        ylabel: What the metrics are.

    Raises:
        ValueError: The GMACs of a tested backbone are missing.
    """
    tested = [row for row in rows if row.get(metrics[0]) not in (None, '')]
    backbones = list(dict.fromkeys(row['backbone'] for row in tested))
    if missing := [name for name in backbones if name not in gmacs]:
        raise ValueError(f'there are no GMACs of {", ".join(missing)}')
    fig, ax = plt.subplots(figsize=(7.5, 4.5), layout='constrained')
    colors = itertools.cycle([*matplotlib.colormaps['tab10'].colors, 'black'])
    for marker, color, name in zip(itertools.cycle('osD^vPX'), colors, backbones, strict=False):
        for metric, fill, label in zip(metrics, (color, 'white'), (name, None), strict=False):
            values = [float(row[metric]) for row in tested if row['backbone'] == name]
            mean = np.mean(values)
            spread = [[mean - min(values)], [max(values) - mean]]
            look = {'marker': marker, 'color': color, 'markerfacecolor': fill, 'capsize': 3, 'linestyle': ''}
            ax.errorbar(gmacs[name], mean, yerr=spread, label=label, **look)
    ax.set(xlabel='GMACs of the backbone', ylabel=ylabel)
    ax.grid(alpha=0.3)
    fig.legend(loc='outside right center', frameon=False)
    fig.savefig(path, dpi=120)
    plt.close(fig)
