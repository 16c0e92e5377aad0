"""The backbone sharded over two processes by both of torch's FSDP, in mixed precision too."""

# ruff: noqa: E402  older torch versions lack some of it
import functools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from older_torch import skip_module_below
from torch import Tensor, nn

skip_module_below(2, 6, 'FSDP2')
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from mmsgformer import SGFormer
from mmsgformer.mixers import MIXERS
from mmsgformer.sgformer import Block, Stage

ARCH = {'embed_dims': (16, 32, 64, 128), 'depths': (2, 2, 2, 1), 'num_heads': (2, 2, 4, 4)}
# What is sharded by itself, beside the whole.
UNITS = {
    'whole': set(),
    'blocks': {Block},
    'stages': {Stage},
    'layers': {nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm},
}


def fsdp1(model: SGFormer, units: set[type], low: bool, use_orig_params: bool) -> nn.Module:
    precision = MixedPrecision(torch.bfloat16, torch.float32, torch.bfloat16) if low else None
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy(units) if units else None,
        mixed_precision=precision,
        use_orig_params=use_orig_params,
        device_id=torch.device('cpu'),
    )


def fsdp2(model: SGFormer, units: set[type], low: bool, _: bool) -> nn.Module:
    mesh = dist.init_device_mesh('cpu', (2,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if low else MixedPrecisionPolicy()
    for module in reversed(list(model.modules())):
        if isinstance(module, tuple(units)):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def build(with_cp: bool, mixer: str) -> SGFormer:
    torch.manual_seed(0)
    return SGFormer(ARCH, drop_path_rate=0.0, with_cp=with_cp, mixer=mixer)


def loss_of(outs: tuple[Tensor, ...]) -> Tensor:
    return sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).float().sum() for out in outs)


def work(rank: int, folder: Path, cases: list[tuple]) -> None:
    """One of two processes: a training step and another forward of every case; the first saves the maps."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / 'store'), 2)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=2)
    image = torch.randn(1, 3, 64, 75, generator=torch.Generator().manual_seed(1))
    for number, (wrap, units, low, use_orig_params, with_cp, mixer) in enumerate(cases):
        model = wrap(build(with_cp, mixer), UNITS[units], low, use_orig_params)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        maps = model(image)
        loss_of(maps).backward()
        missing = [name for name, p in model.named_parameters() if p.numel() and p.grad is None]
        assert not missing, (cases[number], missing)
        optimizer.step()
        optimizer.zero_grad()
        after = model(image)
        if rank == 0:
            kept = [[out.detach().float() for out in outs] for outs in (maps, after)]
            torch.save(kept, folder / f'{number}.pth')
    dist.destroy_process_group()


OWN = 'sgformer'
CASES = [
    (fsdp1, 'whole', False, False, False, OWN),
    (fsdp1, 'blocks', False, False, True, OWN),
    (fsdp1, 'blocks', True, False, False, OWN),
    (fsdp1, 'layers', True, True, False, OWN),
    (fsdp2, 'stages', False, False, False, OWN),
    (fsdp2, 'blocks', True, False, True, OWN),
    (fsdp2, 'layers', True, False, False, OWN),
    *(
        (wrap, 'blocks', low, False, False, mixer)
        for mixer in sorted(MIXERS.module_dict)
        if mixer != OWN
        for wrap, low in ((fsdp1, False), (fsdp2, True))
    ),
]


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> list[list[list[Tensor]]]:
    """The maps of every case, before and after a step."""
    folder = tmp_path_factory.mktemp('sharded')
    torch.multiprocessing.start_processes(work, (folder, CASES), nprocs=2, start_method='fork')
    return [torch.load(folder / f'{number}.pth') for number in range(len(CASES))]


@functools.cache
def expected(mixer: str) -> list[list[Tensor]]:
    """The maps of one process, before and after a step."""
    image = torch.randn(1, 3, 64, 75, generator=torch.Generator().manual_seed(1))
    model = build(False, mixer)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model(image)
    loss_of(before).backward()
    optimizer.step()
    return [[out.detach() for out in outs] for outs in (before, model(image))]


@pytest.mark.parametrize('number', range(len(CASES)), ids=[f'{c[0].__name__}-{c[1]}-{c[2:]}' for c in CASES])
def test_sharded_training_is_that_of_one_process(number, results):
    """Maps before and after a step, up to the precision's rounding."""
    tolerance = 0.1 if CASES[number][2] else 1e-3
    for ours, exact in zip(results[number], expected(CASES[number][-1]), strict=True):
        for out, reference in zip(ours, exact, strict=True):
            assert (out - reference).norm() < tolerance * reference.norm()
