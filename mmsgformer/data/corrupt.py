"""Test images with noise, blur, weather or compression artefacts (Hendrycks and Dietterich, ICLR 2019)."""

import inspect
import zlib

import numpy as np
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CorruptImage:
    """Corrupt a loaded image with `imagecorruptions`; a file is always corrupted in the same way.

    Args:
        corruption: Name that `imagecorruptions` gives it, as 'gaussian_noise'.
        severity: 1 to 5.

    Raises:
        ImportError: The package is not installed.
        ValueError: The name is unknown or the severity out of range.
    """

    def __init__(self, corruption: str, severity: int) -> None:
        if corruption not in (known := corruption_names('all')):
            raise ValueError(f'corruption must be one of {", ".join(known)}; got {corruption!r}')
        if severity not in range(1, 6):
            raise ValueError(f'severity must be 1 to 5, got {severity!r}')
        self.corruption, self.severity = corruption, severity

    def __call__(self, results: dict) -> dict:
        """Replace `img`, (H, W, 3), blue first, uint8."""
        from imagecorruptions import corrupt, corruption_dict

        height, width = results['img'].shape[:2]
        if min(height, width) < 32:
            raise ValueError(f'{results["img_path"]}: {width} x {height} pixels; corruptions need 32 or more')
        name = results['img_path'].rpartition('/')[2]
        seed = zlib.crc32(f'{name} {self.corruption} {self.severity}'.encode()) & 0x7FFFFFFF
        parameters = inspect.signature(corruption_dict[self.corruption]).parameters
        own = {'seed': seed} if 'seed' in parameters else {}
        state = np.random.get_state()  # the package draws from NumPy's global generator
        np.random.seed(seed)
        try:
            rgb = np.ascontiguousarray(results['img'][..., ::-1])
            corrupted = corrupt(rgb, corruption_name=self.corruption, severity=self.severity, **own)
        finally:
            np.random.set_state(state)
        results['img'] = np.ascontiguousarray(corrupted[..., ::-1])
        return results


def corruption_names(group: str = 'common') -> list[str]:
    """The names of a group: 'common' (the benchmark's fifteen), 'noise', 'blur', 'weather', 'digital', 'all'.

    Raises:
        ImportError: `imagecorruptions` is not installed.
    """
    try:
        from imagecorruptions import get_corruption_names
    except ModuleNotFoundError as error:
        raise ImportError(
            'corruptions need the package imagecorruptions: pip install imagecorruptions-imaug'
        ) from error
    return get_corruption_names(group)
