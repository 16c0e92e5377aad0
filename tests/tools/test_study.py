"""tools/study.py: a small study killed in the middle and started again ends as one that was not killed."""

import csv
import fcntl
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
VARY = ('seconds', 'memory_mb')


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
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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


def results(folder: Path) -> list[dict]:
    with (folder / 'results.csv').open() as file:
        return [{k: v for k, v in row.items() if k not in VARY} for row in csv.DictReader(file)]


def test_a_killed_study_goes_on_and_ends_as_one_that_was_not(study, tmp_path):
    whole = start(study, tmp_path / 'whole')
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    assert '| shallow | 0.001 | 2 |' in output

    folder = tmp_path / 'killed'
    killed = start(study, folder)
    # In the middle of the second run, after its first checkpoint.
    wait_for(lambda: (folder / 'ours' / 'lr0.001_seed1' / 'iter_1.pth').exists())
    processes = [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]
    for process in processes[::-1]:
        process.kill()
    psutil.wait_procs(processes[:-1])
    killed.communicate()
    finished = folder / 'ours' / 'lr0.001_seed0' / 'trained.json'
    assert not (folder / 'shallow').exists()
    times = finished.stat().st_mtime_ns

    again = start(study, folder)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert finished.stat().st_mtime_ns == times
    assert 'resuming from' in (folder / 'ours' / 'lr0.001_seed1' / 'train.log').read_text()
    assert results(folder) == results(tmp_path / 'whole')
    assert len(results(folder)) == 4


def test_ending_a_study_ends_its_runs(study, tmp_path):
    """SIGTERM and Ctrl-C; nothing goes on in the background and writes where the next study will."""
    process = start(study, tmp_path / 'out')
    wait_for(lambda: (tmp_path / 'out' / 'ours' / 'lr0.001_seed0' / 'train.log').exists())
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
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


def test_a_run_that_fails_is_named_and_the_others_go_on(study, tmp_path, run_tool):
    entries = yaml.safe_load(study.read_text())
    broken = tmp_path / 'broken.py'
    broken.write_text(f"_base_ = '{CONFIG}'\nmodel = dict(backbone=dict(arch='none'))\n")
    entries |= {'backbones': {'broken': str(broken), 'ours': CONFIG}, 'seeds': [0]}
    study.write_text(yaml.safe_dump(entries))
    result = run_tool('study.py', study, '--work-dir', tmp_path / 'out')
    assert result.returncode == 1
    assert 'error: training failed, see' in result.stdout
    assert "unknown arch 'none'" in (tmp_path / 'out/broken/lr0.001_seed0/train.log').read_text()
    assert (tmp_path / 'out/ours/lr0.001_seed0/tested.json').exists()
