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


def test_imports_that_were_documented_go_on_working():
    """And importing the package brings neither matplotlib nor a framework."""
    program = (
        'import sys; import mmsgformer; '
        "assert not {'matplotlib', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'} & set(sys.modules); "
        'from mmsgformer.exact_resume import make_exact; '
        'from mmsgformer.official_names import official_to_ours; '
        'from mmsgformer.dataset_paths import set_data_root; '
        'from mmsgformer.checkpoint import load_backbone; '
        'from mmsgformer.visualization import draw_panel, significance_maps'
    )
    subprocess.run([sys.executable, '-c', program], check=True, cwd=ROOT)
