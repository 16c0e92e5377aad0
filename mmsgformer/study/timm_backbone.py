"""Backbones of timm whose image size is fixed, MaxViT and GC ViT, for a comparison in OpenMMLab's configs."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from mmsgformer.sgformer import STRIDES

# Before it, GC ViT gives an image the global query of another one of the batch.
SOUND_GCVIT = (1, 0, 31)


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Image (B, 3, H, W) -> maps of strides 4, 8, 16 and 32, from scratch.

    Args:
        name: timm's, 'maxvit_tiny_tf_224' or 'gcvit_tiny' or another one that has such maps.
        img_size: Height and width of every image, one number or both. It sets the windows' sizes.
        out_indices: Which of the four maps.
        drop_path_rate: Stochastic depth.
        init_cfg: MMEngine's.

    Raises:
        ImportError: timm is not installed, or its GC ViT is at fault.
        ValueError: In `forward`, an image is of another size.
    """

    def __init__(
        self,
        name: str,
        img_size: int | Sequence[int] = 224,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        try:
            import timm
        except ModuleNotFoundError as error:
            raise ImportError(f'{name} comes from timm: pip install timm') from error
        version = tuple(int(part) for part in timm.__version__.split('.')[:3] if part.isdigit())
        if name.startswith('gcvit') and version < SOUND_GCVIT:
            raise ImportError(
                f'GC ViT of timm {timm.__version__} mixes the images of a batch up: pip install timm>=1.0.31'
            )
        self.name = name
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.out_indices = tuple(out_indices)
        self.model = timm.create_model(
            name, features_only=True, img_size=self.img_size, drop_path_rate=drop_path_rate
        )
        strides = self.model.feature_info.reduction()
        self.places = [strides.index(STRIDES[i]) for i in self.out_indices]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image (B, 3, H, W) -> one map (B, C_i, H / s_i, W / s_i) for each out index."""
        if tuple(x.shape[2:]) != self.img_size:
            raise ValueError(
                f'{self.name} was built for images of {self.img_size[0]} x {self.img_size[1]}, got '
                f'{x.shape[2]} x {x.shape[3]}: set img_size, and test with sliding windows of that size '
                "(model.test_cfg=dict(mode='slide', ...))"
            )
        maps = self.model(x)
        return tuple(maps[place] for place in self.places)
