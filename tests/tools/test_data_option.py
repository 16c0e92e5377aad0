"""`--data DIR` of the tools: own data train, are tested and checked, with a config made for others."""

import json
import os
from pathlib import Path

import layouts
import pytest

DETECTOR = 'configs/demo/mask-rcnn_sgformer-tiny_fpn_shapes.py'
SEGMENTER = 'configs/demo/sgformer-tiny_upernet_shapes.py'
CLASSIFIER = 'configs/demo/sgformer-tiny_shapes.py'
RUNS = {
    # layout, its options, --cfg-options, metric, what is printed
    DETECTOR: (
        layouts.voc,
        {},
        ['train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=8'],
        'coco/bbox_mAP',
        'detection (boxes), Pascal VOC XML\n  train 16 images, {} objects',
    ),
    SEGMENTER: (
        layouts.label_maps,
        {'layout': 'flat'},
        ['train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1'],
        'mIoU',
        'segmentation, images and label maps\n  train 13 images',
    ),
    CLASSIFIER: (
        layouts.class_folders,
        {'valid': False},
        ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=40', 'train_dataloader.drop_last=True'],
        'accuracy/top1',
        'classification, a folder per class\n  train 48 images',
    ),
}


def last_metrics(folder: Path) -> dict:
    """What the last test wrote."""
    return json.loads(max(folder.glob('*/*.json'), key=os.path.getmtime).read_text())


@pytest.mark.parametrize('config', RUNS)
def test_train_test_and_check(run_tool, config, shapes, tmp_path):
    """The dumped config has all that was found: it tests without --data, to the same numbers."""
    layout, layout_options, options, metric, printed = RUNS[config]
    data, run = tmp_path / 'my data ü', tmp_path / 'run'
    layout(shapes, data, **layout_options)
    before = layouts.listing(data)
    workers = [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
    common = ['--work-dir', run, '--cfg-options', *workers]
    trained = run_tool('train.py', config, '--data', data, *common, *options)
    assert trained.returncode == 0, trained.stderr
    count = sum(map(len, layouts.truth_of(shapes, 'train').values()))
    assert printed.format(count) in trained.stdout
    assert 'tests run on val' in trained.stdout

    checkpoint = (run / 'last_checkpoint').read_text()
    tested = run_tool('test.py', run / Path(config).name, checkpoint, '--work-dir', tmp_path / 'dumped')
    assert tested.returncode == 0, tested.stderr
    again = run_tool('test.py', config, checkpoint, '--data', data, *common)
    assert again.returncode == 0, again.stderr
    dumped, found = last_metrics(tmp_path / 'dumped'), last_metrics(run)
    assert dumped[metric] == found[metric]

    checked = run_tool('check_dataset.py', config, '--data', data)
    assert checked.returncode == 0, checked.stdout
    assert ' 0 errors' in checked.stdout
    assert layouts.listing(data) == before


def test_a_test_split_is_what_is_tested(run_tool, shapes, tmp_path):
    layouts.class_folders(shapes, tmp_path / 'data')
    (tmp_path / 'data' / 'val').rename(tmp_path / 'data' / 'test')
    result = run_tool('check_dataset.py', CLASSIFIER, '--data', tmp_path / 'data')
    assert result.returncode == 0, result.stderr
    assert [line.strip() for line in result.stdout.splitlines()[1:4]] == [
        'train 48 images',
        'val   12 images',
        'test  14 images',
    ]


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'check_dataset.py'])
def test_bad_data_are_one_line(run_tool, tool, shapes, tmp_path):
    """No traceback; nothing is written but the work dir."""
    layouts.voc(shapes, tmp_path / 'data')
    broken = next((tmp_path / 'data' / 'Annotations').iterdir())
    broken.write_text('<annotation>')
    before = layouts.listing(tmp_path / 'data')
    checkpoint = [tmp_path / 'any.pth'] if tool == 'test.py' else []
    options = [] if tool == 'check_dataset.py' else ['--work-dir', tmp_path / 'run']
    result = run_tool(tool, DETECTOR, *checkpoint, '--data', tmp_path / 'data', *options)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f'error: {broken}')
    assert layouts.listing(tmp_path / 'data') == before
    assert not any((tmp_path / 'run').rglob('*.json'))


def test_training_needs_training_images(run_tool, shapes, tmp_path):
    layouts.class_folders(shapes, tmp_path / 'data')
    for path in sorted((tmp_path / 'data' / 'train').rglob('*'), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / 'data' / 'train').rmdir()
    result = run_tool('train.py', CLASSIFIER, '--data', tmp_path / 'data', '--work-dir', tmp_path / 'run')
    assert result.returncode == 1
    assert 'has no training images' in result.stderr


def test_one_place_of_the_data(run_tool):
    result = run_tool('train.py', DETECTOR, '--data', 'a', '--data-root', 'b')
    assert result.returncode == 2
    assert 'not allowed with argument' in result.stderr
