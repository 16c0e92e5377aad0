"""tools/test.py --out NAME.json leaves predictions that other tools read; the snippet in the docs is run."""

import json
import re
import shutil
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[2]
DETECTOR = ROOT / 'configs' / 'demo' / 'mask-rcnn_sgformer-tiny_fpn_shapes.py'
SEGMENTER = ROOT / 'configs' / 'demo' / 'sgformer-tiny_upernet_shapes.py'
CATEGORIES = {1: 7, 2: 30, 3: 31, 4: 90}


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    """The synthetic data with other ids of images and categories."""
    folder = shutil.copytree(shapes, tmp_path / 'data')
    path = folder / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    for image in content['images']:
        image['id'] += 1000
    for entry in content['annotations']:
        entry['image_id'] += 1000
        entry['category_id'] = CATEGORIES[entry['category_id']]
    for category in content['categories']:
        category['id'] = CATEGORIES[category['id']]
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def weights(tmp_path) -> Path:
    """A detector's, newly initialised."""
    cfg = Config.fromfile(DETECTOR)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


def test_predictions_have_the_ids_of_the_data(run_tool, data, weights, tmp_path, monkeypatch):
    arguments = [DETECTOR, weights, '--data-root', data, '--work-dir', tmp_path / 'work']
    for name in ('results.json', 'results.pkl'):
        result = run_tool('test.py', *arguments, '--out', tmp_path / name)
        assert result.returncode == 0, result.stderr
    results = {kind: json.loads((tmp_path / f'results.{kind}.json').read_text()) for kind in ('bbox', 'segm')}
    samples = mmengine.load(tmp_path / 'results.pkl')
    categories = list(CATEGORIES.values())
    expected = [
        (sample['img_id'], categories[label], pytest.approx(float(score)))
        for sample in samples
        for label, score in zip(
            sample['pred_instances']['labels'], sample['pred_instances']['scores'], strict=True
        )
    ]
    assert len(expected) > 20
    for entries in results.values():
        assert [(e['image_id'], e['category_id'], e['score']) for e in entries] == expected
    assert {entry['image_id'] for entry in results['bbox']} == {1001, 1002, 1003, 1004}
    assert all(entry['segmentation']['size'] == [112, 112] for entry in results['segm'])

    shutil.copy(data / 'annotations' / 'instances_val2017.json', tmp_path / 'annotations.json')
    snippets = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'report.md').read_text(), re.DOTALL)
    (supervision,) = [snippet for snippet in snippets if 'import supervision' in snippet]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(supervision, names)
    last = next(sample for sample in samples if sample['img_id'] == 1004)['pred_instances']
    assert names['detections'].xyxy == pytest.approx(last['bboxes'].numpy(), abs=1e-3)
    assert names['detections'].class_id.tolist() == last['labels'].tolist()


def test_earlier_results_stay(run_tool, data, weights, tmp_path):
    (tmp_path / 'old.segm.json').write_text('[]')
    arguments = [DETECTOR, weights, '--data-root', data, '--work-dir', tmp_path / 'work']
    result = run_tool('test.py', *arguments, '--out', tmp_path / 'old.json')
    assert result.returncode == 1
    assert 'old.segm.json is there already' in result.stderr


def test_what_has_no_boxes_is_told(run_tool, shapes, weights, tmp_path):
    arguments = [SEGMENTER, weights, '--data-root', shapes, '--work-dir', tmp_path / 'work']
    result = run_tool('test.py', *arguments, '--out', tmp_path / 'new.json')
    assert result.returncode == 2
    assert 'no CocoMetric' in result.stderr
