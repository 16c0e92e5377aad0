"""Package metadata: the backbone needs torch and MMEngine, the extra `full` brings the frameworks."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = (ROOT / 'mmsgformer' / 'version.py').read_text().split("'")[1]


def requirements(*names: str) -> list[str]:
    """The lines of requirements/NAME.txt that are not comments."""
    lines = [
        line for name in names for line in (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    ]
    return [line for line in lines if line and not line.startswith('#')]


class BuildWithMim(build_py):
    """Puts configs, tools and metafiles into the package's folder `.mim`, where OpenMMLab's tools look."""

    def run(self) -> None:
        """Build, then copy; an editable install has the checkout's files instead."""
        super().run()
        if getattr(self, 'editable_mode', False):  # setuptools 64
            return
        mim = Path(self.build_lib) / 'mmsgformer' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, mim / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', mim)


setup(
    name='mmsgformer',
    version=VERSION,
    description='SG-Former, a self-guided vision transformer backbone, for the OpenMMLab ecosystem',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    cmdclass={'build_py': BuildWithMim},
    packages=find_packages(include=['mmsgformer', 'mmsgformer.*', 'mmsgformer_runtime']),
    package_data={'mmsgformer.ops': ['*.cpp'], 'mmsgformer.report': ['page.html']},
    python_requires='>=3.10,<3.13',
    # MMEngine is left to the user: listing one of its two distributions would install it over the other.
    install_requires=['torch>=2.1', 'ninja'],
    extras_require={
        'full': requirements('torch', 'mmcv', 'frameworks'),
        'dev': requirements('dev'),
        'export': requirements('export'),
    },
)
