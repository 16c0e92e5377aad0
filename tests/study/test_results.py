"""A study's statistics against SciPy's and values known by hand, and the files that are written."""

import csv

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from mmsgformer.study.results import (
    bootstrap_difference,
    draw,
    draw_costs,
    probability_of_beating,
    summarise,
    to_markdown,
    write_csv,
)

A, B = [61.0, 62.5, 63.0, 60.5, 64.0], [60.0, 62.5, 59.0, 58.5, 61.0]


def test_the_bootstrap_interval_is_scipys():
    expected = stats.bootstrap(
        (A, B),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        n_resamples=100_000,
        method='percentile',
        random_state=1,
    ).confidence_interval
    assert bootstrap_difference(A, B) == pytest.approx(tuple(expected), abs=0.11)  # they are tenths
    assert bootstrap_difference(A, B) == bootstrap_difference(A, B)


def test_the_interval_of_many_runs_is_the_normal_one():
    random = np.random.default_rng(0)
    a, b = random.normal(3, 1, 400), random.normal(0, 2, 400)
    error = np.sqrt(a.var() / 400 + b.var() / 400)
    low, high = bootstrap_difference(a, b)
    middle = a.mean() - b.mean()
    assert [low, high] == pytest.approx([middle - 1.96 * error, middle + 1.96 * error], abs=0.1 * error)


def test_runs_that_are_all_equal_have_an_interval_without_width():
    assert bootstrap_difference([2.0, 2.0, 2.0], [1.5, 1.5, 1.5]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ('a', 'b', 'expected'),
    [([2, 3], [0, 1], 1.0), ([0], [1], 0.0), ([1, 1], [1], 0.5), ([1, 3], [2, 0], 0.75)],
)
def test_the_probability_of_beating_counts_pairs(a, b, expected):
    assert probability_of_beating(a, b) == expected


def test_the_probability_of_beating_is_mann_whitneys():
    expected = stats.mannwhitneyu(A, B).statistic / (len(A) * len(B))
    assert probability_of_beating(A, B) == pytest.approx(expected, abs=1e-12)


def rows():
    for backbone, values in {'ours': A, 'theirs': B, 'single': [50.0]}.items():
        for seed, value in enumerate(values):
            yield {'backbone': backbone, 'learning_rate': 1e-3, 'seed': seed, 'seconds': 90.0, 'mIoU': value}


def test_the_table_has_every_number():
    summaries = summarise(list(rows()), 'mIoU', 'ours')
    ours, theirs, single = to_markdown(summaries, 'mIoU', 'ours', digits=1).splitlines()[2:]
    assert ours == '| ours | 0.001 | 5 | 62.2 ± 1.4 |  |  | 1.5 |'
    assert theirs.startswith('| theirs | 0.001 | 5 | 60.2 ± 1.6 | -2.0 (')
    assert theirs.endswith('| 0.16 | 1.5 |')
    assert single == '| single | 0.001 | 1 | 50.0 | -12.2 | 0.00 | 1.5 |'  # one run has no interval
    low, high = summaries[1].interval
    assert low < summaries[1].difference < high


def test_what_was_tested_under_corruption_has_two_columns_more():
    found = list(rows())
    for row in found:
        if row['backbone'] == 'ours':
            row |= {'corrupted/mean': row['mIoU'] / 2, 'corrupted/clean': row['mIoU']}
    table = to_markdown(summarise(found, 'mIoU', 'ours'), 'mIoU', 'ours', digits=1)
    header, _, ours, *_, single = table.splitlines()
    assert header.endswith('| corrupted | of clean | training, min |')
    assert ours.endswith('| 31.1 | 50% | 1.5 |')
    assert single.endswith('| 0.00 | | | 1.5 |')
    assert len({line.count('|') for line in (header, ours, single)}) == 1


def test_without_the_references_runs_nothing_is_compared():
    summaries = summarise([row for row in rows() if row['backbone'] != 'ours'], 'mIoU', 'ours')
    assert [(s.backbone, s.difference) for s in summaries] == [('theirs', None), ('single', None)]
    assert to_markdown(summaries, 'mIoU', 'ours', digits=1).count('\n') == 4


def test_files(tmp_path):
    write_csv([*rows(), {'backbone': 'later', 'aAcc': 1.0}], tmp_path / 'results.csv')
    with (tmp_path / 'results.csv').open() as file:
        read = list(csv.DictReader(file))
    assert [row['mIoU'] for row in read[:2]] == ['61.0', '62.5']
    assert (read[-1]['backbone'], read[-1]['mIoU'], read[-1]['aAcc']) == ('later', '', '1.0')
    draw(list(rows()), 'mIoU', tmp_path / 'results.png')
    assert (tmp_path / 'results.png').stat().st_size > 5000


def test_costs_and_what_they_buy(tmp_path, monkeypatch):
    """Every backbone's mean over its GMACs, with the range of its runs; of rows as a file has them, too."""
    write_csv([{**row, 'corrupted': row['mIoU'] / 2} for row in rows()], tmp_path / 'results.csv')
    with (tmp_path / 'results.csv').open() as file:
        read = [*csv.DictReader(file), {'backbone': 'untested', 'mIoU': ''}]
    kept = []
    monkeypatch.setattr(plt, 'close', kept.append)
    gmacs = {'ours': 1.0, 'theirs': 2.0, 'single': 1.5}
    draw_costs(read, ['mIoU', 'corrupted'], gmacs, tmp_path / 'costs.png', 'mIoU')
    monkeypatch.undo()
    (figure,) = kept
    (ax,) = figure.axes
    points = [container[0].get_xydata()[0] for container in ax.containers]
    means = [
        (gmacs[name], np.mean(values)) for name, values in [('ours', A), ('theirs', B), ('single', [50.0])]
    ]
    expected = [(x, mean / part) for x, mean in means for part in (1, 2)]
    np.testing.assert_allclose(points, expected)
    ranges = [np.ptp(container[2][0].get_segments()[0][:, 1]) for container in ax.containers]
    np.testing.assert_allclose(ranges, [np.ptp(v) / part for v in (A, B, [50.0]) for part in (1, 2)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(gmacs)
    plt.close(figure)
    with pytest.raises(ValueError, match='no GMACs of theirs'):
        draw_costs(read, ['mIoU'], {'ours': 1.0, 'single': 1.5}, tmp_path / 'costs.png', 'mIoU')
