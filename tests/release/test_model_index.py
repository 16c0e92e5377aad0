"""The metafiles: one entry per released config, with its cost; the docs repeat them.

tests/configs/test_configs.py holds the parameters, where it builds every model.
"""

from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from tool_calls import load_tool

from mmsgformer.release.flops import DEFAULT_SHAPES, count_costs
from mmsgformer.release.model_index import read_models

ROOT = Path(__file__).parents[2]
MODELS = read_models(ROOT)


def test_every_config_has_one_entry():
    folders = ('imagenet', 'coco', 'ade20k', 'imagenette', 'camvid', 'nuclei')
    found = [p for folder in folders for p in (ROOT / 'configs' / folder).glob('*sgformer-?_*.py')]
    configs = [str(path.relative_to(ROOT)) for path in found]
    assert sorted(model.config for model in MODELS) == sorted(configs)
    assert all(Path(model.config).stem == model.name for model in MODELS)


@pytest.mark.parametrize(
    'name', ['retinanet_sgformer-s_fpn_1x', 'sgformer-s_semantic-fpn', 'sgformer-s_upernet_8xb2']
)
def test_the_macs_are_the_configs(name):
    """Of those that run on shapes alone; the others take a minute. test_flops.py has the classifiers."""
    (model,) = (model for model in MODELS if model.name.startswith(name))
    cfg = Config.fromfile(ROOT / model.config)
    assert count_costs(cfg, DEFAULT_SHAPES[cfg.default_scope])[0].macs == model.macs


@pytest.mark.parametrize(('folder', 'shape'), [('imagenette', (112, 112)), ('camvid', (360, 480))])
def test_the_costs_of_t_are_its_configs(folder, shape):
    (model,) = (m for m in MODELS if Path(m.config).parent.name == folder and 'sgformer-t' in m.name)
    cost = count_costs(Config.fromfile(ROOT / model.config), shape)[0]
    assert (cost.parameters, cost.macs) == (model.parameters, model.macs)


def test_nothing_claims_weights_and_all_results_are_marked_as_the_papers():
    for path in (ROOT / 'configs').glob('*/metafile.yml'):
        for entry in yaml.safe_load(path.read_text())['Models']:
            assert 'Weights' not in entry
            assert all(key.endswith(' (paper)') for r in entry.get('Results', []) for key in r['Metrics'])


def test_the_docs_tables_are_the_metafiles():
    tool = load_tool('make_model_zoo')
    page = tool.PAGE.read_text()
    assert tool.fill(page) == page, 'run python tools/make_model_zoo.py'
