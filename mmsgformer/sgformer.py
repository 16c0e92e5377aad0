"""The SG-Former backbone: stem, downsampling, feed-forward network, block, stage and `SGFormer` itself.

Source: SG-Former: Self-guided Transformer with Evolving Token Reallocation (ICCV 2023, arXiv 2308.12216);
docs/method.md describes every part and where it comes from.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmsgformer import mixers
from mmsgformer.archs import NUM_STAGES, resolve_arch
from mmsgformer.attention import conv_channels_last
from mmsgformer.checkpoint.load import load_backbone
from mmsgformer.compat import is_exporting
from mmsgformer.mixers.registry import as_config
from mmsgformer.mixers.tap import TokenAwarePooling
from mmsgformer.ops.autocast import at_least_float32, autocasts, without_autocast
from mmsgformer.padding import run_without_padding, tell_image_sizes

STRIDES = (4, 8, 16, 32)
MLP_RATIO = 4
MIN_SIZE = STRIDES[-1]


def drop_path(x: Tensor, probability: float, training: bool) -> Tensor:
    """Stochastic depth: drop the whole branch (B, ...) of a sample, scale the others to keep the mean."""
    if probability == 0.0 or not training:
        return x
    keep = 1.0 - probability
    mask = torch.rand((len(x),) + (1,) * (x.ndim - 1), device=x.device) < keep
    return x * (mask.to(x.dtype) / keep)


class DropPath(nn.Module):
    """`drop_path` in training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.probability, self.training)

    def extra_repr(self) -> str:
        return f'{self.probability:.3g}'


def sincos_position_embedding(height: int, width: int, dim: int) -> Tensor:
    """2-D sin-cos embedding, (1, height * width, dim): half the channels from x, the other half from y."""
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)

    def encode(positions: Tensor) -> Tensor:
        angles = positions.flatten()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return torch.cat([encode(x), encode(y)], dim=1).float().unsqueeze(0)


def bicubic_matrix(size: int, new_size: int, like: Tensor) -> Tensor:
    """The matrix (new_size, size) that resizes one side of a map as `interpolate(mode='bicubic')` does.

    Of the type and device of `like`. Unlike the gradient of that function, on a GPU a product's can be
    deterministic.
    """
    places = torch.eye(size, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(places, size=(new_size, size), mode='bicubic', align_corners=False)[0, 0]


def recompute(function: Callable[..., Tensor], *inputs: Tensor, uses_random: bool = False) -> Tensor:
    """`function(*inputs)`; what lies in between is not kept for the backward pass but computed again.

    Only up to the last intermediate result that the backward pass needs: a layer at the end is not run again.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=uses_random)


class ImageConv(nn.Conv2d):
    """The convolution that meets the image, and says so if that is of another type than its weight.

    Here rather than in the backbone: wrappers cast weights and inputs just before a module runs.
    """

    def forward(self, image: Tensor) -> Tensor:
        if image.dtype != self.weight.dtype and not autocasts(image):
            raise TypeError(
                f'SGFormer has weights of {self.weight.dtype} here, got images of {image.dtype}; '
                'convert one of them'
            )
        return super().forward(image)


class Stem(nn.Module):
    """Stride-4 stem of three 3x3 convolutions: image (B, c, H, W) -> map (B, ceil(H/4), ceil(W/4), C)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = ImageConv(in_channels, dim, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(1, dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(1, dim)
        self.conv3 = nn.Conv2d(dim, dim, 3, stride=2, padding=1, bias=False)
        self.norm3 = nn.GroupNorm(1, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image.contiguous(memory_format=torch.channels_last))
        x = recompute(lambda x: self.conv2(F.gelu(self.norm1(x))), x)
        x = recompute(lambda x: self.conv3(F.gelu(self.norm2(x))), x)
        x = self.norm3(x)
        return self.norm(x.permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """Stride-2 step between stages: map (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, 1, bias=False)
        self.norm1 = nn.GroupNorm(1, dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim, bias=False)
        self.norm2 = nn.GroupNorm(1, dim)
        self.conv3 = nn.Conv2d(dim, dim, 1, bias=False)
        self.norm3 = nn.GroupNorm(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x.permute(0, 3, 1, 2))
        x = recompute(lambda x: self.conv2(F.gelu(self.norm1(x))), x)
        x = recompute(lambda x: self.conv3(F.gelu(self.norm2(x))), x)
        return self.norm3(x).permute(0, 2, 3, 1)


class DepthwiseConvGELU(nn.Conv2d):
    """GELU(x + depthwise 3x3 convolution of x), (B, C, H, W) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plus_input(x)
        # Nobody else has seen y: without a gradient its memory serves again.
        return F.gelu(y) if y.requires_grad else torch.ops.aten.gelu_(y)

    def plus_input(self, x: Tensor) -> Tensor:
        """x + its convolution, in memory of its own."""
        if autocasts(x) or torch.finfo(self.weight.dtype).bits < 32:
            return x + super().forward(x)
        # One convolution with 1 added to the middle of each kernel, which a low precision would round.
        identity = F.pad(self.weight.new_ones(1, 1), (1, 1, 1, 1))
        return F.conv2d(x, self.weight + identity, self.bias, padding=1, groups=self.groups)


class FFN(nn.Module):
    """Feed-forward network with a depthwise convolution beside the identity: (B, H, W, C) -> same."""

    def __init__(self, dim: int, drop: float) -> None:
        super().__init__()
        hidden = MLP_RATIO * dim
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = DepthwiseConvGELU(hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(conv_channels_last(self.conv, self.fc1(x)))  # (B, H, W, 4C)
        return self.drop(self.fc2(h))


class Block(nn.Module):
    """Pre-norm transformer block that carries the significance map along.

    `forward(x (B, H, W, C), significance (B, H, W) or None)` returns both, as its mixer `attn` does. With
    `recompute_ffn` the hidden maps of the FFN, more than half of what training would keep, are not kept. With
    `tap` the mixer's branch, not the shortcut, begins with token-aware pooling.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        drop: float,
        drop_path_rate: float,
        recompute_ffn: bool,
        tap: bool = False,
    ) -> None:
        super().__init__()
        self.recompute_ffn = recompute_ffn
        self.tap = TokenAwarePooling(dim) if tap else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = FFN(dim, drop)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, significance: Tensor | None) -> tuple[Tensor, Tensor | None]:
        attended, significance = self.attn(self.norm1(self.tap(x)), significance)
        x = x + self.drop_path(attended)
        if self.recompute_ffn:
            fed = recompute(self._feed_forward, x, uses_random=self.ffn.drop.p > 0)
        else:
            fed = self._feed_forward(x)
        return x + self.drop_path(fed), significance

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.norm2(x))


class Stage(nn.Module):
    """Downsampling (none in stage 1, whose stem did it), blocks and the norm that ends the stage."""

    def __init__(
        self,
        index: int,
        in_dim: int,
        dim: int,
        num_heads: int,
        drop_path_rates: Sequence[float],
        drop: float,
        with_cp: bool,
        mixer: dict,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.downsample = Downsample(in_dim, dim) if index > 0 else nn.Identity()
        mixer = dict(mixer)
        tap = mixer.pop('tap', False)
        self.blocks = nn.ModuleList(
            Block(dim, mixers.build(mixer, dim, num_heads, index, j), drop, rate, not with_cp, tap)
            for j, rate in enumerate(drop_path_rates)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        significance = None
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x, significance = checkpoint(block, x, significance, use_reentrant=False)
            else:
                x, significance = block(x, significance)
        return self.norm(x)


@MODELS.register_module()
class SGFormer(BaseModule):
    """SG-Former backbone for dense prediction and classification.

    Input (B, in_channels, H, W) with H, W >= 32, any size. Output: for each stage i in `out_indices` a map
    (B, C_i, ceil(H / s_i), ceil(W / s_i)), s = 4, 8, 16, 32, after the stage's norm.

    Args:
        arch: 's', 'm', 'b' (or 'small', 'medium', 'base'), the paper's; 't' ('tiny'), ours; or a dict of
            `embed_dims`, `depths` and `num_heads`, four positive integers each.
        in_channels: Channels of the input image.
        pretrain_img_size: Image size in pixels, one number or (H, W), of the grid that the position
            embedding is learned on; the embedding is resized (bicubic) to the map of any other input.
        drop_rate: Dropout after the position embedding, the attention's projection and in the FFN.
        attn_drop_rate: Dropout on the attention weights.
        drop_path_rate: Stochastic depth; grows linearly over all blocks from 0 to this rate.
        out_indices: Stages (0-3) whose maps are returned, in this order. Stages past the last are built,
            so that every checkpoint fits, but neither run nor trained.
        frozen_stages: -1: train everything. 0: freeze the stem and the position embedding; k in 1..4:
            the first k stages too. As in mmdet.
        norm_eval: Keep norm layers in eval mode. SG-Former's norms keep no running statistics, so this
            changes no result; it is here because configs of other backbones set it. Token-aware pooling has a
            BatchNorm, whose statistics it freezes.
        with_cp: Gradient checkpointing of every block: less memory, a second forward in the backward.
        attn_backend: How the attention that makes the significance is computed: 'auto', 'reference',
            'chunked' or 'triton' (`mmsgformer.ops.attention_with_column_means`). Results are the same.
        ignore_padding: Run every image of a padded batch without its padding, so that its maps are those that
            it has alone, continued into the padding by their last row and column. For the backbone of a
            detector or segmenter, whose data samples say what is padding (`mmsgformer.padding`). Images of
            different sizes run one after another.
        mixer: What mixes the tokens in every block: a name of `mmsgformer.mixers.MIXERS` or a dict with that
            as `type` and the mixer's own arguments (docs/mixers.md). By default the paper's attentions;
            `attn_backend` is theirs alone. `tap=True` in the dict puts token-aware pooling before any mixer.
        init_cfg: MMEngine's initialisation config. dict(type='Pretrained', checkpoint=PATH) loads what
            `mmsgformer.checkpoint.load_backbone` can: the official files as they are, and the backbone of
            any checkpoint trained here, completely or not at all; `partial=True` takes what fits. Without
            a config the weights are drawn as the paper's code does.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type; or, in `forward`, the
            input is not a batch of images of at least 32 x 32 with `in_channels` channels.
    """

    def __init__(
        self,
        arch: str | dict = 's',
        in_channels: int = 3,
        pretrain_img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        attn_backend: str = 'auto',
        ignore_padding: bool = False,
        mixer: str | dict = 'sgformer',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.embed_dims, self.depths, self.num_heads = resolve_arch(arch)
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels must be a positive integer, got {in_channels!r}')
        self.in_channels = in_channels
        self.out_indices = _check_out_indices(out_indices)
        if not isinstance(frozen_stages, int) or frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ValueError(f'frozen_stages must be in -1..{NUM_STAGES}, got {frozen_stages!r}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        for name, rate in [('drop', drop_rate), ('attn_drop', attn_drop_rate), ('drop_path', drop_path_rate)]:
            if not isinstance(rate, (int, float)) or not 0.0 <= rate < 1.0:
                raise ValueError(f'{name}_rate must be in [0, 1), got {rate!r}')
        self.mixer = _mixer_config(mixer, attn_drop_rate, drop_rate, attn_backend)
        self.ignore_padding = ignore_padding
        self.image_sizes: dict[torch.Size, list[tuple[int, int]]] = {}
        if ignore_padding:
            tell_image_sizes()

        self.pretrain_grid = tuple(-(-side // STRIDES[0]) for side in _check_image_size(pretrain_img_size))
        self.stem = Stem(in_channels, self.embed_dims[0])
        self.pos_embed = nn.Parameter(sincos_position_embedding(*self.pretrain_grid, self.embed_dims[0]))
        self.pos_drop = nn.Dropout(drop_rate)

        num_blocks = sum(self.depths)
        rates = [drop_path_rate * i / (num_blocks - 1) for i in range(num_blocks)]
        self.stages = nn.ModuleList(
            Stage(
                index=i,
                in_dim=self.embed_dims[max(i - 1, 0)],
                dim=self.embed_dims[i],
                num_heads=self.num_heads[i],
                drop_path_rates=rates[sum(self.depths[:i]) : sum(self.depths[: i + 1])],
                drop=drop_rate,
                with_cp=with_cp,
                mixer=self.mixer,
            )
            for i in range(NUM_STAGES)
        )
        self.apply(_init_layer)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image (B, in_channels, H, W) -> one map (B, C_i, ceil(H / s_i), ceil(W / s_i)) per out index."""
        if not torch.is_tensor(x):
            raise TypeError(f'SGFormer takes a tensor of images, got {type(x).__name__}')
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] < MIN_SIZE or x.shape[3] < MIN_SIZE:
            raise ValueError(
                f'SGFormer takes images (B, {self.in_channels}, H, W) with H, W >= {MIN_SIZE}, '
                f'got shape {tuple(x.shape)}; resize or pad smaller images, set in_channels for other inputs'
            )
        if not x.is_floating_point():
            raise TypeError(f'SGFormer takes normalised floating-point images, got {x.dtype}')
        sizes = self.image_sizes.get(x.shape) if self.ignore_padding else None
        if sizes is None:
            return self._run(x)
        strides = [STRIDES[i] for i in self.out_indices]
        return run_without_padding(self._run, x, sizes, strides, MIN_SIZE)

    def _run(self, x: Tensor) -> tuple[Tensor, ...]:
        """What `forward` gives for a batch, padding included."""
        x = self.stem(x)
        x = self.pos_drop(x + self._position_embedding(*x.shape[1:3]).to(x.dtype))
        outs = {}
        for i, stage in enumerate(self.stages):
            if i > max(self.out_indices):
                break
            x = stage(x)
            if i in self.out_indices:
                # Contiguous, since mmcv's RoIAlign misreads channels-last maps (open-mmlab/mmcv#2203).
                outs[i] = x.permute(0, 3, 1, 2).contiguous()
        return tuple(outs[i] for i in self.out_indices)

    def _position_embedding(self, height: int, width: int) -> Tensor:
        """The position embedding for a map of this size, (1, height, width, C)."""
        grid = self.pos_embed.unflatten(1, self.pretrain_grid)[0]
        if not is_exporting() and (height, width) == self.pretrain_grid:  # no branch on the size
            return grid[None]
        with without_autocast(grid):
            grid = at_least_float32(grid)
            to_rows = bicubic_matrix(self.pretrain_grid[0], height, grid)
            to_columns = bicubic_matrix(self.pretrain_grid[1], width, grid)
            grid = torch.tensordot(to_rows, grid, dims=1)  # (height, grid columns, C)
            return (to_columns @ grid)[None]

    def init_weights(self) -> None:
        """Load the checkpoint that `init_cfg` names, or leave the weights as they were drawn.

        MMEngine's own loading of a checkpoint is not strict: a file that fits nowhere changes nothing.
        """
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        pretrained = [config for config in configs if config.get('type') in ('Pretrained', PretrainedInit)]
        if not pretrained:
            super().init_weights()
            return
        if len(configs) > 1:
            raise ValueError("a 'Pretrained' init_cfg sets every weight and cannot be one of several")
        load_backbone(self, pretrained[0]['checkpoint'], partial=pretrained[0].get('partial', False))
        self._is_init = True

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The depth of a parameter and the number of depths, for layer-wise learning rate decay.

        0 is the stem with the position embedding, then every block is one, and the last is what follows the
        backbone. A downsampling belongs to the block after it, a stage's norm to the block before it. The
        interface is mmpretrain's: `prefix` is where the backbone's names start in the model's, 'backbone.'.
        """
        last = sum(self.depths) + 1
        if not param_name.startswith(prefix):
            return last, last + 1
        name = param_name.removeprefix(prefix).split('.')
        if name[0] != 'stages':
            return 0, last + 1
        stage = int(name[1])
        block = {'downsample': 0, 'norm': self.depths[stage] - 1}.get(name[2])
        if block is None:
            block = int(name[3])
        return sum(self.depths[:stage]) + block + 1, last + 1

    def train(self, mode: bool = True) -> 'SGFormer':
        """Set the training mode; frozen stages stay in eval mode, and norms too with `norm_eval`."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.LayerNorm, nn.GroupNorm, _BatchNorm)):
                    module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        stem = [self.stem, self.pos_drop] if self.frozen_stages >= 0 else []
        return stem + list(self.stages[: max(self.frozen_stages, 0)])

    def _freeze(self) -> None:
        """Switch gradients off where `frozen_stages` says so, and in stages that no output depends on."""
        if self.frozen_stages >= 0:
            self.pos_embed.requires_grad = False
        for module in [*self._frozen_modules(), *self.stages[max(self.out_indices) + 1 :]]:
            module.requires_grad_(False)


def _init_layer(module: nn.Module) -> None:
    """Initial weights: linear truncated normal (std 0.02), convolution normal (variance 2 / fan_out)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
    else:
        return  # norms start at 1 and 0
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _mixer_config(mixer: str | dict, attn_drop: float, proj_drop: float, backend: str) -> dict:
    """The mixer with what the backbone's own arguments say about it, where they say anything."""
    given = {'attn_drop': attn_drop, 'proj_drop': proj_drop}
    if backend != 'auto':
        given['backend'] = backend
    return {**{key: value for key, value in given.items() if value}, **as_config(mixer)}


def _check_image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """One number or (H, W) -> (H, W), at least `MIN_SIZE` each."""
    pair = (size, size) if isinstance(size, int) else size
    if (
        not isinstance(pair, (list, tuple))
        or len(pair) != 2
        or not all(isinstance(side, int) and side >= MIN_SIZE for side in pair)
    ):
        raise ValueError(
            f'pretrain_img_size must be one integer or (H, W), at least {MIN_SIZE}, got {size!r}'
        )
    return tuple(pair)


def _check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Distinct stages, in the order given."""
    if (
        not isinstance(out_indices, (list, tuple))
        or not out_indices
        or len(set(out_indices)) < len(out_indices)
        or not all(isinstance(i, int) and i in range(NUM_STAGES) for i in out_indices)
    ):
        raise ValueError(
            f'out_indices must be a list of distinct stages in 0..{NUM_STAGES - 1}, got {out_indices!r}'
        )
    return tuple(out_indices)
