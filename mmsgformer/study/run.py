"""Running a study: processes of tools/train.py, tools/test.py and tools/test_corruptions.py in slots.

What is finished is what the folder says, and nothing else is remembered: a run has `trained.json` when its
training came to the end, `tested.json` after its test and `corrupted.json` after that under corruption. So a
study that was killed goes on.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import mmengine
import torch
from mmengine.config import Config
from rich.live import Live
from rich.table import Table

from mmsgformer.checkpoint.files import latest_checkpoint
from mmsgformer.release.flops import count_backbone_macs
from mmsgformer.report.logs import read_scalars
from mmsgformer.study.plan import Job, Run, Study, best_learning_rate, final_runs, known_runs, next_jobs
from mmsgformer.study.results import draw, draw_costs, summarise, to_markdown, write_csv

# In a checkout beside the package, in an installation within it.
TOOLS = Path(__file__).parents[2] / 'tools'
if not (TOOLS / 'train.py').is_file():
    TOOLS = Path(__file__).parents[1] / '.mim' / 'tools'
CORRUPTED = 'corrupt/metrics.json'
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_END = 20


class StudyError(Exception):
    """A study cannot go on; says why and what to do."""


class Finished(NamedTuple):
    """The metric of the runs: on the held-out slice, on the test split, and there under corruption."""

    held_out: dict[Run, float]
    tested: dict[Run, float]
    corrupted: dict[Run, float]


class Process(NamedTuple):
    """A job that runs."""

    job: Job
    popen: subprocess.Popen


def run_study(study: Study, folder: Path) -> list[Job]:
    """Run what is not finished yet, and write the results; returns the jobs that failed.

    Raises:
        StudyError: Another process still writes to a run of this study, or a run has not what is needed.
    """
    running: dict[int, Process] = {}
    failed: list[Job] = []
    with Live(refresh_per_second=2) as live:
        try:
            while True:
                finished = _finished(study, folder)
                waiting = [
                    job
                    for job in next_jobs(study, *finished)
                    if job not in failed and job not in [process.job for process in running.values()]
                ]
                free = [slot for slot in range(study.slots) if slot not in running]
                for slot, job in zip(free, waiting, strict=False):
                    running[slot] = Process(job, _start(study, folder, job, slot))
                live.update(_progress(study, folder, finished, running, failed))
                if not running:
                    write_results(study, folder)  # also where all was finished before
                    return failed
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for slot, process in list(running.items()):
                    peak = _peak_memory_if_ended(process.popen)
                    if peak is None:
                        continue
                    del running[slot]
                    if process.popen.returncode:
                        failed.append(process.job)
                        continue
                    _note(study, folder, process.job, peak)
                    write_results(study, folder)
        finally:
            _end([process.popen for process in running.values()])


def _start(study: Study, folder: Path, job: Job, slot: int) -> subprocess.Popen:
    """Start a job's process, in a group of its own; its output goes to TASK.log in the run's folder."""
    work_dir = folder / job.run.folder
    work_dir.mkdir(parents=True, exist_ok=True)
    log = (work_dir / f'{job.task}.log').open('ab')
    try:
        # Whoever holds the log open, this lock too: it ends with the last process that writes here.
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StudyError(
            f'{work_dir} is being written by a process of this study that was started before: let it end, '
            'or end it'
        ) from error
    environment = {**os.environ, 'OMP_NUM_THREADS': str(study.threads)}
    if job.task == 'corrupt':
        (work_dir / CORRUPTED).unlink(missing_ok=True)  # of one that was interrupted
    if gpus := torch.cuda.device_count():
        visible = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(gpus)))).split(',')
        environment['CUDA_VISIBLE_DEVICES'] = visible[slot % gpus]
    with log:
        return subprocess.Popen(
            command(study, folder, job),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def command(study: Study, folder: Path, job: Job) -> list[str]:
    """The command line of a job."""
    run, work_dir = job.run, folder / job.run.folder
    options = {'randomness.seed': run.seed, **study.options}
    config = study.configs[run.backbone]
    if job.task == 'train':
        options['optim_wrapper.optimizer.lr'] = run.learning_rate
        if study.pretrained:
            options |= {
                'model.backbone.init_cfg.type': 'Pretrained',
                'model.backbone.init_cfg.checkpoint': pretrained_checkpoint(study, run),
                'model.backbone.init_cfg.prefix': 'backbone.',
            }
        arguments = ['train.py', config, '--work-dir', str(work_dir), '--resume']
    else:
        tool = {'test': 'test.py', 'corrupt': 'test_corruptions.py'}[job.task]
        arguments = [tool, config, _checkpoint(work_dir), '--work-dir', str(work_dir / job.task)]
        if job.task == 'corrupt':
            arguments += ['--corruptions', *study.corruptions, '--every', str(study.corrupt_every)]
            arguments += ['--out', str(work_dir / CORRUPTED)]
    arguments += ['--data-root', study.data_root, '--cfg-options']
    arguments += [f'{key}={value}' for key, value in options.items()]
    return [sys.executable, str(TOOLS / arguments[0]), *arguments[1:]]


def pretrained_checkpoint(study: Study, run: Run) -> str:
    """The checkpoint of the other study's tested run of the same backbone and seed.

    Raises:
        StudyError: There is none.
    """
    tested = sorted(Path(study.pretrained, run.backbone).glob(f'lr*_seed{run.seed}/tested.json'))
    if not tested:
        raise StudyError(
            f'{study.pretrained} has no tested run of {run.backbone} with seed {run.seed} to start from: '
            'run that study first'
        )
    return _checkpoint(tested[0].parent)


def _checkpoint(work_dir: Path) -> str:
    """A trained run's last checkpoint. Raises StudyError if it is gone."""
    checkpoint = latest_checkpoint(work_dir)
    if checkpoint is None:
        raise StudyError(
            f'{work_dir} was trained, but its checkpoint is gone: put it back, or remove the folder to '
            'train again'
        )
    return checkpoint


def _peak_memory_if_ended(popen: subprocess.Popen) -> float | None:
    """The peak memory of a process that ended, MB, and its return code in `popen`; None while it runs."""
    pid, status, usage = os.wait4(popen.pid, os.WNOHANG)
    if not pid:
        return None
    popen.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / 1024


def _end(processes: list[subprocess.Popen]) -> None:
    """End processes and all that they started, by force if they take long."""
    for popen in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_END
    for popen in processes:
        try:
            popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()


def _note(study: Study, folder: Path, job: Job, peak: float) -> None:
    """Write down that a job is finished, and what came out."""
    work_dir = folder / job.run.folder
    if job.task == 'train' and _missed_its_validation(work_dir):
        Path(latest_checkpoint(work_dir)).unlink()  # so that it trains the last iterations again
        return
    if job.task == 'test':
        newest = max(path for path in (work_dir / 'test').glob('*/*.json') if path.stem == path.parent.name)
        found = json.loads(newest.read_text())
    elif job.task == 'corrupt':
        results = json.loads((work_dir / CORRUPTED).read_text())
        found = {condition: values[study.metric] for condition, values in results.items()}
        found['mean'] = fmean(value for condition, value in found.items() if condition != 'clean')
    else:
        found = training_record(work_dir, study.metric)
        found.setdefault('memory_mb', round(peak))
        found |= {'commit': _commit(), 'versions': _versions()}
    if job.task == 'test' and study.metric not in found:
        raise StudyError(f'{newest} has no {study.metric}; it has {sorted(found)}')
    file = work_dir / f'{job.task}ed.json'
    scratch = file.with_suffix('.part')
    scratch.write_text(json.dumps(found, indent=1))
    scratch.replace(file)


def training_record(work_dir: Path, metric: str) -> dict:
    """Of a run's logs: `held_out`, its last validation; `seconds` of training; `memory_mb` on a GPU.

    Where it was interrupted, what was logged twice counts once, as it was logged last.

    Raises:
        StudyError: No validation logged the metric.
    """
    held_out, steps = {}, {}
    for entry in scalars(work_dir):
        if 'iter' in entry and 'time' in entry:
            steps[entry['iter']] = entry
        elif metric in entry:
            held_out = {key: entry[key] for key in entry if key not in ('step', 'time', 'data_time')}
    if not held_out:
        raise StudyError(f'{work_dir}: no validation logged {metric}; correct `metric` in the study')
    times = [entry['time'] for entry in steps.values()]
    # A machine that was paused or busy for a while changes a mean, not the median.
    seconds = round(median(times) * max(steps), 1) if times else float('nan')
    record = {'held_out': held_out, 'seconds': seconds}
    if memory := [entry['memory'] for entry in steps.values() if 'memory' in entry]:
        record['memory_mb'] = max(memory)
    return record


def _missed_its_validation(work_dir: Path) -> bool:
    """Whether a run was killed after its last checkpoint and before its validation.

    MMEngine resumes it, sees that nothing is left to train, and validates nothing.
    """
    last = max(path for path in work_dir.iterdir() if (path / 'vis_data').is_dir())
    validated = any('iter' not in entry for entry in scalars(work_dir))
    return not validated and not (last / 'vis_data' / 'scalars.json').exists()


def scalars(work_dir: Path) -> Iterator[dict]:
    """All that a run's training logged, oldest first."""
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        yield from read_scalars(file)


def _commit() -> str:
    """The commit that runs, '-dirty' if files differ from it; '' where there is no repository."""
    git = ['git', '-C', str(TOOLS), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ''


def _versions() -> str:
    python = '.'.join(map(str, sys.version_info[:3]))
    return f'python {python}, torch {torch.__version__}, mmengine {mmengine.__version__}'


def _read(folder: Path, run: Run, task: str) -> dict | None:
    file = folder / run.folder / f'{task}ed.json'
    return json.loads(file.read_text()) if file.exists() else None


def _finished(study: Study, folder: Path) -> Finished:
    """What the folder has of every run that there may be."""
    finished = Finished({}, {}, {})
    rates = study.learning_rates
    for run in (Run(name, rate, seed) for name in study.configs for rate in rates for seed in study.seeds):
        if (trained := _read(folder, run, 'train')) is not None:
            finished.held_out[run] = trained['held_out'][study.metric]
        if (test := _read(folder, run, 'test')) is not None:
            finished.tested[run] = test[study.metric]
        if (corrupted := _read(folder, run, 'corrupt')) is not None:
            finished.corrupted[run] = corrupted['mean']
    return finished


def result_rows(study: Study, folder: Path) -> list[dict]:
    """One row for each trained run: what it was, and every number that came out."""
    rows = []
    held_out = _finished(study, folder).held_out
    for run in known_runs(study, held_out):
        if run not in held_out:
            continue
        trained = _read(folder, run, 'train')
        test = _read(folder, run, 'test') or {}
        corrupted = _read(folder, run, 'corrupt') or {}
        rows.append(
            {
                **run._asdict(),
                **{f'held_out/{key}': value for key, value in trained.pop('held_out').items()},
                **{f'test/{key}': v for key, v in test.items() if key not in ('time', 'data_time')},
                **{f'corrupted/{key}': value for key, value in corrupted.items()},
                **trained,
            }
        )
    return sorted(rows, key=lambda row: list(study.configs).index(row['backbone']))


def write_results(study: Study, folder: Path) -> None:
    """results.csv, results.md and results.png, of what is finished so far."""
    rows, metric = result_rows(study, folder), f'test/{study.metric}'
    write_csv(rows, folder / 'results.csv')
    if tested := _tested(study, folder, rows):
        digits = 3 if all(abs(row[metric]) <= 1 for row in tested) else 1
        table = to_markdown(summarise(tested, metric, study.reference), metric, study.reference, digits)
        (folder / 'results.md').write_text(table)
        draw(tested, metric, folder / 'results.png')


def write_costs(study: Study, folder: Path, shape: tuple[int, int]) -> None:
    """costs.png: what the tested runs reach, clean and corrupted, over their backbones' GMACs.

    Args:
        study: The study.
        folder: Of its runs.
        shape: Height and width of the image that the GMACs are of.
    """
    tested = _tested(study, folder, result_rows(study, folder))
    gmacs = {}
    for name in dict.fromkeys(row['backbone'] for row in tested):
        cfg = Config.fromfile(study.configs[name])
        cfg.merge_from_dict(dict(study.options))
        gmacs[name] = count_backbone_macs(cfg, shape) / 1e9
    metrics, label = [f'test/{study.metric}'], study.metric
    if study.corruptions:  # the same images, clean and corrupted
        metrics = ['corrupted/clean', 'corrupted/mean']
        label += ', clean (filled) and corrupted (hollow)'
    draw_costs(tested, metrics, gmacs, folder / 'costs.png', label)


def _tested(study: Study, folder: Path, rows: list[dict]) -> list[dict]:
    """The rows of final runs that were tested."""
    final = final_runs(study, _finished(study, folder).held_out)
    tested = [row for row in rows if f'test/{study.metric}' in row]
    return [row for row in tested if Run(row['backbone'], row['learning_rate'], row['seed']) in final]


def _progress(
    study: Study,
    folder: Path,
    finished: Finished,
    running: Mapping[int, Process],
    failed: list[Job],
) -> Table:
    """Every run that is known to be needed, and how far it is."""
    table = Table('backbone', 'learning rate', 'seed', 'state', title=str(folder))
    table.add_column(f'held-out {study.metric}', justify='right')
    table.add_column(f'test {study.metric}', justify='right')
    if study.corruptions:
        table.add_column('corrupted', justify='right')
    held_out, tested, corrupted = finished
    columns = finished if study.corruptions else (held_out, tested)
    active = {process.job.run: process.job.task for process in running.values()}
    final = final_runs(study, held_out)
    for run in known_runs(study, held_out):
        if run in active:
            state = f'{active[run]}ing'
            if active[run] == 'train':
                step = max((entry.get('iter', 0) for entry in scalars(folder / run.folder)), default=0)
                state += f', iteration {step}'
        elif wrong := [job.task for job in failed if job.run == run]:
            state = f'{wrong[0]} failed, see {run.folder}/{wrong[0]}.log'
        elif run in tested and (run in corrupted or not study.corruptions):
            state = 'done'
        elif run in tested:
            state = 'tested'
        elif run in held_out:
            lost = best_learning_rate(study, run.backbone, held_out) and run not in final
            state = 'done, another rate is better' if lost else 'trained'
        else:
            state = 'waiting'
        numbers = (f'{found[run]:.4g}' if run in found else '' for found in columns)
        table.add_row(run.backbone, f'{run.learning_rate:g}', str(run.seed), state, *numbers)
    return table
