"""A study's file and plan: what is refused, and what is run when."""

import pytest
import yaml

from mmsgformer.study.plan import Job, Run, Study, best_learning_rate, final_runs, next_jobs, read_study

STUDY = Study(
    data_root='data',
    metric='mIoU',
    backbones={'A': 'a.py', 'B': 'b.py'},
    learning_rates=[0.1, 0.2],
    seeds=[0, 1, 2],
    ablations={'A-random': 'c.py'},
)


def test_a_whole_study_runs_everything_once():
    """From nothing to the end, one job at a time: the search, all seeds at the best rate, their tests."""
    scores = {('A', 0.1): 60, ('A', 0.2): 70, ('B', 0.1): 50, ('B', 0.2): 40, ('A-random', 0.2): 65}
    study = STUDY._replace(corruptions=['fog'])
    held_out, tested, corrupted, started = {}, [], [], []
    while jobs := next_jobs(study, held_out, tested, corrupted):
        job = jobs[0]
        started.append(job)
        if job.task == 'train':
            held_out[job.run] = scores[job.run[:2]] + job.run.seed
        elif job.task == 'test':
            tested.append(job.run)
        else:
            assert job.run in tested
            corrupted.append(job.run)
    assert len(set(started)) == len(started)
    best = {'A': 0.2, 'B': 0.1, 'A-random': 0.2}
    finals = {Run(name, rate, seed) for name, rate in best.items() for seed in STUDY.seeds}
    assert {job.run for job in started if job.task == 'train'} == finals | {
        Run('A', 0.1, 0),
        Run('B', 0.2, 0),
    }
    assert sorted(tested) == sorted(corrupted) == sorted(finals)


def test_without_corruptions_a_tested_run_is_done():
    held_out = {Run(name, rate, seed): rate for name in 'AB' for rate in (0.1, 0.2) for seed in STUDY.seeds}
    held_out |= {Run('A-random', 0.2, seed): 1.0 for seed in STUDY.seeds}
    assert next_jobs(STUDY, held_out, final_runs(STUDY, held_out), []) == []


def test_nothing_is_tested_before_its_learning_rate_is_chosen():
    """The test split is not looked at for the runs of the search that lose."""
    held_out = {Run('A', 0.1, 0): 60.0}
    assert final_runs(STUDY, held_out) == []
    assert {job.task for job in next_jobs(STUDY, held_out, [], [])} == {'train'}
    held_out[Run('A', 0.2, 0)] = 50.0
    assert next_jobs(STUDY, held_out, [], [])[0] == Job(Run('A', 0.1, 0), 'test')


def test_learning_rates_are_compared_by_their_means_and_ties_go_to_the_first():
    study = STUDY._replace(search_seeds=2)
    held_out = {Run('B', 0.1, 0): 1.0, Run('B', 0.1, 1): 4.0, Run('B', 0.2, 0): 3.0}
    assert best_learning_rate(study, 'B', held_out) is None
    assert best_learning_rate(study, 'B', held_out | {Run('B', 0.2, 1): 3.0}) == 0.2
    assert best_learning_rate(study, 'B', held_out | {Run('B', 0.2, 1): 2.0}) == 0.1


GOOD = {'data_root': '$HOME/data', 'metric': 'mIoU', 'learning_rates': [1.0e-3], 'seeds': [0, 1]}


@pytest.fixture
def write(tmp_path):
    (tmp_path / 'a.py').touch()

    def write(**entries):
        path = tmp_path / 'study.yml'
        entries = {'backbones': {'A': str(tmp_path / 'a.py')}} | GOOD | entries
        path.write_text(yaml.safe_dump({key: value for key, value in entries.items() if value is not None}))
        return path

    return write


def test_a_study_is_read(write, monkeypatch):
    monkeypatch.setenv('HOME', '/home/somebody')
    path = write(slots=2)
    monkeypatch.setenv('CONFIGS', str(path.parent))
    path.write_text(path.read_text().replace(f'{path.parent}/', '$CONFIGS/') + 'options:\ncorruptions:\n')
    study = read_study(path)
    assert (study.data_root, study.slots, study.reference) == ('/home/somebody/data', 2, 'A')
    assert study.configs == {'A': str(path.parent / 'a.py')}
    assert (dict(study.options), list(study.corruptions)) == ({}, [])


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        ({'metric': None, 'size': 3}, r"unknown entries: \['size'\], missing: \['metric'\]"),
        ({'seeds': []}, 'seeds is empty'),
        ({'seeds': 3}, 'seeds must be of type list, got 3'),
        ({'slots': 'two'}, "slots must be of type int, got 'two'"),
        ({'backbones': ['a.py']}, r"backbones must be of type dict, got \['a\.py'\]"),
        ({'seeds': [1, 1]}, 'seeds must be different numbers'),
        ({'learning_rates': ['1e-3']}, r'learning_rates must be different numbers \(1.0e-3, not 1e-3\)'),
        ({'search_seeds': 3}, 'search_seeds must be 1 to 2, got 3'),
        ({'slots': 0}, 'slots must be 1 or more'),
        ({'corruptions': ['fog', 'haze']}, r"unknown corruptions \['haze'\]; there are"),
        ({'backbones': {'A/B': 'a.py'}}, "'A/B' names a folder"),
        ({'ablations': {'A': 'a.py'}}, r"\['A'\] are both backbones and ablations"),
    ],
)
def test_what_is_wrong_with_a_study_is_named(write, entries, message):
    with pytest.raises(ValueError, match=message):
        read_study(write(**entries))


def test_a_missing_config_is_named(write):
    with pytest.raises(FileNotFoundError, match=r'the config nowhere\.py of B does not exist'):
        read_study(write(backbones={'B': 'nowhere.py'}))
