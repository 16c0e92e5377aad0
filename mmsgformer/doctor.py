"""Says on one screen whether this environment works for mmsgformer, and which command mends what does not.

`python mmsgformer/doctor.py` runs where importing mmsgformer fails: this file needs the standard library
alone, of Python 3.8 or later. What may crash or hang is imported in another process.
"""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import glob
import importlib.metadata
import inspect
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence  # noqa: UP035  for Python 3.8

PYTHONS = ((3, 10), (3, 12))
# The versions that the tests were run with. Of the fork, torch may be any from FORK_TORCH on.
TESTED = {
    'fork': {
        'torch': '2.10.0',
        'torchvision': '0.25.0',
        'onedl-mmcv': '2.3.6',
        'onedl-mmengine': '0.10.12',
        'onedl-mmdetection': '3.5.1',
        'onedl-mmsegmentation': '1.4.2',
        'onedl-mmpretrain': '1.3.6',
    },
    'upstream': {
        'torch': '2.1.2',
        'torchvision': '0.16.2',
        'mmcv': '2.1.0',
        'mmengine': '0.10.7',
        'mmdet': '3.3.0',
        'mmsegmentation': '1.2.2',
        'mmpretrain': '1.2.0',
    },
}
FORK_TORCH = (2, 6)
# The distributions of each package: the fork's, upstream's, and others that write to the same folder.
DISTRIBUTIONS = {
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}
OPENCV = (
    'opencv-python',
    'opencv-python-headless',
    'opencv-contrib-python',
    'opencv-contrib-python-headless',
)
FRAMEWORKS = ('mmdet', 'mmseg', 'mmpretrain')
REQUIRED = ('torch', 'mmengine', 'mmsgformer')
# In the order in which they need each other. The frameworks' `models` import what they all fail at.
IMPORTS = ('numpy', 'torch', 'torchvision', 'cv2', 'mmengine', 'mmcv', 'mmcv._ext')
IMPORTS += (*(f'{framework}.models' for framework in FRAMEWORKS), 'mmsgformer')
IMPORT_SECONDS = 300  # all imports together: minutes on a cold network disk
# Where pip's name is another than the module's.
PIP_NAMES = {'cv2': 'opencv-python-headless', 'yaml': 'pyyaml', 'PIL': 'pillow', 'sklearn': 'scikit-learn'}
PIP_NAMES['pkg_resources'] = 'setuptools<82'  # the last with it
GIB = 2**30


@dataclass
class Module:
    """What came of importing a module."""

    version: str | None
    file: str | None  # None if it is not installed, empty if that is not known
    errors: list[str]  # what was raised, its cause, the cause's cause: first lines; empty if it imports


@dataclass
class Facts:
    """What is there, without a judgement. Sizes are in bytes."""

    python: str
    pip: str  # the command that installs into this environment
    checkout: str | None  # the folder with setup.py, if this is one
    system: str
    modules: dict[str, Module]
    distributions: dict[str, str]
    torch_cuda: str | None = None  # of torch's build
    cuda_works: bool = False
    cuda_error: str | None = None
    numpy_error: str | None = None  # of a tensor's conversion
    mmcv_cuda: bool = False  # mmcv has operators for CUDA
    owners: dict[str, str] = field(default_factory=dict)  # scope: the file that registered another SGFormer
    gpus: list[str] = field(default_factory=list)
    gpus_hidden: bool = False
    nvcc: str | None = None
    c_compiler: str | None = None
    python_headers: bool = False
    shadowing: list[str] = field(default_factory=list)  # libraries on LD_LIBRARY_PATH that torch brings too
    free: dict[str, int] = field(default_factory=dict)  # by folder
    shared_memory: int | None = None
    in_container: bool = False
    cores: int = 1
    threads: int = 1  # that torch computes with, in each process


@dataclass
class Finding:
    """One trouble: an `error` stops something from working, a `warning` may."""

    level: str
    name: str
    what: str
    command: str


# --- facts ---


def import_all(names: list) -> None:
    """Import the modules in turn and print a line of JSON on each, then one on what torch and mmcv can do.

    Runs in a process of its own, by its source, so it needs all that it uses inside.
    """
    import importlib
    import importlib.util
    import json
    import os
    import sys
    import warnings

    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what the imports print does not belong to the answer
    sys.path[:] = [folder for folder in sys.path if folder]  # as tools/*.py: not the working folder

    def first_lines(error):
        lines = []
        while error is not None:
            text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            lines.append((text.strip() or type(error).__name__).splitlines()[0][:300])
            error = error.__cause__ or error.__context__
        return lines

    def attempt(action):
        try:
            return action(), None
        except Exception as error:
            return None, first_lines(error)[0]

    def cuda():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            works = torch.version.cuda is not None and torch.cuda.is_available()  # not ROCm
        error = str(caught[0].message).splitlines()[0] if caught else None
        if works:
            _, error = attempt(lambda: torch.zeros(1, device='cuda').add(1).item())
        return {'torch_cuda': torch.version.cuda, 'cuda_works': works, 'cuda_error': error}

    def owners():
        models = sys.modules['mmengine.registry'].MODELS
        found = {r.scope: r.module_dict.get('SGFormer') for r in (models, *models.children.values())}
        homes = {scope: owner.__module__ for scope, owner in found.items() if owner}
        return {
            scope: sys.modules[home].__file__
            for scope, home in homes.items()
            if not home.startswith('mmsgformer.')
        }

    for name in names:
        top, file, errors = name.split('.')[0], None, []
        try:
            spec = importlib.util.find_spec(top)
            file = spec.origin if spec else None
            if file is None:
                raise ModuleNotFoundError(f"No module named '{top}'")
            importlib.import_module(name)
        except BaseException as error:
            errors = first_lines(error)
        version = getattr(sys.modules.get(top), '__version__', None)
        print(json.dumps({'version': version, 'file': file, 'errors': errors}), file=out, flush=True)

    torch, ext = sys.modules.get('torch'), sys.modules.get('mmcv._ext')
    more = (attempt(cuda)[0] or {}) if torch else {}
    more['numpy_error'] = attempt(lambda: torch.zeros(1).numpy())[1] if torch else None
    more['mmcv_cuda'] = attempt(lambda: ext.get_compiling_cuda_version())[0] not in (None, 'not available')
    more['owners'] = attempt(owners)[0] or {}
    print(json.dumps(more), file=out, flush=True)


def try_imports(
    names: Sequence[str] = IMPORTS, seconds: float = IMPORT_SECONDS
) -> tuple[dict[str, Module], dict[str, Any]]:
    """What came of importing each, and the Facts that need the imports.

    After a crash, or when the time is up, the modules that were left have the same error.
    """
    program = f'{inspect.getsource(import_all)}\nimport_all({list(names)})'
    try:
        done = subprocess.run([sys.executable, '-c', program], capture_output=True, timeout=seconds)
        out, log = done.stdout, done.stderr
        end = f'crashed by signal {-done.returncode}' if done.returncode < 0 else 'ended Python'
    except subprocess.TimeoutExpired as error:
        out, log, end = error.stdout or b'', error.stderr or b'', f'not done after {seconds:g} s'
    answers = [json.loads(line) for line in out.splitlines(keepends=True) if line.endswith(b'\n')]
    modules = {name: Module(**answer) for name, answer in zip(names, answers)}  # noqa: B905  not before 3.10
    last_words = log.decode(errors='replace').strip().splitlines()[-1:]
    reason = ': '.join([end, *last_words])
    modules.update({name: Module(None, '', [reason]) for name in names[len(answers) :]})
    return modules, answers[-1] if len(answers) > len(names) else {'cuda_error': reason}


def output_of(*command: str) -> str:
    """What a program prints, or nothing if there is none, it fails or it hangs."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)
        return done.stdout.decode(errors='replace')
    except (OSError, subprocess.SubprocessError):
        return ''


def find_gpus() -> list[str]:
    """The names of NVIDIA's GPUs, whether torch can use them or not."""
    named = re.findall(r'^GPU \d+: (.*?)(?: \(UUID.*)?$', output_of('nvidia-smi', '-L'), re.MULTILINE)
    return named or ['NVIDIA GPU'] * len(glob.glob('/proc/driver/nvidia/gpus/*'))


def find_nvcc() -> str | None:
    """The version of the CUDA compiler that torch would take."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    nvcc = f'{home}/bin/nvcc' if home else shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'
    release = re.search(r'release (\d+\.\d+)', output_of(nvcc, '--version'))
    return release and release.group(1)


def find_shadowing(torch_file: str | None) -> list[str]:
    """Libraries on LD_LIBRARY_PATH that the loader may take instead of those that torch brings."""
    site = os.path.dirname(os.path.dirname(os.path.realpath(torch_file or '/')))
    ours = glob.glob(f'{site}/torch/lib/*.so*') + glob.glob(f'{site}/nvidia/*/lib/*.so*')
    names = {os.path.basename(library) for library in ours} | {'libstdc++.so.6'}
    searched_anyway = (f'{site}/', f'{os.path.realpath(sys.prefix)}/lib/', '/usr/lib', '/lib')
    found = []
    for folder in filter(None, os.environ.get('LD_LIBRARY_PATH', '').split(':')):
        for library in sorted(glob.glob(f'{glob.escape(folder)}/*.so*')):
            own = os.path.realpath(library).startswith(searched_anyway)
            if os.path.basename(library) in names and not own:
                found.append(library)
    return found


def cpu_quota() -> float:
    """The number of cores that the control groups allow, as in a container; infinite without a limit."""
    own_group = Path('/proc/self/cgroup')
    groups = re.findall(r'^0::(.*)$', own_group.read_text() if own_group.exists() else '', re.MULTILINE)
    folder = Path('/sys/fs/cgroup' + ''.join(groups))
    quotas = [math.inf]
    for limit in (one / 'cpu.max' for one in (folder, *folder.parents)):
        quota, _, period = limit.read_text().partition(' ') if limit.exists() else ('max', '', '')
        if quota != 'max':
            quotas.append(int(quota) / int(period))
    return min(quotas)


def free_space() -> dict[str, int]:
    """Bytes free in the working folder and the folder for temporary files."""
    free = {os.getcwd(): shutil.disk_usage(os.getcwd()).free}
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # it tried to write there
        return {**free, '/tmp': 0}
    return {**free, temporary: shutil.disk_usage(temporary).free}


def facts() -> Facts:
    """Look at everything; takes as long as importing the frameworks."""
    modules, more = try_imports()
    # The first on the path is the one that counts.
    distributions = {
        re.sub('[-_.]+', '-', one.metadata['Name'] or '').lower(): one.version
        for one in reversed(list(importlib.metadata.distributions()))
    }
    pip = os.path.join(os.path.dirname(sys.executable), 'pip')
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    threads = re.match(r'\d+', os.environ.get('OMP_NUM_THREADS', ''))
    return Facts(
        python=platform.python_version(),
        pip='pip' if shutil.which('pip') == pip else f'{sys.executable} -m pip',
        checkout=root if os.path.exists(f'{root}/setup.py') else None,
        system=f'{platform.system()} {platform.release()} {platform.machine()}',
        modules=modules,
        distributions=distributions,
        gpus=find_gpus(),
        gpus_hidden=os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'),
        nvcc=find_nvcc(),
        c_compiler=os.environ.get('CC') or shutil.which('gcc') or shutil.which('clang'),
        python_headers=os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')),
        shadowing=find_shadowing(modules['torch'].file),
        free=free_space(),
        shared_memory=shutil.disk_usage('/dev/shm').free if os.path.isdir('/dev/shm') else None,
        in_container=os.path.exists('/.dockerenv') or os.path.exists('/run/.containerenv'),
        cores=max(1, math.ceil(min(usable, cpu_quota()))),
        threads=int(threads.group()) if threads else usable,
        **more,
    )


# --- what the diagnoses share ---


def numbers(version: str | None) -> tuple[int, ...]:
    """'2.11.0+cu130' as (2, 11, 0)."""
    return tuple(int(part) for part in re.findall(r'\d+', (version or '').split('+')[0])[:3])


def installed(facts: Facts, package: str) -> list[str]:
    """The distributions of a package that are there."""
    return [name for name in DISTRIBUTIONS[package] if name in facts.distributions]


def stack_of(facts: Facts) -> str:
    """'fork' or 'upstream': whose packages these are."""
    found = [name for package in DISTRIBUTIONS for name in installed(facts, package)]
    return 'upstream' if found and not any(name.startswith('onedl-') for name in found) else 'fork'


def stack_of_package(facts: Facts, package: str) -> str:
    """Whose the package is that is there."""
    return 'fork' if any(name.startswith('onedl-') for name in installed(facts, package)) else 'upstream'


def tested(facts: Facts, package: str) -> tuple[str, str]:
    """The distribution of a package and its version that go with the others here."""
    table = TESTED[stack_of(facts)]
    name = next(name for name in DISTRIBUTIONS.get(package, (package,)) if name in table)
    return name, table[name]


def install(facts: Facts, *packages: str, options: str = '') -> str:
    """The command for the tested versions; it removes other distributions of the same packages first."""
    wanted = [tested(facts, package) for package in packages]
    names = [name for name, _ in wanted]
    others = [
        name
        for package in packages
        if package in DISTRIBUTIONS
        for name in installed(facts, package)
        if name not in names or len(installed(facts, package)) > 1
    ]
    steps = [f'{facts.pip} uninstall -y {" ".join(others)}'] if others else []
    if 'mmcv' in packages:  # compiled against the torch that is there; pip may have cached another
        options = f'{options} --no-build-isolation --no-cache-dir'
        setuptools = numbers(facts.distributions.get('setuptools'))
        if not setuptools or setuptools >= (82,):
            steps.append(f'{facts.pip} install "setuptools>=77,<82" wheel ninja psutil')
    pins = ' '.join(f'{name}=={version}' for name, version in wanted)
    return ' && '.join([*steps, ' '.join(f'{facts.pip} install {options} {pins}'.split())])


def has_framework(facts: Facts) -> bool:
    """Whether there is more than the backbone to run."""
    return any(facts.modules[f'{framework}.models'].file for framework in FRAMEWORKS)


# --- why imports fail ---


class Cause(NamedTuple):
    """Why an import fails: what it says, after the module's name, and what mends it.

    `what` may use {package}, {error} and {found}, the pattern's group; `command` has the facts, the package
    and the match.
    """

    pattern: str
    name: str
    what: str
    command: Callable[[Facts, str, re.Match], str]


def rebuild_mmcv(facts: Facts, *_: object) -> str:
    """Against the torch that is there."""
    return install(facts, 'mmcv', options='--force-reinstall --no-deps')


def accepted(facts: Facts, package: str, match: re.Match) -> str:
    """The version that the package accepts; both of one stack, where they are not."""
    rejected = match.group(1).lower()
    if stack_of_package(facts, package) == stack_of_package(facts, rejected):
        return install(facts, rejected)
    return install(facts, rejected, package)


def headless_opencv(facts: Facts, *_: object) -> str:
    """The build that needs no libraries of a desktop, over the files of the other."""
    versions = [facts.distributions[name] for name in OPENCV if name in facts.distributions]
    pin = f'=={versions[0]}' if versions else ''
    return f'{facts.pip} install --no-deps --force-reinstall opencv-python-headless{pin}'


def other_numpy(facts: Facts, *_: object) -> str:
    """NumPy 1 instead of 2, or the reverse."""
    return f'{facts.pip} install "numpy{"<" if numbers(facts.distributions.get("numpy")) >= (2,) else ">="}2"'


def torchvision_of_torch(facts: Facts, *_: object) -> str:
    """torchvision 0.(15 + n).m is built with torch 2.n.m; of the same kind of wheel, CUDA or CPU."""
    version = facts.modules['torch'].version or tested(facts, 'torch')[1]
    _, minor, patch = numbers(version)
    kind = version.partition('+')[2]  # as in 2.11.0+cpu
    index = f' --index-url https://download.pytorch.org/whl/{kind}' if re.match(r'cpu$|cu\d+$', kind) else ''
    return f'{facts.pip} install --no-deps --force-reinstall torchvision==0.{15 + minor}.{patch}{index}'


def add(facts: Facts, _: str, match: re.Match) -> str:
    """A module that is not there."""
    needed = match.group(1)
    if needed in DISTRIBUTIONS or needed in TESTED['fork']:
        return install(facts, needed)
    return f'{facts.pip} install "{PIP_NAMES.get(needed, needed)}"'


def reinstall(facts: Facts, package: str, _: re.Match) -> str:
    """What is broken in an unknown way."""
    if package in DISTRIBUTIONS or package in TESTED['fork']:
        return install(facts, package, options='--force-reinstall --no-deps')
    return f'{facts.pip} install --force-reinstall --no-deps {PIP_NAMES.get(package, package)}'


CAUSES = (
    Cause(
        r"No module named 'mmcv\._ext'",
        'mmcv without operators',
        'mmcv has no compiled operators: it is mmcv-lite, or was built with MMCV_WITH_OPS=0',
        lambda facts, *_: f'export MMCV_WITH_OPS=1; {rebuild_mmcv(facts)}',
    ),
    Cause(
        r'^mmcv\._ext: .*(undefined symbol|cannot open shared object|DLL load failed|not found)',
        'mmcv of another torch',
        'mmcv was compiled for another torch: {error}',
        rebuild_mmcv,
    ),
    Cause(r'(MMCV|MMEngine)==.* is used but incompatible', '{package} rejects {found}', '{error}', accepted),
    Cause(
        r'(lib(?:GL|gthread|glib|SM|Xext|Xrender)\b[^:]*): cannot open shared object',
        'OpenCV without a desktop',
        "OpenCV's desktop build needs {found}, which is not there",
        headless_opencv,
    ),
    Cause(
        r'numpy\.dtype size changed|_ARRAY_API|numpy\.core\.multiarray|compiled using NumPy',
        'another NumPy',
        '{package} was compiled for another NumPy: {error}',
        other_numpy,
    ),
    Cause(
        r'torchvision::',
        'torchvision of another torch',
        'torchvision was built for another torch: {error}',
        torchvision_of_torch,
    ),
    Cause(
        r'iJIT_NotifyEvent',
        'MKL',
        "conda's MKL is newer than this torch can use: {error}",
        lambda *_: 'conda install "mkl<2024.1"',
    ),
    Cause(
        r'is already registered in .* at (\S+)',
        'registered twice',
        '{error}; take that registration out',
        lambda facts, _, match: f'grep -n register_module {facts.owners.get("mmengine", match.group(1))}',
    ),
    Cause(
        r"'(\S+)' is not a valid value for backend",
        'MPLBACKEND',
        'MPLBACKEND names a backend of another environment, as in a notebook: {found}',
        lambda *_: 'export MPLBACKEND=agg',
    ),
    Cause(
        r"No module named '(\w+)'",
        'no {found}',
        '{package} needs {found}, which is not installed',
        add,
    ),
    Cause(r'', '{package} fails', 'importing {package}: {error}', reinstall),
)


# --- diagnoses: each yields what it finds ---


def python_version(facts: Facts) -> Iterator[Finding]:
    """Outside the range of setup.py."""
    low, high = ('.'.join(map(str, version)) for version in PYTHONS)
    if not PYTHONS[0] <= numbers(facts.python)[:2] <= PYTHONS[1]:
        what = f'Python {facts.python} is outside {low}-{high}, which the package supports'
        yield Finding('error', 'python', what, 'make setup PYTHON=python3.11')


def missing(facts: Facts) -> Iterator[Finding]:
    """What the backbone needs."""
    commands = {
        'torch': install(facts, 'torch', 'torchvision'),
        'mmengine': install(facts, 'mmengine'),
        'mmsgformer': f'{facts.pip} install --no-deps -e {facts.checkout or "CHECKOUT"}',
    }
    for name in REQUIRED:
        if facts.modules[name].file is None:
            yield Finding('error', f'no {name}', f'{name} is not installed', commands[name])


def two_distributions(facts: Facts) -> Iterator[Finding]:
    """One wrote over the other's files, and uninstalling either breaks both."""
    for package in DISTRIBUTIONS:
        found = installed(facts, package)
        if len(found) > 1:
            what = f'{" and ".join(found)} are both installed, into one folder'
            yield Finding('error', f'two of {package}', what, install(facts, package))
    # Of one version they have the same modules, whichever was last: `make setup` leaves such a pair.
    found = {name: facts.distributions[name] for name in OPENCV if name in facts.distributions}
    if len(set(found.values())) > 1:
        what = ' and '.join(f'{name} {version}' for name, version in found.items())
        keep = found.get('opencv-python-headless', max(found.values(), key=numbers))
        command = f'{facts.pip} uninstall -y {" ".join(found)} && '
        command += f'{facts.pip} install opencv-python-headless=={keep}'
        yield Finding('warning', 'two of cv2', f'{what} are mixed in one folder', command)


def failed_imports(facts: Facts) -> Iterator[Finding]:
    """Each cause once: what fails because of an earlier failure says the same, or has it as its cause."""
    seen = {f"No module named '{name}'" for name in REQUIRED if facts.modules[name].file is None}  # `missing`
    for module, result in facts.modules.items():
        if result.file is None:
            continue
        if result.errors and not seen & set(result.errors):
            yield explain(facts, module, result.errors)
        seen |= set(result.errors)


def explain(facts: Facts, module: str, errors: list[str]) -> Finding:
    """The finding for an import that failed, by the first of CAUSES that its errors fit."""
    text = f'{module}: {" / ".join(errors)}'
    matches = ((cause, re.search(cause.pattern, text)) for cause in CAUSES)
    cause, match = next((cause, match) for cause, match in matches if match)
    words = {
        'package': module.split('.')[0],
        'error': errors[0],
        'found': match.group(match.lastindex or 0),
    }
    level = 'warning' if module.startswith('mmcv') and not has_framework(facts) else 'error'
    command = cause.command(facts, words['package'], match)
    return Finding(level, cause.name.format(**words), cause.what.format(**words), command)


def untested_versions(facts: Facts) -> Iterator[Finding]:
    """Another combination than the tests were run with; it may well work."""
    wrong = {}
    for package in ('torch', *DISTRIBUTIONS):
        name, version = tested(facts, package)
        found = [one for one in DISTRIBUTIONS.get(package, (package,)) if one in facts.distributions]
        if len(found) != 1 or found[0] == 'mmcv-lite':  # other diagnoses
            continue
        here = facts.distributions[found[0]].partition('+')[0]
        recent = package == 'torch' and stack_of(facts) == 'fork' and numbers(here) >= FORK_TORCH
        if (found[0], here) != (name, version) and not recent:
            wrong[package] = f'{found[0]} {here} (tested: {name} {version})'
    if wrong:
        packages = [*wrong, 'torchvision'] if 'torch' in wrong else list(wrong)
        what = f'not tested together: {", ".join(wrong.values())}'
        yield Finding('warning', 'versions', what, install(facts, *packages))


def numpy_of_another_time(facts: Facts) -> Iterator[Finding]:
    """NumPy 2 beside what was compiled for NumPy 1."""
    numpy, torch = numbers(facts.distributions.get('numpy')), numbers(facts.distributions.get('torch'))
    mmcv = [numbers(facts.distributions[name]) for name in installed(facts, 'mmcv')]
    old = 'torch' if torch and torch < (2, 3) else 'mmcv' if mmcv and mmcv[0] < (2, 2) else None
    if facts.numpy_error or (numpy >= (2,) and old):
        level = 'error' if facts.numpy_error or old == 'torch' else 'warning'
        what = facts.numpy_error or f'{old} was compiled for NumPy 1'
        yield Finding(
            level, 'NumPy 2', f'NumPy {facts.distributions.get("numpy")}: {what}', other_numpy(facts)
        )


def old_mmengine(facts: Facts) -> Iterator[Finding]:
    """Its checkpoints hold more than torch.load reads by default since 2.6."""
    found = installed(facts, 'mmengine')
    old = found and numbers(facts.distributions[found[0]]) < (0, 10, 8)
    if old and numbers(facts.distributions.get('torch')) >= (2, 6):
        what = (
            f'{found[0]} {facts.distributions[found[0]]} cannot resume its own checkpoints with torch '
            f'{facts.distributions["torch"]}, except where mmsgformer is imported'
        )
        packages = ('mmengine',) if stack_of(facts) == 'fork' else ('torch', 'torchvision')
        yield Finding('warning', 'old mmengine', what, install(facts, *packages))


def other_sgformer(facts: Facts) -> Iterator[Finding]:
    """A framework's own registry comes before the root, where mmsgformer's is."""
    for scope, file in facts.owners.items():
        if scope != 'mmengine':  # there, importing mmsgformer failed: see CAUSES
            what = f'{scope} builds the SGFormer of {file}, not this one; take its registration out'
            yield Finding('error', 'another SGFormer', what, f'grep -n register_module {file}')


def torch_and_the_gpu(facts: Facts) -> Iterator[Finding]:
    """A GPU that torch cannot use."""
    if facts.modules['torch'].file is None or facts.modules['torch'].errors:
        return
    version = facts.modules['torch'].version
    if facts.gpus and facts.torch_cuda is None and not facts.cuda_error:
        what = f'{facts.gpus[0]} is there, but torch {version} is built for the CPU only'
        command = install(facts, 'torch', 'torchvision', options='--force-reinstall')
        yield Finding('warning', 'torch without CUDA', what, command)
    elif facts.gpus and not facts.gpus_hidden and (facts.cuda_error or not facts.cuda_works):
        error = facts.cuda_error or 'no reason given'
        if 'too old' in error:  # driver or GPU, for this build's CUDA: the oldest that there are wheels for
            kind = 'cu126' if stack_of(facts) == 'fork' else 'cu118'
            command = install(facts, 'torch', 'torchvision', options='--force-reinstall')
            command += f' --index-url https://download.pytorch.org/whl/{kind}'
        else:
            newer = 'no kernel image' in error or 'not compatible' in error
            command = install(facts, 'torch', 'torchvision') if newer else 'nvidia-smi'
        what = f'torch {version} (CUDA {facts.torch_cuda}) cannot use {facts.gpus[0]}: {error}'
        yield Finding('error', 'torch and the GPU', what, command)


def mmcv_without_cuda(facts: Facts) -> Iterator[Finding]:
    """Compiled where no GPU was seen; to compile it takes the CUDA compiler."""
    ext = facts.modules['mmcv._ext']
    if facts.cuda_works and ext.file and not ext.errors and not facts.mmcv_cuda:
        what = 'mmcv has operators for the CPU only, detectors need them on the GPU'
        command = install(facts, 'mmcv', options='--force-reinstall --no-deps')
        if facts.nvcc is None or numbers(facts.nvcc)[:1] != numbers(facts.torch_cuda)[:1]:
            what += f"; to compile them takes nvcc of torch's CUDA {facts.torch_cuda}, here: {facts.nvcc}"
            command = f'apt-get install cuda-toolkit-{(facts.torch_cuda or "").replace(".", "-")}'
        yield Finding('error' if has_framework(facts) else 'warning', 'mmcv without CUDA', what, command)


def triton(facts: Facts) -> Iterator[Finding]:
    """It compiles a launcher for its kernels on the machine that runs them."""
    if facts.cuda_works and not (facts.c_compiler and facts.python_headers):
        lacking = 'Python.h' if facts.c_compiler else 'C compiler'
        what = f'no {lacking}: Triton cannot compile, significance on the GPU is slower'
        yield Finding('warning', 'Triton', what, 'apt-get install gcc python3-dev')


def library_path(facts: Facts) -> Iterator[Finding]:
    """LD_LIBRARY_PATH comes before what the wheels bring."""
    if facts.shadowing:
        more = f' and {len(facts.shadowing) - 1} more' if len(facts.shadowing) > 1 else ''
        what = f"LD_LIBRARY_PATH has {facts.shadowing[0]}{more}, which may be loaded instead of torch's own"
        yield Finding('warning', 'LD_LIBRARY_PATH', what, 'unset LD_LIBRARY_PATH')


def space(facts: Facts) -> Iterator[Finding]:
    """Checkpoints, temporary files, and the memory through which data loaders pass batches."""
    for folder, free in facts.free.items():
        if free < 5 * GIB:
            command = 'export TMPDIR=/LARGER/DISK'
            if folder == next(iter(facts.free)):  # the working folder
                command = 'python tools/train.py CONFIG --work-dir /LARGER/DISK'
            yield Finding('warning', 'disk', f'{free / GIB:.1f} GiB free in {folder}', command)
    shared = facts.shared_memory
    if shared is not None and shared < GIB:
        what = f'{shared / 2**20:.0f} MiB of shared memory, through which data loader workers pass batches'
        container = facts.in_container
        command = 'docker run --shm-size=8g ...' if container else 'sudo mount -o remount,size=8g /dev/shm'
        yield Finding('warning', '/dev/shm', what, command)


def threads(facts: Facts) -> Iterator[Finding]:
    """More threads than cores wait for each other."""
    if facts.threads > facts.cores:
        what = f'torch computes with {facts.threads} threads on {facts.cores} cores'
        yield Finding('warning', 'threads', what, f'export OMP_NUM_THREADS={facts.cores}')


DIAGNOSES = (
    python_version,
    missing,
    two_distributions,
    failed_imports,
    numpy_of_another_time,
    other_sgformer,
    torch_and_the_gpu,
    mmcv_without_cuda,
    triton,
    old_mmengine,
    untested_versions,
    library_path,
    space,
    threads,
)


def diagnose(facts: Facts) -> list[Finding]:
    """The findings, errors first; of those that one command mends, the first."""
    found: dict[str, Finding] = {}
    for finding in (finding for diagnosis in DIAGNOSES for finding in diagnosis(facts)):
        found.setdefault(finding.command, finding)
    return sorted(found.values(), key=lambda finding: finding.level)


# --- the screen ---


def without_home(text: str) -> str:
    """The text with `~` for the user's folder."""
    for home in {os.path.expanduser('~'), os.path.realpath(os.path.expanduser('~'))}:
        if len(home) > 1:
            text = re.sub(re.escape(home) + r'(?![\w.-])', '~', text)
    return text


def without_user(text: str) -> str:
    """The text without the user's folder and name, which an issue report does not need."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # no such name
        user = 'root'
    text = without_home(text)
    return text if user == 'root' else re.sub(rf'(?<![\w.-]){re.escape(user)}(?![\w.-])', 'USER', text)


def screen(facts: Facts, findings: Sequence[Finding]) -> str:
    """What is there in aligned columns, then each trouble with its command."""
    cuda = f'CUDA {facts.torch_cuda}' if facts.torch_cuda else 'CPU only'
    notes = {
        'torch': f'{cuda}, {len(facts.gpus)} x {facts.gpus[0]}' if facts.gpus else f'{cuda}, no GPU here',
        'mmcv': f'{"CUDA and CPU" if facts.mmcv_cuda else "CPU"} operators',
        'mmsgformer': os.path.dirname(facts.modules['mmsgformer'].file or ''),
    }
    rows = [('python', facts.python, sys.executable)]
    for module, result in facts.modules.items():
        package = module.split('.')[0]
        if module == 'mmcv._ext' or (result.file is None and package not in REQUIRED):
            continue
        names = DISTRIBUTIONS.get(package, OPENCV if package == 'cv2' else (package,))
        sources = [name for name in names if name in facts.distributions]
        note = [*(name for name in sources if name != package), notes.get(package, '')]
        if result.errors:
            note = ['does not import' if result.file else 'not installed']
        version = facts.distributions.get(sources[0]) if sources else result.version
        rows.append((package, version or '-', ', '.join(filter(None, note))))
    if not has_framework(facts):
        rows.append(('frameworks', '-', 'backbone only: no mmdet, mmseg, mmpretrain'))
    nvcc = f'nvcc {facts.nvcc}' if facts.nvcc else 'no nvcc'
    compiler = os.path.basename(facts.c_compiler or 'no C compiler')
    headers = 'Python.h' if facts.python_headers else 'no Python.h'
    rows.append(('compilers', '', f'{compiler}, {nvcc}, {headers}'))
    rows.append(('cores', str(facts.cores), f'torch computes with {facts.threads}'))
    free = {**facts.free, **({} if facts.shared_memory is None else {'/dev/shm': facts.shared_memory})}
    rows.append(('free', '', ', '.join(f'{size / GIB:.1f} GiB in {folder}' for folder, size in free.items())))

    lines = [f'{name:<12}{version:<12}{note}'.rstrip() for name, version, note in rows]
    for finding in findings:
        lines += ['', f'{finding.level}: {finding.name}: {finding.what}', f'    {finding.command}']
    errors = sum(finding.level == 'error' for finding in findings)
    verdict = 'mend the first, then run this again' if errors else 'this environment works for mmsgformer'
    lines += ['', f'errors: {errors}, warnings: {len(findings) - errors}; {verdict}']
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the screen, or JSON; returns 1 if there is an error."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--json', action='store_true', help='facts and findings for an issue report')
    arguments = parser.parse_args(argv)
    found = facts()
    findings = diagnose(found)
    if arguments.json:
        report = {'facts': dataclasses.asdict(found), 'findings': [dataclasses.asdict(f) for f in findings]}
        print(without_user(json.dumps(report, indent=1)))
    else:
        print(without_home(screen(found, findings)))
    return int(any(finding.level == 'error' for finding in findings))


if __name__ == '__main__':
    sys.exit(main())
