"""What is too long for the test suite: runs that are killed, inputs at random, several processes.

    python tests/soak.py kills DIR --kills 40     # SIGKILL at random moments, resumed: the same bits?
    python tests/soak.py saves DIR --kills 30     # SIGKILL within saves: is the last checkpoint whole?
    python tests/soak.py fuzz --inputs 2000       # random inputs: right outputs or clear errors?
    python tests/soak.py ranks DIR --kills 10     # one of two processes killed: how long until the job ends?
    python tests/soak.py padding CONFIG CHECKPOINT DATA  # what an image's detections owe to its batch
    python tests/soak.py gradients DIR            # DDP and FSDP against one process with the whole batch

Each prints what it found, and exits with an error if it is not what it should be.
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing
from engine import test_exact_resume as exact  # beside this file
from fuzz import TINY, fuzz
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel, MMFullyShardedDataParallel
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import collect_env
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader
from torchvision.ops import box_iou

from mmsgformer import SGFormer
from mmsgformer.checkpoint.files import latest_checkpoint, read_checkpoint
from mmsgformer.data.paths import set_data_root

ROOT = Path(__file__).parents[1]


def fork(function, *arguments: object, log: Path | None = None) -> int:
    """The id of a child process, a copy of this one, that runs a function in a process group of its own."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        if log:
            with log.open('ab') as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
        code = 1
        try:
            function(*arguments)
            code = 0
        except Exception as error:
            print(f'{type(error).__name__}: {error}', file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return child


def shapes(folder: Path) -> Path:
    """A small data set."""
    command = [sys.executable, ROOT / 'tools' / 'make_shapes.py', folder, '--train', '16', '--val', '4']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def run_to_the_end(case: str, data: Path, work_dir: Path, workers: int) -> None:
    """Train from the newest checkpoint in a folder, and write what was computed to final.pth."""
    kind, _, options = exact.CASES[case]
    length = 'train_cfg.max_epochs' if kind == 'detector' else 'train_cfg.max_iters'
    options = {**options, 'default_hooks.checkpoint.interval': 1, length: 3 if kind == 'detector' else 9}
    start = latest_checkpoint(work_dir)
    torch.save(
        exact.state(exact.train(kind, data, work_dir, workers, start, **options)), work_dir / 'final.pth'
    )


def kills(args: argparse.Namespace) -> None:
    """Kill training runs at random moments, resume them to the end, compare with an uninterrupted one."""
    data = shapes(args.dir / 'shapes')
    cases = [case for case in exact.CASES if not case.startswith('classifier')]
    cases = sorted(cases, key=lambda case: case.rpartition(',')[2])  # detection and segmentation in turns
    wholes, seconds = {}, {}
    for number, case in enumerate(cases):
        (args.dir / f'whole_{number}').mkdir()
        begin = time.monotonic()
        child = fork(run_to_the_end, case, data, args.dir / f'whole_{number}', 0, log=args.dir / 'log')
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f'{case}: the uninterrupted run failed, see {args.dir}/log')
        seconds[case] = time.monotonic() - begin
        wholes[case] = torch.load(args.dir / f'whole_{number}' / 'final.pth')
        print(f'{case}: {len(wholes[case])} numbers and tensors, {seconds[case]:.1f} s', flush=True)
    exact_matches = 0
    for attempt in range(args.kills):
        case, workers = cases[attempt % len(cases)], 2 * (attempt // len(cases) % 2)
        work_dir = args.dir / f'kill_{attempt}'
        work_dir.mkdir()
        child = fork(run_to_the_end, case, data, work_dir, workers, log=args.dir / 'log')
        time.sleep(random.Random(attempt).uniform(0.3, 0.95) * seconds[case])
        os.kill(child, signal.SIGKILL)
        survived = os.WIFEXITED(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError):  # torch's workers can outlive the process that had them
            os.killpg(child, signal.SIGKILL)
        newest = latest_checkpoint(work_dir)
        child = fork(run_to_the_end, case, data, work_dir, workers, log=args.dir / 'log')
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f'{case}: the resumed run failed, see {args.dir}/log')
        found = torch.load(work_dir / 'final.pth')
        same = found.keys() == wholes[case].keys() and not exact.different(wholes[case], found)
        exact_matches += same
        print(
            f'kill {attempt} of {case}, {workers} workers: resumed from {newest and Path(newest).name}: '
            f'{"the same bits" if same else "DIFFERENT"}{" (it had ended)" if survived else ""}',
            flush=True,
        )
        for file in work_dir.glob('*.pth'):
            file.unlink()
    print(f'{args.kills} kills, {exact_matches} exact matches')
    if exact_matches < args.kills:
        raise SystemExit(1)


class Weights(BaseModel):
    """8 MB of weights; with Adam's state a checkpoint has 24 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1000, 2000)

    def forward(self, inputs: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        return {'loss': self.layer(inputs).square().mean()}


class Announce(Hook):
    """Notes that a checkpoint is about to be saved, and its iteration as soon as its saving has returned."""

    priority = 'LOWEST'

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        (Path(runner.work_dir) / 'saving').touch()

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        (Path(runner.work_dir) / 'announced').write_text(str(runner.iter + 1))


def train_weights(work_dir: Path, attempt: int) -> None:
    """Train without end, saving every iteration, from the newest checkpoint on."""
    Runner(
        model=Weights(),
        work_dir=str(work_dir),
        # Long: MMEngine sleeps for two seconds at the end of every pass over the data.
        train_dataloader=DataLoader([{'inputs': torch.ones(1000)}] * 10_000),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1_000_000),
        optim_wrapper=dict(optimizer=dict(type='Adam')),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook',
                interval=1,
                by_epoch=False,
                max_keep_ckpts=1,
                backend_args=dict(backend='checkpoints'),
            ),
            checkpoint_load=dict(type='CheckpointLoadHook'),
        ),
        custom_hooks=[Announce()],
        load_from=latest_checkpoint(work_dir),
        resume=True,
        log_level='ERROR',
        experiment_name=str(attempt),
    ).train()


def saves(args: argparse.Namespace) -> None:
    """Kill training runs at random moments of a save; each run resumes the last.

    After each kill the newest checkpoint must be readable and no older than the last one that was announced.
    Only one checkpoint is kept, the hardest case.
    """
    announced, saving = args.dir / 'announced', args.dir / 'saving'
    in_a_write = 0
    for attempt in range(args.kills):
        announced.unlink(missing_ok=True)
        child = fork(train_weights, args.dir, attempt)
        deadline = time.monotonic() + 60
        for awaited in (announced, saving):  # one checkpoint saved, the next one begun
            while not awaited.exists():
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    raise SystemExit(f'run {attempt} saved nothing')
                time.sleep(0.001)
            saving.unlink(missing_ok=True)
        time.sleep(random.Random(attempt).uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        in_a_write += any(args.dir.glob('*.part'))
        newest = latest_checkpoint(args.dir)
        promised = int(announced.read_text() or 0)
        iteration = read_checkpoint(newest)['meta']['iter'] if newest else None
        if iteration is None or iteration < promised:
            raise SystemExit(f'kill {attempt}: iteration {promised} was saved, {iteration} is left')
        print(f'kill {attempt}: {promised} announced, {iteration} read')
    print(f'{args.kills} kills in a save, {in_a_write} of them while the file was written; nothing was lost')


def ranks(args: argparse.Namespace) -> None:
    """Kill one of two processes of tools/dist_train.sh; the job must end within a minute, with an error."""
    data = shapes(args.dir / 'shapes')
    config = exact.CONFIGS['segmenter']
    slowest = 0.0
    for attempt in range(args.kills):
        chance = random.Random(attempt)
        environment = {
            **os.environ,
            'PYTHON': sys.executable,
            'PORT': str(29600 + attempt),
            'CUDA_VISIBLE_DEVICES': '',
        }
        command = [
            'bash',
            'tools/dist_train.sh',
            config,
            '2',
            '--data-root',
            data,
            '--work-dir',
            args.dir / f'run_{attempt}',
        ]
        command += ['--cfg-options', 'train_dataloader.batch_size=2', 'train_cfg.max_iters=10000']
        log = args.dir / f'log_{attempt}'
        with log.open('wb') as file:
            job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        processes = []
        while len(processes) < 2 and job.poll() is None:
            processes = psutil.Process(job.pid).children()
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 20))  # while it starts, or trains
        rank = chance.randrange(2)
        victims = [p for p in processes if p.is_running() and p.environ().get('RANK') == str(rank)]
        if len(victims) != 1:
            raise SystemExit(f'run {attempt} did not start, see {log}')
        everything = [p for process in processes for p in [process, *process.children(recursive=True)]]
        victims[0].kill()
        begin = time.monotonic()
        try:
            code = job.wait(timeout=90)
        except subprocess.TimeoutExpired:
            job.kill()
            code = None
        took = time.monotonic() - begin
        _, left = psutil.wait_procs(everything, timeout=10)
        said = 'SIGKILL' in log.read_text() or 'Signal 9' in log.read_text()
        trained = log.read_text().count('Iter(train)')
        print(
            f'rank {rank} killed after {trained} lines of training: the job ended {took:.1f} s later with '
            f'code {code}, {"named the signal" if said else "said NOTHING"}, {len(left)} processes left',
            flush=True,
        )
        if code in (0, None) or took > 60 or not said or left:
            raise SystemExit(1)
        slowest = max(slowest, took)
    print(f'{args.kills} kills, the slowest job ended {slowest:.1f} s later')


def train_in_parallel(
    rank: int, processes: int, wrapper: str, dtype: torch.dtype, store: Path, out: Path
) -> None:
    """One process of several, with its share of 4 images: the first gradients, the weights after 3 steps.

    In bfloat16: mixed precision, on weights in float32.
    """
    autocast = torch.autocast('cpu', enabled=dtype == torch.bfloat16)
    dtype = torch.promote_types(dtype, torch.float32)
    dist.init_process_group('gloo', rank=rank, world_size=processes, init_method=f'file://{store}')
    torch.manual_seed(0)
    model = SGFormer(arch=TINY, drop_path_rate=0.0, with_cp=True, frozen_stages=1).to(dtype).train()
    images = torch.randn(3, 4, 3, 70, 50, dtype=dtype)[:, rank * 4 // processes : (rank + 1) * 4 // processes]
    probes = [torch.randn(1, channels, 1, 1, dtype=dtype) for channels in TINY['embed_dims']]
    if wrapper == 'FSDP':
        model = MMFullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device('cpu'))
    elif processes > 1:
        model = MMDistributedDataParallel(model, device_ids=None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(3):
        optimizer.zero_grad()
        with autocast:
            outs = model(images[step])
        sum((out * probe).square().mean() for out, probe in zip(outs, probes, strict=True)).backward()
        if step == 0:
            gradients = named(model, wrapper, grad=True)
        optimizer.step()
    weights = named(model, wrapper, grad=False)
    if rank == 0:
        torch.save((gradients, weights), out)
    dist.destroy_process_group()


def named(model: torch.nn.Module, wrapper: str, grad: bool) -> dict[str, torch.Tensor]:
    """The whole gradients or weights of a model, however it is wrapped."""
    if wrapper == 'FSDP':
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            return named(model.module, '', grad)
    model = getattr(model, 'module', model)
    tensors = {name: p.grad if grad else p.detach() for name, p in model.named_parameters()}
    return {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}


def difference(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """The largest difference of tensors of the same names, relative to the largest number of each."""
    return max(  # FSDP has gradients, zeros, for what is frozen too
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        for name, value in expected.items()
    )


def gradients(args: argparse.Namespace) -> None:
    """DDP and FSDP, with with_cp and a frozen stage, against one process with the whole batch."""
    for dtype, tolerance in [(torch.float32, 1e-4), (torch.float64, 1e-10), (torch.bfloat16, 1e-1)]:
        for wrapper, processes in [('none', 1), ('DDP', 2), ('DDP', 4), ('FSDP', 2), ('FSDP', 4)]:
            name = f'{wrapper}_{processes}_{str(dtype).removeprefix("torch.")}'
            out = args.dir / f'{name}.pth'
            arguments = (processes, wrapper, dtype, args.dir / f'{name}.store', out)
            torch.multiprocessing.start_processes(
                train_in_parallel, arguments, nprocs=processes, start_method='fork'
            )
            found = torch.load(out)
            if processes == 1:
                one = found
            in_gradients, in_weights = (difference(*pair) for pair in zip(one, found, strict=True))
            print(
                f'{name}: {len(found[0])} gradients differ by {in_gradients:.1e}, weights after 3 steps by '
                f'{in_weights:.1e}, of the largest number in each tensor',
                flush=True,
            )
            if in_gradients > tolerance:
                raise SystemExit(1)


def padding(args: argparse.Namespace) -> None:
    """Detect in validation images alone, and padded to the size of a larger, empty one in the batch."""
    cfg = Config.fromfile(args.config)
    set_data_root(cfg, args.data_root)
    cfg.model.data_preprocessor.pad_size_divisor = 1  # no other padding
    cfg.model.backbone.ignore_padding = True
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(read_checkpoint(args.checkpoint)['state_dict'])
    alone: list = []
    for ignore, factor in [(True, 1), *itertools.product((False, True), (1.25, 1.5, 2))]:
        model.backbone.ignore_padding = ignore
        metric, results = METRICS.build(cfg.val_evaluator), []
        metric.dataset_meta = dataset.metainfo
        for data in dataset:
            side = int(factor * max(data['inputs'].shape))
            batch = [data]
            if factor > 1:
                empty = data['data_samples'].clone()
                empty.set_metainfo(dict(img_shape=(side, side), ori_shape=(side, side)))
                batch.append(dict(inputs=torch.zeros(3, side, side, dtype=torch.uint8), data_samples=empty))
            with torch.no_grad():
                results.append(model.test_step(pseudo_collate(batch))[0])
            metric.process({}, [results[-1].to_dict()])
        alone = alone or results
        changes, lost = [], 0
        for before, after in zip(alone, results, strict=True):
            one, other = before.pred_instances, after.pred_instances
            one = one[one.scores > 0.3]
            same = (one.labels[:, None] == other.labels) * box_iou(one.bboxes, other.bboxes)
            lost += int((same.amax(1) < 0.5).sum()) if len(other) else len(one)
            if len(other):
                changes += (one.scores - other.scores[same.argmax(1)]).abs()[same.amax(1) >= 0.5].tolist()
        scores = metric.evaluate(len(dataset))
        print(
            f'padded to {factor} x, {"ignored" if ignore else "which takes part"}: '
            f'{lost} of {lost + len(changes)} detections lost, scores change by '
            f'{np.mean(changes):.4f} on average and {max(changes):.4f} at most, '
            + ', '.join(f'{name} {value:.3f}' for name, value in scores.items() if name.endswith('mAP_50')),
            flush=True,
        )


def main() -> None:
    """Parse the arguments and run one of the subcommands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    for function, count in [(kills, 40), (saves, 30), (ranks, 10), (gradients, 0)]:
        command = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
        command.add_argument('dir', type=Path, help='an empty or new folder')
        if count:
            command.add_argument('--kills', type=int, default=count)
        command.set_defaults(function=function)
    command = commands.add_parser('fuzz', help=fuzz.__doc__.splitlines()[0])
    command.add_argument('--inputs', type=int, default=2000)
    command.add_argument('--seed', type=int, default=0)
    command.set_defaults(function=lambda args: fuzz(args.inputs, args.seed))
    command = commands.add_parser('padding', help=padding.__doc__)
    for name in ('config', 'checkpoint', 'data_root'):
        command.add_argument(name)
    command.set_defaults(function=padding)
    args = parser.parse_args()
    if 'dir' in args:
        args.dir.mkdir(parents=True, exist_ok=True)
        args.dir = args.dir.resolve()
    torch.set_num_threads(1)
    if args.command in ('kills', 'saves'):
        collect_env()  # takes seconds the first time; the runs are forks of this process
    args.function(args)


if __name__ == '__main__':
    main()
