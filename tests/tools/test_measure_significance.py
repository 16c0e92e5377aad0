"""tools/measure_significance.py, with weights for which the answer is known."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from tool_calls import load_tool

from mmsgformer.data.paths import set_data_root

FOLDER = Path(__file__).parents[2] / 'configs' / 'demo'
CONFIGS = ('mask-rcnn_sgformer-tiny_fpn_shapes.py', 'sgformer-tiny_upernet_shapes.py')


def test_weights_of_before_training_give_the_same_after_it(run_tool, shapes, tmp_path):
    """The objects are the same ones too, whether annotated as instances or as label maps."""
    areas = set()
    for name in CONFIGS:
        cfg = Config.fromfile(FOLDER / name)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        model.init_weights()
        torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
        arguments = (FOLDER / name, tmp_path / 'weights.pth', '--data-root', shapes)
        result = run_tool('measure_significance.py', *arguments, COLUMNS='120')
        assert result.returncode == 0, result.stderr
        areas.add(re.search(r'objects cover ([\d.]+)%', result.stdout)[1])
        lines = [line for line in result.stdout.splitlines() if ', block' in line]
        rows = [re.findall(r'[\d.]+', line.split('block')[1]) for line in lines]
        assert len(rows) == 4  # hybrid-scale blocks
        for _, before, after, finest_before, finest_after in rows:
            assert float(before) > 0
            assert (before, finest_before) == (after, finest_after)
    assert len(areas) == 1


@pytest.mark.parametrize('tool', ['measure_significance', 'visualize_significance'])
def test_a_mixer_without_significance_is_named(tool, run_tool, shapes, tmp_path):
    cfg = Config.fromfile(FOLDER / CONFIGS[1])
    cfg.model.backbone.mixer = 'swin'
    cfg.dump(tmp_path / 'swin.py')
    init_default_scope(cfg.default_scope)
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'weights.pth')
    images = next(shapes.rglob('*.png')).parent
    options = ('--data-root', shapes) if 'measure' in tool else (images, '--out-dir', tmp_path)
    result = run_tool(f'{tool}.py', tmp_path / 'swin.py', tmp_path / 'weights.pth', *options)
    assert result.returncode == 1
    assert "error: there is no significance to show: the model has the mixer 'swin'" in result.stderr
    assert 'Traceback' not in result.stderr


def test_a_config_that_is_not_there_is_named(run_tool):
    result = run_tool('measure_significance.py', 'absent.py', 'weights.pth')
    assert result.returncode == 1
    assert 'absent.py' in result.stderr
    assert 'Traceback' not in result.stderr


def test_boxes_without_masks_are_refused(run_tool, shapes, tmp_path):
    """In one line that says what to set."""
    cfg = Config.fromfile(FOLDER / CONFIGS[0])
    cfg.val_dataloader.dataset.pipeline[2].with_mask = False
    cfg.dump(tmp_path / 'boxes.py')
    init_default_scope(cfg.default_scope)
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'weights.pth')
    arguments = (tmp_path / 'boxes.py', tmp_path / 'weights.pth', '--data-root', shapes)
    result = run_tool('measure_significance.py', *arguments)
    assert result.returncode == 1
    assert 'boxes without masks' in result.stderr
    assert 'with_mask=True' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize('value', [0.0, 1.0])
def test_images_that_show_one_kind_only_are_refused(value, shapes, monkeypatch):
    """No object, or no background: there is nothing to compare."""
    tool = load_tool('measure_significance')
    cfg = Config.fromfile(FOLDER / CONFIGS[1])
    set_data_root(cfg, str(shapes))
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    dataset = DATASETS.build({**cfg.val_dataloader.dataset, 'indices': 1})
    monkeypatch.setattr(tool, 'object_mask', lambda *_: torch.full((112, 112), value))
    with pytest.raises(ValueError, match='no object or no background'):
        tool.measure(model, dataset, '')
