"""What a study starts, and what it reads from runs' folders; tests/tools/test_study.py runs whole studies."""

import itertools
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch

from mmsgformer.study import run
from mmsgformer.study.plan import Job, Run, Study, read_study
from mmsgformer.study.run import StudyError, command, run_study, training_record, write_costs

ROOT = Path(__file__).parents[2]
RUN = Run('ours', 1e-3, 2)


def make_study(**entries) -> Study:
    study = Study(
        data_root='data',
        metric='mIoU',
        backbones={'ours': 'ours.py'},
        learning_rates=[1e-3],
        seeds=[2],
        options={'train_cfg.max_iters': 5},
    )
    return study._replace(**entries)


def options_of(line: list[str]) -> dict[str, str]:
    return dict(option.split('=', 1) for option in line[line.index('--cfg-options') + 1 :])


def test_a_training_is_tools_train_with_the_runs_rate_and_seed(tmp_path):
    line = command(make_study(), tmp_path, Job(RUN, 'train'))
    assert Path(line[1]).parts[-2:] == ('tools', 'train.py')
    assert line[2:6] == ['ours.py', '--work-dir', str(tmp_path / 'ours/lr0.001_seed2'), '--resume']
    assert options_of(line) == {
        'optim_wrapper.optimizer.lr': '0.001',
        'randomness.seed': '2',
        'train_cfg.max_iters': '5',
    }


def test_a_pretrained_run_starts_from_the_same_backbone_and_seed(tmp_path):
    """Of the runs there, the one that was tested has the learning rate that was chosen."""
    for rate, tested in ((1e-2, False), (1e-3, True)):
        other = tmp_path / 'first' / Run('ours', rate, 2).folder
        other.mkdir(parents=True)
        torch.save({'state_dict': {}, 'meta': {'iter': 7}}, other / 'iter_7.pth')
        if tested:
            (other / 'tested.json').touch()
    study = make_study(pretrained=str(tmp_path / 'first'))
    options = options_of(command(study, tmp_path, Job(RUN, 'train')))
    assert options['model.backbone.init_cfg.type'] == 'Pretrained'
    assert options['model.backbone.init_cfg.checkpoint'] == str(other / 'iter_7.pth')
    with pytest.raises(StudyError, match='no tested run of ours with seed 3 to start from: run that study'):
        command(study, tmp_path, Job(RUN._replace(seed=3), 'train'))


def test_a_checkpoint_that_is_gone_is_named(tmp_path):
    (tmp_path / RUN.folder).mkdir(parents=True)
    with pytest.raises(StudyError, match='was trained, but its checkpoint is gone'):
        command(make_study(), tmp_path, Job(RUN, 'test'))


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """The logs of a run that was killed after iteration 4, in the middle of a line, and resumed after 2."""
    first = [{'loss': 1.0, 'time': 1.0, 'iter': i, 'memory': 900} for i in (1, 2, 3, 4)]
    second = [{'loss': 1.0, 'time': 2.0, 'iter': i, 'memory': 500} for i in (3, 4, 5, 6)]
    second.append({'mIoU': 40.0, 'aAcc': 80.0, 'data_time': 0.1, 'time': 0.2, 'step': 6})
    for name, entries in {'20260101_000000': first, '20260101_000100': second}.items():
        (tmp_path / name / 'vis_data').mkdir(parents=True)
        text = '\n'.join(map(json.dumps, entries))
        (tmp_path / name / 'vis_data/scalars.json').write_text(text + '\n' + '{"loss": 1')
    return tmp_path


def test_what_an_interrupted_run_logged_twice_counts_once(interrupted):
    record = training_record(interrupted, 'mIoU')  # iterations of 1, 1, 2, 2, 2, 2 s
    assert record == {'held_out': {'mIoU': 40.0, 'aAcc': 80.0}, 'seconds': 12.0, 'memory_mb': 900}


def test_a_metric_that_nobody_logged_is_named(interrupted):
    with pytest.raises(StudyError, match='no validation logged mAP; correct `metric` in the study'):
        training_record(interrupted, 'mAP')


def test_costs_are_those_of_the_backbones(tmp_path, monkeypatch):
    """As docs/study.md has them; clean and corrupted beside them, of the runs that were tested."""
    study = read_study(ROOT / 'configs' / 'studies' / 'camvid.yml')
    folder = tmp_path / 'camvid'
    shutil.copytree(ROOT / 'docs' / 'results' / 'camvid', folder)
    monkeypatch.chdir(ROOT)
    with mock.patch.object(run, 'draw_costs') as drawn:
        write_costs(study, folder, (256, 256))
    rows, metrics, gmacs, path, label = drawn.call_args.args
    tested = {(row['backbone'], row['seed']) for row in rows}
    assert tested == set(itertools.product(study.configs, (0, 1, 2)))
    assert all(metric in row for row in rows for metric in metrics)
    published = {'SG-Former': 0.832, 'Swin': 0.858, 'ConvNeXt': 0.871, 'ResNet': 0.778}
    assert {name: gmacs[name] for name in published} == pytest.approx(published, abs=6e-4)
    assert (path, label) == (folder / 'costs.png', 'mIoU, clean (filled) and corrupted (hollow)')


@pytest.mark.parametrize('folder', sorted((ROOT / 'docs' / 'results').iterdir()), ids=lambda path: path.name)
def test_published_tables_are_drawn_again_from_their_runs(folder, tmp_path, monkeypatch):
    """Nothing is trained, since all is there; docs/results.md has the same tables."""
    monkeypatch.setattr(run.subprocess, 'Popen', lambda *_, **__: pytest.fail('a run is missing'))
    monkeypatch.chdir(ROOT)
    again = tmp_path / folder.name
    shutil.copytree(folder, again)
    published = {name: (folder / name).read_text() for name in ('results.md', 'results.csv')}
    for name in published:
        (again / name).unlink()
    assert run_study(read_study(ROOT / 'configs' / 'studies' / f'{folder.name}.yml'), again) == []
    assert {name: (again / name).read_text() for name in published} == published
    assert published['results.md'] in (ROOT / 'docs' / 'results.md').read_text()
