"""Every diagnosis of the doctor, each in an environment of its own that has the trouble.

The environments are a Python without packages and small stand-ins on PYTHONPATH; what has to be told apart
are versions, files and what an import says.
"""

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

from mmsgformer import doctor

ROOT = Path(__file__).parents[1]
DOCTOR = ROOT / 'mmsgformer' / 'doctor.py'
MACHINE = {'disk', '/dev/shm', 'threads'}  # what the machine that runs the tests may have
TORCH_PINS = 'torch==2.10.0 torchvision==0.25.0'
PINNED_TORCH = f'pip install {TORCH_PINS}'
FORCED = 'pip install --force-reinstall'
NEW_MMCV = 'pip install --no-build-isolation --no-cache-dir onedl-mmcv==2.3.6'
REBUILT_MMCV = f'{FORCED} --no-deps --no-build-isolation --no-cache-dir onedl-mmcv==2.3.6'
FROM_LITE = f'pip uninstall -y mmcv-lite && {REBUILT_MMCV}'
TOOLS = 'pip install "setuptools>=77,<82" wheel ninja psutil'
LIBGL = 'libGL.so.1: cannot open shared object file: No such file or directory'
H100 = '#!/bin/sh\necho "GPU 0: NVIDIA H100 (UUID: GPU-1)"\n'
NVCC = '#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n'

TORCH = """
    __version__ = '2.11.0+cu130'
    class Number:
        def __getattr__(self, name): return lambda *args: self
    def zeros(*args, device='cpu'): return Number()
    class version: cuda = '13.0'
    class cuda:
        @staticmethod
        def is_available(): return False
"""
CUDA_TORCH = TORCH.replace('return False', 'return True')
MMENGINE = """
    class Registry:
        def __init__(self, scope):
            self.scope, self.module_dict, self.children = scope, {}, {}
    MODELS = Registry('mmengine')
    MODELS.children['mmseg'] = Registry('mmseg')
"""
FORK = {
    'numpy': ('numpy', '2.2.6'),
    'torch': ('torch', '2.11.0'),
    'torchvision': ('torchvision', '0.26.0'),
    'cv2': ('opencv-python-headless', '4.12.0.88'),
    'mmengine': ('onedl-mmengine', '0.10.12'),
    'mmcv': ('onedl-mmcv', '2.3.6'),
    'mmdet': ('onedl-mmdetection', '3.5.1'),
    'mmseg': ('onedl-mmsegmentation', '1.4.2'),
    'mmpretrain': ('onedl-mmpretrain', '1.3.6'),
    'mmsgformer': ('mmsgformer', '0.1.0'),
}
UPSTREAM = {
    **FORK,
    'numpy': ('numpy', '1.26.4'),
    'torch': ('torch', '2.1.2'),
    'torchvision': ('torchvision', '0.16.2'),
    'mmengine': ('mmengine', '0.10.7'),
    'mmcv': ('mmcv', '2.1.0'),
    'mmdet': ('mmdet', '3.3.0'),
    'mmseg': ('mmsegmentation', '1.2.2'),
    'mmpretrain': ('mmpretrain', '1.2.0'),
}


class Environment:
    """A Python, stand-ins for packages, a folder of programs, and the variables that bring them together."""

    def __init__(self, folder: Path, python: Path) -> None:
        """`folder` is empty, `python` has no packages."""
        self.site, self.bin, self.python = folder / 'site', folder / 'bin', python
        self.bin.mkdir()
        self.variables = {
            'PATH': str(self.bin),
            'PYTHONPATH': str(self.site),
            'HOME': str(folder),
            'CC': 'gcc',
            'CUDA_HOME': str(folder / 'no_cuda'),
            'CUDA_VISIBLE_DEVICES': '',
            'OMP_NUM_THREADS': '1',
        }

    def write(self, path: str, text: str) -> None:
        """A file of a package."""
        (self.site / path).parent.mkdir(parents=True, exist_ok=True)
        (self.site / path).write_text(textwrap.dedent(text))

    def distribution(self, name: str, version: str) -> None:
        """What pip leaves of an installed distribution; one in place of another of this name."""
        for old in self.site.glob(f'{name}-[0-9]*.dist-info'):
            shutil.rmtree(old)
        self.write(f'{name}-{version}.dist-info/METADATA', f'Name: {name}\nVersion: {version}\n')

    def stack(self, packages: dict[str, tuple[str, str]]) -> None:
        """All of a stack, in working order."""
        for package, (name, version) in packages.items():
            self.write(f'{package}/__init__.py', f"__version__ = '{version}'")
            self.distribution(name, version)
        self.distribution('setuptools', '81.0.0')
        self.write('torch/__init__.py', TORCH)
        self.write('mmengine/registry.py', MMENGINE)
        self.write('mmengine/__init__.py', 'from mmengine import registry')
        self.write('mmcv/_ext.py', "def get_compiling_cuda_version(): return '13.0'")
        for framework in ('mmdet', 'mmseg', 'mmpretrain'):
            self.write(f'{framework}/models.py', 'import mmcv._ext')
        self.write('mmsgformer/__init__.py', 'import torch, mmengine')

    def remove(self, *packages: str) -> None:
        """A package and what pip knows of it."""
        for package in packages:
            shutil.rmtree(self.site / package)
            for info in self.site.glob(f'{FORK[package][0]}-[0-9]*.dist-info'):
                shutil.rmtree(info)

    def program(self, name: str, text: str) -> None:
        """An executable on PATH."""
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """The doctor, in this environment."""
        command = [str(self.python), str(DOCTOR), *arguments]
        return subprocess.run(
            command, env=self.variables, cwd=cwd, capture_output=True, text=True, timeout=60
        )

    def findings(self, **options: Path) -> list[tuple[str, str, str]]:
        """Level, name and command of all that the doctor finds, but for the machine's own."""
        result = self.run('--json', **options)
        assert result.stdout, result.stderr
        findings = json.loads(result.stdout.replace(f'{self.python} -m pip', 'pip'))['findings']
        assert result.returncode == any(finding['level'] == 'error' for finding in findings)
        return [(f['level'], f['name'], f['command']) for f in findings]


@pytest.fixture(scope='module')
def bare_python(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('bare') / 'venv'
    venv.create(folder, symlinks=True)
    return folder / 'bin' / 'python'


@pytest.fixture
def environment(tmp_path, bare_python) -> Environment:
    """The fork's stack, in working order."""
    environment = Environment(tmp_path, bare_python)
    environment.stack(FORK)
    return environment


def of_packages(findings: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [finding for finding in findings if finding[1] not in MACHINE]


def test_the_tested_stacks_have_no_findings(environment, tmp_path, bare_python):
    assert of_packages(environment.findings()) == []
    (tmp_path / 'upstream').mkdir()
    upstream = Environment(tmp_path / 'upstream', bare_python)
    upstream.stack(UPSTREAM)
    assert of_packages(upstream.findings()) == []


def mmcv_lite(e: Environment) -> None:
    (e.site / 'mmcv' / '_ext.py').unlink()
    shutil.rmtree(e.site / 'onedl-mmcv-2.3.6.dist-info')
    e.distribution('mmcv-lite', '2.2.0')


def rejects_mmcv(e: Environment) -> None:
    """In mmdet's words."""
    e.distribution('onedl-mmcv', '2.4.0')
    text = 'MMCV==2.4.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'
    e.write('mmdet/__init__.py', f'assert False, {text!r}')


def upstream_mmdet_rejects_mmcv(e: Environment) -> None:
    """Upstream's mmdet beside the fork's mmcv."""
    rejects_mmcv(e)
    shutil.rmtree(e.site / 'onedl-mmdetection-3.5.1.dist-info')
    e.distribution('mmdet', '3.3.0')


def unlinkable_mmcv(e: Environment) -> None:
    """Compiled operators that ask for a function which this torch does not have."""
    (e.site / 'mmcv' / '_ext.py').unlink()
    source = e.site / 'ext.c'
    source.write_text('void _ZN3c105Error(void); void PyInit__ext(void) { _ZN3c105Error(); }')
    subprocess.run(['gcc', '-shared', '-fPIC', source, '-o', e.site / 'mmcv' / '_ext.so'], check=True)


def unlinkable_mmcv_without_setuptools(e: Environment) -> None:
    """As in a new venv of Python 3.12, where mmcv cannot be built."""
    unlinkable_mmcv(e)
    shutil.rmtree(e.site / 'setuptools-81.0.0.dist-info')


def cpu_torch_beside_a_gpu(e: Environment) -> None:
    e.program('nvidia-smi', H100)
    e.write('torch/__init__.py', TORCH.replace("'13.0'", 'None').replace('+cu130', '+cpu'))


def old_driver(e: Environment) -> None:
    """As torch says it: not by an error but by a warning."""
    e.program('nvidia-smi', H100)
    del e.variables['CUDA_VISIBLE_DEVICES']
    warns = "import warnings; warnings.warn('The NVIDIA driver on your system is too old'); return False"
    e.write('torch/__init__.py', TORCH.replace('return False', warns))


def no_kernel_for_the_gpu(e: Environment) -> None:
    e.program('nvidia-smi', H100)
    del e.variables['CUDA_VISIBLE_DEVICES']
    fails = 'lambda *args: exec("raise RuntimeError(\'CUDA error: no kernel image is available\')")'
    e.write(
        'torch/__init__.py', CUDA_TORCH.replace('lambda *args: self', f'{fails} if name == "add" else self')
    )


def cpu_mmcv_on_a_gpu(e: Environment) -> None:
    e.program('nvidia-smi', H100)
    e.write('torch/__init__.py', CUDA_TORCH)
    e.write('mmcv/_ext.py', "def get_compiling_cuda_version(): return 'not available'")


def cpu_mmcv_on_a_gpu_with_nvcc(e: Environment) -> None:
    cpu_mmcv_on_a_gpu(e)
    e.program('nvcc', NVCC)
    del e.variables['CUDA_HOME']


def no_compiler(e: Environment) -> None:
    e.write('torch/__init__.py', CUDA_TORCH)
    del e.variables['CC']


def numpy_1_torch(e: Environment) -> None:
    """torch 2.1 imports beside NumPy 2, and then its tensors cannot become arrays."""
    e.write(
        'torch/__init__.py', f'{TORCH}\n    def zeros(*args): raise RuntimeError("Numpy is not available")'
    )


def desktop_opencv(e: Environment) -> None:
    e.write('cv2/__init__.py', f'raise ImportError({LIBGL!r})')
    e.write('mmcv/__init__.py', 'import cv2')


def registers(scope: str) -> str:
    """A module that registers a class of the name, as a vendored copy."""
    registry = 'MODELS' if scope == 'mmengine' else f'MODELS.children[{scope!r}]'
    return (
        'import mmcv._ext; from mmengine.registry import MODELS\n'
        f"class SGFormer: pass\n{registry}.module_dict['SGFormer'] = SGFormer"
    )


def vendored_at_the_root(e: Environment) -> None:
    """MMEngine's registries refuse a second class of a name."""
    e.write('mmseg/models.py', registers('mmengine'))
    clash = "raise KeyError('SGFormer is already registered in model at mmseg.models')"
    e.write('mmsgformer/__init__.py', clash)


def shadowed_cudart(e: Environment) -> None:
    """Of one name with what comes with torch; another version is no trouble."""
    e.write('nvidia/cu13/lib/libcudart.so.13', '')
    e.write('../cuda/libcudart.so.13', '')
    e.write('../cuda12/libcudart.so.12', '')
    e.variables['LD_LIBRARY_PATH'] = f'{e.site}/../cuda12:{e.site}/../cuda'


def old_libstdcxx(e: Environment) -> None:
    """Not this Python's own: it does not load the library."""
    e.write('../compiler/libstdc++.so.6', '')
    e.variables['LD_LIBRARY_PATH'] = f'{e.site}/../compiler'


def backend_of_a_notebook(e: Environment) -> None:
    """A kernel tells its children to draw into its pages."""
    error = "Key backend: 'module://matplotlib_inline.backend_inline' is not a valid value for backend"
    e.write('mmdet/__init__.py', f'raise ValueError({error!r})')


TROUBLES = (
    (backend_of_a_notebook, 'error', 'MPLBACKEND', 'export MPLBACKEND=agg'),
    (lambda e: e.remove('torch'), 'error', 'no torch', PINNED_TORCH),
    (lambda e: e.remove('mmengine'), 'error', 'no mmengine', 'pip install onedl-mmengine==0.10.12'),
    (lambda e: e.remove('mmsgformer'), 'error', 'no mmsgformer', f'pip install --no-deps -e {ROOT}'),
    (lambda e: e.remove('mmcv'), 'error', 'no mmcv', NEW_MMCV),
    (
        lambda e: e.distribution('onedl-mmdetection', '3.4.0'),
        'warning',
        'versions',
        'pip install onedl-mmdetection==3.5.1',
    ),
    (lambda e: e.distribution('torch', '2.5.1+cu121'), 'warning', 'versions', PINNED_TORCH),
    (
        lambda e: e.distribution('mmcv', '2.1.0'),
        'error',
        'two of mmcv',
        f'pip uninstall -y onedl-mmcv mmcv && {NEW_MMCV}',
    ),
    (
        lambda e: e.distribution('mmengine', '0.10.7'),
        'error',
        'two of mmengine',
        'pip uninstall -y onedl-mmengine mmengine && pip install onedl-mmengine==0.10.12',
    ),
    (
        lambda e: e.distribution('opencv-python', '4.11.0.86'),
        'warning',
        'two of cv2',
        'pip uninstall -y opencv-python opencv-python-headless && '
        'pip install opencv-python-headless==4.12.0.88',
    ),
    (
        lambda e: (e.site / 'mmcv' / '_ext.py').unlink(),
        'error',
        'mmcv without operators',
        f'export MMCV_WITH_OPS=1; {REBUILT_MMCV}',
    ),
    (mmcv_lite, 'error', 'mmcv without operators', f'export MMCV_WITH_OPS=1; {FROM_LITE}'),
    (unlinkable_mmcv, 'error', 'mmcv of another torch', REBUILT_MMCV),
    (unlinkable_mmcv_without_setuptools, 'error', 'mmcv of another torch', f'{TOOLS} && {REBUILT_MMCV}'),
    (rejects_mmcv, 'error', 'mmdet rejects MMCV', NEW_MMCV),
    (
        upstream_mmdet_rejects_mmcv,
        'error',
        'mmdet rejects MMCV',
        f'pip uninstall -y mmdet && {NEW_MMCV} onedl-mmdetection==3.5.1',
    ),
    (
        lambda e: e.distribution('onedl-mmengine', '0.10.7'),
        'warning',
        'old mmengine',
        'pip install onedl-mmengine==0.10.12',
    ),
    (cpu_torch_beside_a_gpu, 'warning', 'torch without CUDA', f'{FORCED} {TORCH_PINS}'),
    (
        old_driver,
        'error',
        'torch and the GPU',
        f'{FORCED} {TORCH_PINS} --index-url https://download.pytorch.org/whl/cu126',
    ),
    (no_kernel_for_the_gpu, 'error', 'torch and the GPU', PINNED_TORCH),
    (cpu_mmcv_on_a_gpu, 'error', 'mmcv without CUDA', 'apt-get install cuda-toolkit-13-0'),
    (cpu_mmcv_on_a_gpu_with_nvcc, 'error', 'mmcv without CUDA', REBUILT_MMCV),
    (no_compiler, 'warning', 'Triton', 'apt-get install gcc python3-dev'),
    (numpy_1_torch, 'error', 'NumPy 2', 'pip install "numpy<2"'),
    (
        lambda e: e.write('mmdet/models.py', 'raise ValueError("numpy.dtype size changed")'),
        'error',
        'another NumPy',
        'pip install "numpy<2"',
    ),
    (
        desktop_opencv,
        'error',
        'OpenCV without a desktop',
        'pip install --no-deps --force-reinstall opencv-python-headless==4.12.0.88',
    ),
    (
        lambda e: e.write(
            'torchvision/__init__.py', "raise RuntimeError('operator torchvision::nms does not exist')"
        ),
        'error',
        'torchvision of another torch',
        'pip install --no-deps --force-reinstall torchvision==0.26.0 '
        '--index-url https://download.pytorch.org/whl/cu130',
    ),
    (
        lambda e: e.write('torch/__init__.py', "raise ImportError('undefined symbol: iJIT_NotifyEvent')"),
        'error',
        'MKL',
        'conda install "mkl<2024.1"',
    ),
    (lambda e: e.write('mmseg/models.py', 'import ftfy'), 'error', 'no ftfy', 'pip install "ftfy"'),
    (
        lambda e: e.write('mmengine/__init__.py', 'import pkg_resources'),
        'error',
        'no pkg_resources',
        'pip install "setuptools<82"',
    ),
    (
        vendored_at_the_root,
        'error',
        'registered twice',
        'grep -n register_module ~/site/mmseg/models.py',
    ),
    (
        lambda e: e.write('mmseg/models.py', registers('mmseg')),
        'error',
        'another SGFormer',
        'grep -n register_module ~/site/mmseg/models.py',
    ),
    (
        lambda e: e.write('mmdet/models.py', 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)'),
        'error',
        'mmdet fails',
        f'{FORCED} --no-deps onedl-mmdetection==3.5.1',
    ),
    (shadowed_cudart, 'warning', 'LD_LIBRARY_PATH', 'unset LD_LIBRARY_PATH'),
    (old_libstdcxx, 'warning', 'LD_LIBRARY_PATH', 'unset LD_LIBRARY_PATH'),
)


@pytest.mark.parametrize(
    ('break_it', 'level', 'name', 'command'), TROUBLES, ids=[trouble[2] for trouble in TROUBLES]
)
def test_a_trouble_is_found_once_and_has_its_command(environment, break_it, level, name, command):
    """And nothing else is: a knock-on failure is no trouble of its own."""
    break_it(environment)
    assert of_packages(environment.findings()) == [(level, name, command)]


@pytest.mark.parametrize(
    ('name', 'version', 'level', 'finding', 'command'),
    [
        ('torch', '2.11.0', 'warning', 'old mmengine', 'pip install torch==2.1.2 torchvision==0.16.2'),
        ('numpy', '2.2.6', 'error', 'NumPy 2', 'pip install "numpy<2"'),
        ('mmsegmentation', '1.2.1', 'warning', 'versions', 'pip install mmsegmentation==1.2.2'),
    ],
)
def test_upstream_is_mended_with_upstream(tmp_path, bare_python, name, version, level, finding, command):
    environment = Environment(tmp_path, bare_python)
    environment.stack(UPSTREAM)
    environment.distribution(name, version)
    assert of_packages(environment.findings()) == [(level, finding, command)]


def test_headless_opencv_over_the_desktop_build_is_no_trouble(environment):
    """`make setup` leaves this pair: mmcv asks for one, the other's files are there."""
    environment.distribution('opencv-python', '4.12.0.88')
    assert of_packages(environment.findings()) == []


def test_the_backbone_alone_is_an_environment_too(environment):
    environment.remove('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'torchvision')
    assert of_packages(environment.findings()) == []
    assert 'backbone only' in environment.run().stdout


def test_operators_of_mmcv_are_a_warning_where_no_framework_needs_them(environment):
    environment.remove('mmdet', 'mmseg', 'mmpretrain')
    (environment.site / 'mmcv' / '_ext.py').unlink()
    ((level, name, _),) = of_packages(environment.findings())
    assert (level, name) == ('warning', 'mmcv without operators')


def test_a_gpu_that_is_hidden_on_purpose_is_no_trouble(environment):
    environment.program('nvidia-smi', H100)
    assert of_packages(environment.findings()) == []


def test_more_threads_than_cores(environment):
    environment.variables['OMP_NUM_THREADS'] = '4096'
    (found,) = [finding for finding in environment.findings() if finding[1] == 'threads']
    assert re.fullmatch(r'export OMP_NUM_THREADS=\d+', found[2])


def test_little_disk(environment):
    """/proc has no room for anything."""
    (found,) = [f for f in environment.findings(cwd='/proc') if f[1] == 'disk' and 'work-dir' in f[2]]
    assert found[0] == 'warning'


@pytest.mark.parametrize(
    ('mount', 'name', 'command'),
    [
        ('mount -t tmpfs -o size=64m none /dev/shm', '/dev/shm', '8g'),
        (
            'mount -t tmpfs none /sys/fs/cgroup && echo 50000 100000 >/sys/fs/cgroup/cpu.max',
            'threads',
            'export OMP_NUM_THREADS=1',
        ),
    ],
)
def test_a_container_with_the_default_limits(environment, mount, name, command):
    """64 MiB of shared memory, and fewer cores by quota than are seen."""
    unshare = shutil.which('unshare') or 'false'
    own_mounts = [unshare, '--map-root-user', '--mount', 'bash', '-c']
    if subprocess.run([*own_mounts, mount], capture_output=True).returncode:
        pytest.skip('mounting in a namespace is not allowed here')
    environment.variables['OMP_NUM_THREADS'] = '3'
    doctor_here = f'{mount} && export PATH={environment.bin} && {environment.python} {DOCTOR} --json'
    env = {**environment.variables, 'PATH': os.environ['PATH']}
    result = subprocess.run([*own_mounts, doctor_here], env=env, capture_output=True, text=True)
    (found,) = [finding for finding in json.loads(result.stdout)['findings'] if finding['name'] == name]
    assert found['level'] == 'warning'
    assert command in found['command']


def test_an_import_that_hangs_ends(environment, monkeypatch):
    environment.write('torch/__init__.py', 'import time; time.sleep(60)')
    monkeypatch.setenv('PYTHONPATH', str(environment.site))
    modules, _ = doctor.try_imports(('numpy', 'torch', 'mmengine'), seconds=1)
    assert modules['numpy'].errors == []
    assert modules['torch'].errors == modules['mmengine'].errors == ['not done after 1 s']


def test_it_runs_where_importing_mmsgformer_fails(environment):
    """Here the package is the real one and what it needs is not there."""
    environment.remove(*FORK)
    environment.variables['PYTHONPATH'] = str(ROOT)
    assert [finding[1] for finding in environment.findings()] == ['no torch', 'no mmengine']


def test_a_report_has_neither_the_home_folder_nor_the_user(environment, tmp_path):
    environment.variables.update(LOGNAME='alice', LD_LIBRARY_PATH='/data/alice/lib')
    environment.write('mmdet/models.py', "raise ValueError('no file /data/alice/x, alice-2')")
    report = environment.run('--json').stdout
    assert str(tmp_path) not in report
    assert '~/site/torch/__init__.py' in report
    assert 'no file /data/USER/x, alice-2' in report
    assert str(tmp_path) not in environment.run().stdout


def test_the_screen_is_one_screen(environment):
    result = environment.run()
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) <= 30


def test_python_outside_the_range_of_setup_py():
    low, high = re.search(r"python_requires='>=3\.(\d+),<3\.(\d+)'", (ROOT / 'setup.py').read_text()).groups()
    assert ((3, int(low)), (3, int(high) - 1)) == doctor.PYTHONS
    fine = {name: doctor.Module('1', 'file', []) for name in doctor.IMPORTS}
    here = doctor.Facts('', 'pip', None, '', modules=fine, distributions={})
    for minor, wrong in ((int(low) - 1, True), (int(low), False), (int(high) - 1, False), (int(high), True)):
        facts = dataclasses.replace(here, python=f'3.{minor}.1')
        assert [finding.name for finding in doctor.diagnose(facts)] == ['python'] * wrong


@pytest.mark.parametrize(('stack', 'folder'), [('fork', ''), ('upstream', 'upstream')])
def test_the_table_is_that_of_the_requirements(stack, folder):
    files = (ROOT / 'requirements' / folder).glob('*.txt')
    lines = [line for file in files for line in file.read_text().splitlines()]
    pins = dict(line.split('==') for line in lines if '==' in line and not line.startswith('#'))
    assert doctor.TESTED[stack].items() <= pins.items()


def test_old_pythons_can_read_it():
    """To say that they are too old."""
    ast.parse(DOCTOR.read_text(), feature_version=(3, 8))


def test_this_environment_has_no_errors():
    """The one that the tests run in: all is really imported."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'mmsgformer.doctor']
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_vendored_copy_is_found_in_mmengines_registries(tmp_path, monkeypatch):
    """With the real registry, and the real message of what cannot be registered twice."""
    copy = 'from mmengine.registry import MODELS\n@MODELS.register_module()\nclass SGFormer: ...'
    (tmp_path / 'vendored.py').write_text(copy)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{ROOT}')
    modules, more = doctor.try_imports(('vendored', 'mmsgformer'))
    assert modules['mmsgformer'].errors[0] == 'SGFormer is already registered in model at vendored'
    assert more['owners'] == {'mmengine': str(tmp_path / 'vendored.py')}
