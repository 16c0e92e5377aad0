"""Preparing a config for several processes on CPU."""

import pytest
import torch.distributed
from mmengine.config import Config

from mmsgformer.engine.distributed import prepare_cpu_distributed


@pytest.fixture
def single_process_group(monkeypatch):
    for name, value in {
        'RANK': '0',
        'WORLD_SIZE': '1',
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': '0',
    }.items():
        monkeypatch.setenv(name, value)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def config(launcher: str) -> Config:
    norm = {'type': 'SyncBN', 'requires_grad': True}
    heads = [{'type': 'FCNHead', 'norm_cfg': norm}]
    return Config(
        {'launcher': launcher, 'model': {'decode_head': {'norm_cfg': norm}, 'auxiliary_head': heads}}
    )


def test_cpu_run_gets_gloo_no_device_ids_and_bn(monkeypatch, single_process_group):
    monkeypatch.setattr('mmsgformer.engine.distributed.get_device', lambda: 'cpu')
    cfg = config('pytorch')
    prepare_cpu_distributed(cfg)
    assert torch.distributed.get_backend() == 'gloo'
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model.decode_head.norm_cfg.type == cfg.model.auxiliary_head[0].norm_cfg.type == 'BN'


def test_nothing_changes_without_a_launcher():
    cfg = config('none')
    before = cfg.to_dict()
    prepare_cpu_distributed(cfg)
    assert cfg.to_dict() == before
    assert not torch.distributed.is_initialized()


def test_nothing_changes_with_a_gpu(monkeypatch):
    monkeypatch.setattr('mmsgformer.engine.distributed.get_device', lambda: 'cuda')
    cfg = config('pytorch')
    before = cfg.to_dict()
    prepare_cpu_distributed(cfg)
    assert cfg.to_dict() == before


def test_a_process_that_no_launcher_started_says_so(monkeypatch):
    monkeypatch.setattr('mmsgformer.engine.distributed.get_device', lambda: 'cpu')
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(ValueError, match=r'tools/dist_train\.sh'):
        prepare_cpu_distributed(config('slurm'))
