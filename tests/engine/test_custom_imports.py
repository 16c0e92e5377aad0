"""A config that a run of ours dumps names what it needs: MMEngine alone can load it and build from it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import ConfigDict

from mmsgformer.engine.custom_imports import import_mmsgformer

ROOT = Path(__file__).parents[2]

MODULE = """
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS

@MODELS.register_module()
class UsersModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, number, **_):
        return {'loss': self.layer(torch.stack(number)).mean()}

@DATASETS.register_module()
class UsersData(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return {'number': torch.tensor([float(index)])}

    def __len__(self):
        return 2
"""
CONFIG = """
custom_imports = dict(imports='module_of_a_user')
model = dict(type='UsersModel')
train_dataloader = dict(
    dataset=dict(type='UsersData'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_size=1,
    num_workers=0,
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""
# What mmdet's, mmseg's and mmpretrain's tools/train.py do.
BUILD = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = sys.argv[2]
Runner.from_cfg(cfg).train()
"""


def test_a_config_that_we_dumped_is_trained_by_others(tmp_path, monkeypatch):
    """One that inherits nothing from this package, in a process that does not import it by itself."""
    (tmp_path / 'module_of_a_user.py').write_text(MODULE)
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    train = runpy.run_path(str(ROOT / 'tools' / 'train.py'))['main']
    train([str(tmp_path / 'config.py'), '--work-dir', str(tmp_path / 'ours')])
    command = [sys.executable, '-c', BUILD, tmp_path / 'ours' / 'config.py', tmp_path / 'theirs']
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    result = subprocess.run(
        command, env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'theirs' / 'epoch_1.pth').exists()


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        (None, dict(imports=['mmsgformer'], allow_failed_imports=False)),
        (dict(imports=None), dict(imports=['mmsgformer'], allow_failed_imports=False)),
        (dict(imports='a.b'), dict(imports=['a.b', 'mmsgformer'], allow_failed_imports=False)),
        (
            dict(imports=['a', 'b'], allow_failed_imports=True),
            dict(imports=['a', 'b', 'mmsgformer'], allow_failed_imports=True),
        ),
        (dict(imports=['mmsgformer', 'a']), dict(imports=['mmsgformer', 'a'])),
        (dict(imports='mmsgformer'), dict(imports='mmsgformer')),
    ],
)
def test_what_a_config_imports_stays(before, after):
    cfg = ConfigDict(custom_imports=before)
    import_mmsgformer(cfg)
    assert cfg.custom_imports == after
    import_mmsgformer(cfg)
    assert cfg.custom_imports == after
