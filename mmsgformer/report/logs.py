"""What MMEngine's logs in a work dir say of a training run."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

Curves = dict[str, list[tuple[int, float]]]

# Of a validation, these are not about training.
_OF_VALIDATION = ('time', 'data_time', 'step')


def read_scalars(file: Path) -> Iterator[dict]:
    """The entries of a scalars.json, oldest first, without a last line that was cut when a run was killed."""
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def read_curves(work_dir: Path) -> Curves:
    """Every number that a run logged, by name: points (iteration, value).

    A validation belongs to the iteration of the training entry before it. Where a resumed run logged an
    iteration again, the newer entry counts.

    Raises:
        FileNotFoundError: The folder has no log of a training run.
    """
    curves: dict[str, dict[int, float]] = {}
    for iteration, entry in _entries(work_dir):
        for key, value in entry.items():
            curves.setdefault(key, {})[iteration] = value
    if not curves:
        raise FileNotFoundError(f'{work_dir} has no */vis_data/scalars.json of a training run')
    return {key: sorted(points.items()) for key, points in curves.items()}


def validated_keys(work_dir: Path) -> set[str]:
    """The numbers that validations logged: the metrics."""
    return {key for _, entry in _entries(work_dir) if 'iter' not in entry for key in entry}


def _entries(work_dir: Path) -> Iterator[tuple[int, dict]]:
    """(iteration, numbers) of everything that the parts of a run logged, validations without their times."""
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        iteration = None
        for entry in read_scalars(file):
            iteration = entry.get('iter', iteration)
            if iteration is None:  # the log of a test
                continue
            kept = entry if 'iter' in entry else {k: v for k, v in entry.items() if k not in _OF_VALIDATION}
            yield iteration, kept


def read_environment(work_dir: Path) -> dict[str, str]:
    """What the newest part of a training run logged of versions, seed, GPUs and processes, by name.

    Empty if there is no log of one.
    """
    parts = [
        file.parents[1]
        for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
        if '"iter"' in file.read_text()
    ]
    logs = [log for part in parts[-1:] for log in sorted(part.glob('*.log'))]
    if not logs:
        return {}
    block = logs[-1].read_text(errors='replace').partition('System environment:')[2]
    block = block.partition('- INFO - Config:')[0]
    return dict(re.findall(r'^    (\w[^:\n]*): (.*)$', block, re.MULTILINE))


def training_cost(curves: Curves) -> dict[str, float]:
    """The median `time` of an iteration in seconds and the largest `memory` in MB, where they are logged."""
    cost = {}
    if 'time' in curves:
        cost['time'] = median(value for _, value in curves['time'])
    if 'memory' in curves:
        cost['memory'] = max(value for _, value in curves['memory'])
    return cost
