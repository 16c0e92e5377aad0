"""Distributed runs on machines without a GPU, which MMEngine's own launcher cannot start."""

import os

import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log


def prepare_cpu_distributed(cfg: Config) -> None:
    """Where there is no accelerator, make a config with a launcher run on CPU, in place.

    MMEngine's launcher sets a CUDA device and hands DDP one, and SyncBN has no CPU kernel. So the gloo
    process group is initialised here, from the variables that torchrun sets (MMEngine then keeps it), DDP
    gets no device, and SyncBN becomes BN, whose statistics are the first process's in every step. With an
    accelerator, or without a launcher, nothing changes.

    Raises:
        ValueError: The process was not started by torchrun or a script that sets the same variables.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        if not {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} <= set(os.environ):
            raise ValueError(
                f'--launcher {cfg.launcher} on CPU needs the variables of torchrun (RANK, WORLD_SIZE, ...); '
                'start it with tools/dist_train.sh, tools/dist_test.sh or their slurm_* counterparts'
            )
        torch.distributed.init_process_group('gloo')
    if 'model_wrapper_cfg' not in cfg:
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=True,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    if _replace_sync_bn(cfg.model):
        print_log('No GPU: SyncBN does not run on CPU and becomes BN', 'current')


def _replace_sync_bn(node: ConfigDict | list) -> int:
    """Turn every dict(type='SyncBN') under this node into BN; returns how many there were."""
    count = 0
    if isinstance(node, dict) and node.get('type') == 'SyncBN':
        node['type'] = 'BN'
        count += 1
    children = node.values() if isinstance(node, dict) else node
    return count + sum(_replace_sync_bn(child) for child in children if isinstance(child, (dict, list)))
