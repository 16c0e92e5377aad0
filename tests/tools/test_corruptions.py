"""tools/test_corruptions.py gives the numbers of tools/test.py on corrupted copies of the images."""

import json
import shutil
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmsgformer.data.corrupt import CorruptImage

pytest.importorskip('imagecorruptions')
ROOT = Path(__file__).parents[2]
DETECTOR = ROOT / 'configs' / 'demo' / 'mask-rcnn_sgformer-tiny_fpn_shapes.py'
SEGMENTER = ROOT / 'configs' / 'demo' / 'sgformer-tiny_upernet_shapes.py'


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Path:
    """A segmenter's, newly initialised."""
    cfg = Config.fromfile(SEGMENTER)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'weights.pth'
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, path)
    return path


def metrics_of_test(run_tool, weights: Path, data: Path, work_dir: Path, indices: str) -> dict:
    options = [f'test_dataloader.dataset.indices={indices}', 'test_dataloader.num_workers=0']
    arguments = [SEGMENTER, weights, '--data-root', data, '--work-dir', work_dir, '--cfg-options', *options]
    result = run_tool('test.py', *arguments)
    assert result.returncode == 0, result.stderr
    (file,) = work_dir.glob('*/*.json')
    return json.loads(file.read_text())


def test_the_metric_is_that_of_corrupted_copies(run_tool, weights, shapes, tmp_path):
    """Every third of four images, two corruptions; the copies are written to files and tested."""
    out = tmp_path / 'corrupted.json'
    result = run_tool(
        *('test_corruptions.py', SEGMENTER, weights, '--data-root', shapes, '--work-dir', tmp_path / 'work'),
        *('--out', out, '--corruptions', 'impulse_noise', 'contrast', '--severities', 2, 5, '--every', 3),
        *('--cfg-options', 'test_dataloader.dataset.indices=[0,1,2,3]'),
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    expected = ['clean', 'impulse_noise/2', 'impulse_noise/5', 'contrast/2', 'contrast/5']
    assert list(found) == expected
    clean = metrics_of_test(run_tool, weights, shapes, tmp_path / 'clean', '[0,3]')
    assert {key: found['clean'][key] for key in ('mIoU', 'aAcc')} == {k: clean[k] for k in ('mIoU', 'aAcc')}
    for name, severity in (('impulse_noise', 5), ('contrast', 2)):
        copy = shutil.copytree(shapes, tmp_path / f'{name}{severity}')
        for path in (copy / 'images' / 'validation').iterdir():
            image = CorruptImage(name, severity)({'img': mmcv.imread(str(path)), 'img_path': str(path)})[
                'img'
            ]
            mmcv.imwrite(image, str(path.with_suffix('.png')))  # without loss, under the name that it had
            path.with_suffix('.png').rename(path)
        metrics = metrics_of_test(run_tool, weights, copy, tmp_path / f'test_{name}', '[0,3]')
        for key in ('mIoU', 'aAcc'):
            assert found[f'{name}/{severity}'][key] == metrics[key]
        assert metrics['aAcc'] != clean['aAcc']
    table = result.stdout[result.stdout.index('| mIoU |') :].splitlines()
    assert table[0] == '| mIoU | 2 | 5 | mean | of clean |'
    assert [row.split(' | ')[0] for row in table[3:]] == ['| impulse_noise', '| contrast', '| mean']
    values = [found[f'impulse_noise/{severity}']['mIoU'] for severity in (2, 5)]
    mean, part = sum(values) / 2, 50 * sum(values) / found['clean']['mIoU']
    assert table[3] == f'| impulse_noise | {values[0]:.4g} | {values[1]:.4g} | {mean:.4g} | {part:.0f} % |'


@pytest.mark.parametrize(
    ('config', 'arguments', 'message'),
    [
        (SEGMENTER, ['--corruptions', 'haze'], '--corruptions: unknown: haze; there are gaussian_noise'),
        (SEGMENTER, ['--every', 0], '--every must be 1 or more, got 0'),
        (SEGMENTER, ['--out', 'setup.py'], 'is there already, from an earlier run'),
        (DETECTOR, ['--every', 2], 'would count those that are left out as missed'),
        (
            SEGMENTER,
            ['--cfg-options', 'test_dataloader.dataset.pipeline=[]'],
            'has no step LoadImageFromFile to corrupt after',
        ),
    ],
)
def test_what_cannot_be_done_is_said(run_tool, weights, shapes, config, arguments, message, tmp_path):
    common = [config, weights, '--data-root', shapes, '--work-dir', tmp_path / 'work']
    result = run_tool('test_corruptions.py', *common, *arguments)
    assert result.returncode != 0
    assert message in result.stderr
