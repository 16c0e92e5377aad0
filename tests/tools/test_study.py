"""tools/study.py: a small study killed in the middle and started again ends as one that was not killed."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/demo/sgformer-tiny_upernet_shapes.py')
SMALL = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 1,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'test_dataloader.num_workers': 0,
    'train_dataloader.dataset.indices': 4,
    'val_dataloader.dataset.indices': 1,
    'test_dataloader.dataset.indices': 2,
    'model.decode_head.channels': 16,
    'model.auxiliary_head.channels': 16,
}


@pytest.fixture
def study(tmp_path, shapes):
    """A study of two backbones: the demo's, and a shallower one."""
    other = tmp_path / 'shallow.py'
    other.write_text(
        f"_base_ = '{CONFIG}'\nmodel = dict(backbone=dict(arch=dict(depths=[1, 1, 1, 1], _delete_=True,"
        'embed_dims=[32, 64, 128, 256], num_heads=[2, 4, 8, 16])))\n'
    )
    entries = {
        'data_root': str(shapes),
        'metric': 'mIoU',
        'backbones': {'ours': CONFIG, 'shallow': str(other)},
        'learning_rates': [0.001],
        'seeds': [0, 1],
        'options': SMALL,
    }
    path = tmp_path / 'study.yml'
    path.write_text(yaml.safe_dump(entries))
    return path


def start(study: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, 'tools/study.py', str(study), '--work-dir', str(folder)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # In a shell's background job, Ctrl-C is ignored, by what it starts too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_killed_study_goes_on_and_ends_as_if_it_was_not_killed(study, shapes, tmp_path, run_tool):
    """Its numbers are those of the same runs by tools/train.py and tools/test.py, one after the other."""
    folder = tmp_path / 'out'
    killed = start(study, folder)
    # In the middle of the third run, after its first checkpoint; the two of the search are done.
    interrupted = folder / 'ours' / 'lr0.001_seed1'
    wait_for(lambda: (interrupted / 'iter_1.pth').exists())
    processes = [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]
    for process in processes[::-1]:
        process.kill()
    psutil.wait_procs(processes[:-1])
    killed.communicate()
    finished = folder / 'ours' / 'lr0.001_seed0' / 'trained.json'
    written = finished.stat().st_mtime_ns
    assert not (folder / 'shallow' / 'lr0.001_seed1').exists()

    again = start(study, folder)
    output, _ = again.communicate(timeout=400)
    assert again.returncode == 0, output
    assert '| shallow | 0.001 | 2 |' in output
    assert finished.stat().st_mtime_ns == written
    assert 'resuming from' in (interrupted / 'train.log').read_text()
    assert (folder / 'results.png').exists()

    with (folder / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['backbone'], row['seed']) for row in rows] == [
        (backbone, seed) for backbone in ('ours', 'shallow') for seed in '01'
    ]
    options = [f'{key}={value}' for key, value in SMALL.items()]
    configs = {'ours': CONFIG, 'shallow': tmp_path / 'shallow.py'}
    for row in rows[1:3]:  # the interrupted one, and one that was not
        config, work_dir = configs[row['backbone']], tmp_path / row['backbone'] / row['seed']
        common = ['--data-root', shapes, '--cfg-options', *options, f'randomness.seed={row["seed"]}']
        trained = run_tool('train.py', config, '--work-dir', work_dir, *common)
        assert trained.returncode == 0, trained.stderr
        tested = run_tool(
            'test.py', config, work_dir / 'iter_2.pth', '--work-dir', work_dir / 'test', *common
        )
        assert tested.returncode == 0, tested.stderr
        (log,) = work_dir.glob('*/vis_data/scalars.json')
        (report,) = (work_dir / 'test').glob('*/*.json')
        held_out, test = json.loads(log.read_text().splitlines()[-1]), json.loads(report.read_text())
        for metric in ('mIoU', 'aAcc'):
            assert float(row[f'held_out/{metric}']) == held_out[metric]
            assert float(row[f'test/{metric}']) == test[metric]


def test_ending_a_study_ends_its_runs(study, tmp_path):
    """SIGTERM and Ctrl-C; nothing goes on in the background and writes where the next study will."""
    process = start(study, tmp_path / 'out')
    log = tmp_path / 'out' / 'ours' / 'lr0.001_seed0' / 'train.log'
    wait_for(lambda: log.exists() and log.stat().st_size)  # the run is under way
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert 'the same command goes on' in output
    assert not child.is_running()


def test_a_run_that_an_earlier_study_left_behind_is_not_disturbed(study, tmp_path, run_tool):
    folder = tmp_path / 'out'
    log = folder / 'ours' / 'lr0.001_seed0' / 'train.log'
    log.parent.mkdir(parents=True)
    with log.open('ab') as file:
        holder = subprocess.Popen(
            [sys.executable, '-c', 'import fcntl, time; fcntl.flock(1, fcntl.LOCK_EX); time.sleep(60)'],
            stdout=file,
        )
    try:
        wait_for(lambda: is_locked(log))
        result = run_tool('study.py', study, '--work-dir', folder)
        assert result.returncode == 1
        assert 'is being written by a process of this study that was started before' in result.stderr
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()


def test_a_run_that_fails_is_named(study, tmp_path, run_tool):
    entries = yaml.safe_load(study.read_text())
    broken = tmp_path / 'broken.py'
    broken.write_text(f"_base_ = '{CONFIG}'\nmodel = dict(backbone=dict(arch='none'))\n")
    study.write_text(yaml.safe_dump(entries | {'backbones': {'broken': str(broken)}}))
    result = run_tool('study.py', study, '--work-dir', tmp_path / 'out')
    assert result.returncode == 1
    assert 'error: training failed, see' in result.stdout
    assert "unknown arch 'none'" in (tmp_path / 'out/broken/lr0.001_seed0/train.log').read_text()


@pytest.mark.slow
def test_a_run_killed_before_its_validation_trains_its_last_iterations_again(
    study, shapes, tmp_path, run_tool
):
    """MMEngine would resume it, find nothing left to do and never validate."""
    entries = yaml.safe_load(study.read_text())
    study.write_text(yaml.safe_dump(entries | {'backbones': {'ours': CONFIG}, 'seeds': [0]}))
    work_dir = tmp_path / 'out/ours/lr0.001_seed0'
    options = [f'{key}={value}' for key, value in SMALL.items()]
    common = ['--data-root', shapes, '--work-dir', work_dir, '--cfg-options', *options, 'randomness.seed=0']
    trained = run_tool('train.py', CONFIG, *common)
    assert trained.returncode == 0, trained.stderr
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    *lines, validation = log.read_text().splitlines(keepends=True)
    log.write_text(''.join(lines))
    result = run_tool('study.py', study, '--work-dir', tmp_path / 'out')
    assert result.returncode == 0, result.stderr
    record = json.loads((work_dir / 'trained.json').read_text())
    assert record['held_out']['mIoU'] == json.loads(validation)['mIoU']
