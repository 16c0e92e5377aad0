"""tools/train.py, tools/test.py and their launchers, run as a user would run them."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from older_torch import NEEDS_SAFE_READING

ROOT = Path(__file__).parents[2]
DETECTOR = 'configs/demo/mask-rcnn_sgformer-tiny_fpn_shapes.py'
SEGMENTER = 'configs/demo/sgformer-tiny_upernet_shapes.py'
SHORT = {
    DETECTOR: ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1'],
    SEGMENTER: ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.logger.interval=1'],
}
LONGER = {DETECTOR: 'train_cfg.max_epochs=2', SEGMENTER: 'train_cfg.max_iters=4'}
ACCUMULATING = ['--cfg-options', 'auto_scale_lr.base_batch_size=16', 'optim_wrapper.accumulative_counts=2']
METRIC = {DETECTOR: 'coco/bbox_mAP_50', SEGMENTER: 'mIoU'}


VALIDATION = {
    DETECTOR: {f'val2017/{number:06d}.jpg.png' for number in range(1, 5)},
    SEGMENTER: {f'images/validation/{number:06d}.jpg.png' for number in range(1, 5)},
}


def pictures_in(folder: Path) -> set[str]:
    """The names of all pictures, with the folders that they are in."""
    return {str(path.relative_to(folder)) for path in folder.rglob('*.png')}


def scalars(work_dir: Path) -> list[dict]:
    """All entries that runs in this folder logged, oldest run first."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTER])
def test_train_resume_and_test(run_tool, config, shapes, tmp_path):
    """Training writes checkpoints and metrics, resuming goes on from them, testing reads them."""
    common = ['--data-root', shapes, '--work-dir', tmp_path]
    first = run_tool('train.py', config, *common, '--cfg-options', *SHORT[config])
    assert first.returncode == 0, first.stderr
    assert METRIC[config] in scalars(tmp_path)[-1]
    iterations = [entry['iter'] for entry in scalars(tmp_path) if 'loss' in entry]
    assert iterations == [1, 2]

    options = [*SHORT[config][1:], LONGER[config]]
    second = run_tool('train.py', config, *common, '--resume', '--cfg-options', *options)
    assert second.returncode == 0, second.stderr
    iterations = [entry['iter'] for entry in scalars(tmp_path) if 'loss' in entry]
    assert iterations == [1, 2, 3, 4]

    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    show, out = tmp_path / 'pictures', tmp_path / 'predictions.pkl'
    tested = run_tool('test.py', config, checkpoint, *common, '--show-dir', show, '--out', out)
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads(max(tmp_path.glob('*/*.json'), key=os.path.getmtime).read_text())
    assert METRIC[config] in metrics
    assert out.exists()
    assert pictures_in(show) == VALIDATION[config]


@pytest.mark.parametrize('config', [pytest.param(DETECTOR, marks=pytest.mark.slow), SEGMENTER])
def test_two_processes_train_and_test_on_cpu(run_in_a_process, config, shapes, tmp_path, free_port):
    common = ['--data-root', shapes, '--work-dir', tmp_path]
    options = ['--cfg-options', *SHORT[config], 'train_dataloader.batch_size=4']
    on_cpu = {'PORT': free_port(), 'CUDA_VISIBLE_DEVICES': ''}
    trained = run_in_a_process('dist_train.sh', config, 2, *common, '--auto-scale-lr', *options, **on_cpu)
    assert trained.returncode == 0, trained.stderr
    # 8 images per step, half of what the recipes assume.
    assert 'Scaling the original LR by 0.5.' in trained.stdout
    assert METRIC[config] in scalars(tmp_path)[-1]
    # 16 images in two processes of 4 images each: two iterations.
    assert [entry['iter'] for entry in scalars(tmp_path) if 'loss' in entry] == [1, 2]
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    show = ['--show-dir', tmp_path / 'pictures']
    tested = run_in_a_process('dist_test.sh', config, checkpoint, 2, *common, *show, **on_cpu)
    assert tested.returncode == 0, tested.stderr
    assert pictures_in(tmp_path / 'pictures') == VALIDATION[config]  # of both processes


@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_test.sh'])
@pytest.mark.parametrize('gpus_per_node', [0, 4])
def test_slurm_scripts_start_ordinary_distributed_runs(
    run_in_a_process, script, gpus_per_node, shapes, tmp_path
):
    """A dry run: a stand-in for srun notes its arguments and runs one task with SLURM's variables."""
    for name, body in {
        'srun': 'printf "%s\\n" "$@" >"$NOTES"; while [ "$1" != bash ]; do shift; done; exec "$@"',
        'scontrol': 'echo localhost; echo node2',
        'fake_python': 'printf "%s\\n" "$@"; env | grep -E "^(RANK|WORLD_SIZE|LOCAL_RANK|MASTER)"',
    }.items():
        program = tmp_path / name
        program.write_text(f'#!/usr/bin/env bash\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    environment = {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'NOTES': str(tmp_path / 'notes'),
        'PYTHON': str(tmp_path / 'fake_python'),
        'GPUS': '8',
        'GPUS_PER_NODE': str(gpus_per_node),
        'SRUN_ARGS': '--time=1:00:00 --exclusive',
        'SLURM_PROCID': '5',
        'SLURM_NTASKS': '8',
        'SLURM_LOCALID': '1',
        'SLURM_JOB_ID': '41234',
        'SLURM_JOB_NODELIST': 'node[1-2]',
    }
    result = run_in_a_process(
        script, 'gpu', 'my job', SEGMENTER, tmp_path / 'x', '--cfg-options', 'a="[1, 2]"', **environment
    )
    assert result.returncode == 0, result.stderr
    notes = (tmp_path / 'notes').read_text().splitlines()
    assert {'--partition=gpu', '--job-name=my job', '--ntasks=8', '--time=1:00:00', '--exclusive'} <= set(
        notes
    )
    assert ('--gres=gpu:4' in notes) == ('--ntasks-per-node=4' in notes) == (gpus_per_node == 4)
    lines = result.stdout.splitlines()
    assert {'RANK=5', 'WORLD_SIZE=8', 'LOCAL_RANK=1', 'MASTER_ADDR=localhost', 'MASTER_PORT=21234'} <= set(
        lines
    )
    assert {SEGMENTER, str(tmp_path / 'x'), '--launcher', 'pytorch', 'a="[1, 2]"'} <= set(lines)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_launchers_say_how_they_are_used(run_in_a_process, script):
    result = run_in_a_process(script)
    assert result.returncode == 2
    assert f'tools/{script} ' in result.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['no_such_config.py'], 'no_such_config.py'),
        ([SEGMENTER, '--data-root', '/no/such/folder'], '/no/such/folder/ does not exist'),
        ([DETECTOR, '--data-root', '/no/such/folder'], '--data-root'),
        ([DETECTOR, '--data-root', '{shapes}', '--resume', 'none.pth'], 'none.pth does not exist'),
        ([DETECTOR, '--data-root', '{shapes}', '--launcher', 'slurm'], 'tools/dist_train.sh'),
        ([DETECTOR, '--data-root', '{shapes}', '--auto-scale-lr', *ACCUMULATING], 'no accumulated images'),
    ],
)
def test_bad_input_ends_before_a_model_is_built(run_tool, monkeypatch, arguments, message, shapes, tmp_path):
    monkeypatch.setattr('mmsgformer.engine.distributed.get_device', lambda: 'cpu')
    arguments = [argument.replace('{shapes}', str(shapes)) for argument in arguments]
    result = run_tool('train.py', *arguments, '--work-dir', tmp_path / 'work')
    assert result.returncode != 0
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'work').exists()


def two_saved_iterations(work_dir: Path) -> list[str]:
    """Options for a short run of which one checkpoint is kept, in a folder that has one."""
    torch.save({'state_dict': {}}, work_dir / 'best_mIoU_iter_9.pth')
    options = ['train_cfg.max_iters=2', 'train_cfg.val_begin=9', 'default_hooks.checkpoint.interval=1']
    options += ['train_dataloader.num_workers=0']
    return [*options, 'train_dataloader.batch_size=2', 'default_hooks.checkpoint.max_keep_ckpts=1']


def test_a_full_disk_ends_a_run_and_nothing_is_lost(shapes, tmp_path):
    """A message, no traceback, and the checkpoint that was there before. The disk of a process of its own."""
    command = 'ulimit -f 1000; exec "$0" tools/train.py "$@"'  # kilobytes in a file
    arguments = ['--data-root', str(shapes), '--work-dir', str(tmp_path)]
    arguments += ['--cfg-options', *two_saved_iterations(tmp_path)]
    command = ['bash', '-c', command, sys.executable, SEGMENTER, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert 'iter_1.pth' in result.stderr
    assert 'Earlier checkpoints are untouched' in result.stderr
    assert 'Traceback' not in result.stderr
    assert [path.name for path in tmp_path.glob('*.pth')] == ['best_mIoU_iter_9.pth']


def test_a_bad_number_ends_a_run_and_nothing_is_lost(run_tool, shapes, tmp_path):
    """A message, no traceback, and the checkpoints that were there before."""
    options = [*two_saved_iterations(tmp_path), 'optim_wrapper.optimizer.lr=1e30', 'param_scheduler=None']
    arguments = ['--data-root', shapes, '--work-dir', tmp_path, '--cfg-options', *options]
    result = run_tool('train.py', SEGMENTER, *arguments)
    assert result.returncode == 1
    assert 'iteration 2 has a loss that is not finite' in result.stderr
    assert str(tmp_path / 'iter_1.pth') in result.stderr
    assert 'Traceback' not in result.stderr
    assert {path.name for path in tmp_path.glob('*.pth')} == {'best_mIoU_iter_9.pth', 'iter_1.pth'}


@pytest.mark.parametrize(
    ('tool', 'option', 'name'),
    [
        ('train.py', 'train_cfg.max_iter=3', 'max_iter'),
        ('test.py', 'model.decode_head.chanels=3', 'chanels'),
    ],
)
def test_an_unknown_entry_is_one_line(run_tool, tool, option, name, shapes, tmp_path):
    """Of what is built late, too: the loop, when training starts."""
    (tmp_path / 'weights.pth').touch()
    checkpoint = [tmp_path / 'weights.pth'] if tool == 'test.py' else []
    arguments = ['--data-root', shapes, '--work-dir', tmp_path / 'work', '--cfg-options', option]
    result = run_tool(tool, SEGMENTER, *checkpoint, *arguments)
    assert result.returncode == 1
    assert f"unexpected keyword argument '{name}'" in result.stderr
    assert '--cfg-options' in result.stderr
    assert 'Traceback' not in result.stderr


def test_data_that_cannot_be_listed_are_one_line(run_tool, shapes, tmp_path):
    """Images of another ending than the config's: no traceback, and what lists the reasons."""
    data = shutil.copytree(shapes, tmp_path / 'data')
    for path in (data / 'images' / 'training').iterdir():
        path.rename(path.with_suffix('.bmp'))
    result = run_tool('train.py', SEGMENTER, '--data-root', data, '--work-dir', tmp_path / 'work')
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    assert 'cannot be listed' in result.stderr
    assert 'tools/check_dataset.py lists all that is wrong' in result.stderr


def test_damaged_images_are_skipped_and_counted(run_tool, shapes, tmp_path):
    """Every fourth one is damaged; the workers count together."""
    data = shutil.copytree(shapes, tmp_path / 'data')
    for path in sorted((data / 'images' / 'training').iterdir())[::4]:
        path.write_bytes(path.read_bytes()[:999])
    options = ['train_cfg.max_iters=3', 'train_cfg.val_begin=9', 'train_dataloader.num_workers=2']
    arguments = ['--data-root', data, '--work-dir', tmp_path / 'work', '--skip-bad-samples']
    result = run_tool('train.py', SEGMENTER, *arguments, '--cfg-options', *options)
    assert result.returncode == 0, result.stderr
    assert '4 of 16 training samples were skipped' in result.stdout


def test_a_work_dir_that_cannot_be_written_to_is_named(run_tool, shapes, tmp_path):
    """Below a file: nobody can write there, root neither."""
    (tmp_path / 'file').touch()
    arguments = ['--data-root', shapes, '--work-dir', tmp_path / 'file' / 'run']
    result = run_tool('train.py', SEGMENTER, *arguments)
    assert result.returncode == 1
    assert 'run cannot be written to' in result.stderr
    assert '--work-dir' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
    ('option', 'there', 'message'),
    [
        ('--out', 'old.pkl', 'old.pkl is there already'),
        ('--show-dir', 'old/val/a.png', 'a.png is there already'),
        ('--out', 'file/new.pkl', 'file cannot be written to'),
        ('--show-dir', 'file', 'file cannot be written to'),
    ],
)
def test_places_for_a_tests_results_are_checked_first(run_tool, option, there, message, shapes, tmp_path):
    """Before the checkpoint, which is none, is read: an earlier test's results stay, a file is no folder."""
    (tmp_path / 'weights.pth').touch()
    (tmp_path / 'file').touch()
    target = tmp_path / ('old' if 'val' in there else there)
    if 'old' in there:
        (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / there).touch()
    arguments = ['--data-root', shapes, '--work-dir', tmp_path / 'work', option, target]
    result = run_tool('test.py', SEGMENTER, tmp_path / 'weights.pth', *arguments)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert message in line
    assert option in line


@pytest.mark.skipif(torch.cuda.is_available(), reason='it is an error on CPU only')
def test_amp_without_a_gpu_is_refused(run_tool, shapes, tmp_path):
    result = run_tool('train.py', SEGMENTER, '--data-root', shapes, '--work-dir', tmp_path / 'work', '--amp')
    assert result.returncode == 2
    assert '--amp needs a GPU' in result.stderr


@NEEDS_SAFE_READING
def test_a_checkpoint_with_code_is_refused(run_tool, shapes, tmp_path):
    """Through the tools too: MMEngine would run it after a warning."""
    torch.save({'state_dict': {}, 'meta': Path('x'), 'more': os.getcwd}, tmp_path / 'evil.pth')
    arguments = ['--data-root', shapes, '--work-dir', tmp_path / 'work']
    result = run_tool('test.py', SEGMENTER, tmp_path / 'evil.pth', *arguments)
    assert result.returncode != 0
    assert 'getcwd' in result.stderr
    assert 'can run code' in result.stderr


@NEEDS_SAFE_READING
def test_no_library_runs_code_from_a_file_in_a_tools_process(tmp_path):
    """Also where a framework asks torch for it, as MMEngine does when safe reading fails.

    In a process that does not inherit the switch from this one.
    """
    torch.save({'meta': os.getcwd}, tmp_path / 'evil.pth')
    code = 'import sys, torch, mmsgformer.cli; torch.load(sys.argv[1], weights_only=False)'
    command = [sys.executable, '-c', code, tmp_path / 'evil.pth']
    environment = {name: value for name, value in os.environ.items() if 'WEIGHTS_ONLY' not in name}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert 'UnpicklingError' in result.stderr
