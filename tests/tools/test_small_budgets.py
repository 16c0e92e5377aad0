"""The flags for small machines, and testing with several sizes, run as a user would run them."""

import json

import pytest

DETECTOR = 'configs/demo/mask-rcnn_sgformer-tiny_fpn_shapes.py'
SEGMENTER = 'configs/demo/sgformer-tiny_upernet_shapes.py'


def test_accumulation_and_checkpointing_then_a_test_with_tta(run_tool, shapes, tmp_path):
    """The recipe's 16 images are two batches of 8; one optimizer step takes two iterations."""
    common = ['--data-root', shapes, '--work-dir', tmp_path]
    options = ['--cfg-options', 'train_cfg.max_iters=1', 'default_hooks.logger.interval=1']
    trained = run_tool('train.py', SEGMENTER, *common, '--accumulate', '--with-cp', *options)
    assert trained.returncode == 0, trained.stderr
    assert '1 process(es) x 8 images x 2 accumulated = 16 per optimizer step' in trained.stdout
    assert 'with_cp=True' in next(tmp_path.glob('*.py')).read_text()
    log = next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert [json.loads(line)['iter'] for line in log if 'loss' in line] == [1, 2]

    sizes = [f'tta_pipeline.1.transforms.0.{i}.scale=(64,64)' for i in range(6)]
    tested = run_tool(
        'test.py', SEGMENTER, tmp_path / 'iter_2.pth', *common, '--tta', '--cfg-options', *sizes
    )
    assert tested.returncode == 0, tested.stderr
    assert 'mIoU' in tested.stdout
    assert 'unexpected key' not in tested.stdout, 'the weights were not loaded'
    assert 'missing keys' not in tested.stdout


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        ('test.py', [DETECTOR, '{shapes}/val2017/000001.jpg', '--tta'], 'has no tta_model'),
        (
            'train.py',
            [SEGMENTER, '--accumulate', '--cfg-options', 'train_dataloader.batch_size=3'],
            '1 x 3 images at once do not divide the 16',
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(run_tool, script, arguments, message, shapes, tmp_path):
    arguments = [argument.replace('{shapes}', str(shapes)) for argument in arguments]
    result = run_tool(script, '--data-root', shapes, '--work-dir', tmp_path, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
