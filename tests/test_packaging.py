"""What `pip install .` puts into the package."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_configs_and_tools_are_shipped_as_openmmlab_packages_do(tmp_path):
    steps = ['egg_info', '--egg-base', tmp_path, 'build_py', '--build-lib', tmp_path / 'build']
    subprocess.run([sys.executable, 'setup.py', '-q', *map(str, steps)], cwd=ROOT, check=True)
    mim = tmp_path / 'build' / 'mmsgformer' / '.mim'
    for folder in ('configs', 'tools'):
        for source in (ROOT / folder).rglob('*.*'):
            if '__pycache__' not in source.parts:
                assert (mim / source.relative_to(ROOT)).exists(), source
    assert (mim / 'model-index.yml').exists()
