"""The backbone: any size, every argument, every error, autocast and gradient checkpointing."""

import importlib.util
import random
import subprocess
import sys
from collections.abc import Callable, Iterator

import cv2
import pytest
import torch
from fuzz import fuzz
from older_torch import NEEDS_TRITON, needs_torch
from tolerances import NETWORK, assert_close
from torch import Tensor, nn

from mmsgformer import SGFormer
from mmsgformer.archs import resolve_arch
from mmsgformer.ops import attention_cpu
from mmsgformer.sgformer import STRIDES, drop_path, sincos_position_embedding

AUTOCAST_TYPES = [
    torch.bfloat16,
    pytest.param(torch.float16, marks=needs_torch(2, 4, 'autocast to float16 on a CPU')),
]
_random = random.Random(0)
# Small ones are as odd as large ones, and quicker: the sides' logarithms are uniform.
RANDOM_SIZES = [[round(32 * (700 / 32) ** _random.random()) for _ in range(2)] for _ in range(100)]
EDGE_SIZES = [(32, 32), (33, 32), (32, 700), (63, 65), (224, 224), (225, 223), (112, 336)]


def probed(outs: tuple[Tensor, ...]) -> Tensor:
    """A loss with large gradients: the maps times fixed random numbers, the same for every image, summed.

    The squares of a map that has just left a LayerNorm add up to the same whatever the image is.
    """
    fixed = torch.Generator().manual_seed(0)
    return sum((out * torch.randn(out.shape[1:], generator=fixed).to(out)).sum() for out in outs)


def run(model: nn.Module, image: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The outputs, and the gradient at the image of the probed outputs."""
    model.zero_grad()
    image = image.clone().requires_grad_()
    outs = model(image)
    probed(outs).backward()
    return tuple(out.detach() for out in outs), image.grad


@pytest.fixture(scope='module')
def small() -> dict:
    """An architecture with every kind of block."""
    return {'embed_dims': (16, 32, 64, 128), 'depths': (2, 2, 2, 1), 'num_heads': (2, 2, 4, 4)}


@pytest.fixture(scope='module')
def model(small) -> SGFormer:
    torch.manual_seed(0)
    return SGFormer(small).eval()


@pytest.fixture
def threads(request) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ('sizes', 'threads'),
    [
        (RANDOM_SIZES[::5], 1),
        (RANDOM_SIZES[:1], 2),  # threads that wait for a core take their time, beside other tests above all
        *(pytest.param(RANDOM_SIZES[i::5], 1, marks=pytest.mark.slow) for i in range(1, 5)),
        pytest.param(RANDOM_SIZES[1:11], 2, marks=pytest.mark.slow),
    ],
    ids=lambda value: f'{len(value)}-sizes' if isinstance(value, list) else f'{value}-threads',
    indirect=['threads'],
)
def test_random_sizes(model, sizes, threads):
    """Right shapes, finite, and bit for bit the same on a second run, forward and backward."""
    for height, width in sizes:
        image = torch.randn(1, 3, height, width)
        outs, grad = run(model, image)
        for out, dim, stride in zip(outs, model.embed_dims, STRIDES, strict=True):
            assert out.shape == (1, dim, -(-height // stride), -(-width // stride)), (height, width)
            assert out.isfinite().all(), (height, width)
        assert grad.norm() > 1, (height, width)
        grads = [grad, *(p.grad.clone() for p in model.parameters())]
        assert all(g.isfinite().all() for g in grads), (height, width)
        again, grad_again = run(model, image)
        grads_again = [grad_again, *(p.grad for p in model.parameters())]
        assert all(map(torch.equal, (*outs, *grads), (*again, *grads_again))), (height, width)


@pytest.mark.parametrize(
    ('height', 'width'), [size for size in EDGE_SIZES + RANDOM_SIZES[:8] if max(size) < 400]
)
def test_a_batch_gives_what_its_images_give_one_by_one(small, height, width):
    torch.manual_seed(0)
    model = SGFormer(small).double().eval()
    images = torch.randn(3, 3, height, width, dtype=torch.float64)
    outs, grad = run(model, images)
    for i in range(len(images)):
        single, single_grad = run(model, images[i : i + 1])
        for ours, expected in zip((*outs, grad), (*single, single_grad), strict=True):
            assert_close(ours[i : i + 1], expected, NETWORK[torch.float64].backward)


@pytest.mark.parametrize('backend', ['auto', 'chunked', pytest.param('triton', marks=NEEDS_TRITON)])
@pytest.mark.parametrize(('height', 'width'), [(32, 33), (75, 133), (130, 97)])
def test_every_attention_backend_gives_what_the_reference_gives(small, backend, height, width):
    """Outputs and gradients, at sizes that pad the windows and the reduction."""
    image = torch.randn(2, 3, height, width, dtype=torch.float64)
    results = []
    for name in (backend, 'reference'):
        torch.manual_seed(0)
        model = SGFormer(small, attn_backend=name).double().eval()
        outs, grad = run(model, image)
        results.append([*outs, grad, *(p.grad for p in model.parameters())])
    for i, (ours, expected) in enumerate(zip(*results, strict=True)):
        assert_close(ours, expected, NETWORK[torch.float64].backward, i)


@needs_torch(2, 6, 'tracing of zip(strict=True) and itertools.pairwise')
@pytest.mark.parametrize('with_cp', [False, True])
def test_compiles_without_a_graph_break(small, with_cp):
    """One graph, forward and backward, with the same result."""
    torch.manual_seed(0)
    model = SGFormer(small, with_cp=with_cp, drop_path_rate=0.0).double()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    image = torch.randn(2, 3, 75, 133, dtype=torch.float64)
    results = []
    for backbone in (model, compiled):
        outs, grad = run(backbone, image)
        results.append([*outs, grad, *(p.grad.clone() for p in model.parameters())])
    tolerance = NETWORK[torch.float64]
    for i, (traced, eager) in enumerate(zip(*results[::-1], strict=True)):
        assert_close(traced, eager, tolerance.forward if i < len(STRIDES) else tolerance.backward, i)


@needs_torch(2, 8, 'recompile_limit and its kind of guards')
def test_blocks_that_are_compiled_take_many_sizes():
    """A graph for each of five kinds of block, again for single images, few for small maps; no more."""
    graphs = []
    small = {'embed_dims': (16, 32, 64, 128), 'depths': (2, 1, 1, 1), 'num_heads': (2, 2, 4, 4)}
    model = SGFormer(small, drop_path_rate=0.0)
    sizes = [(2, 200, 264), (1, 166, 230), (1, 172, 135), (2, 141, 201), (3, 173, 151), (4, 205, 101)]
    images = [torch.randn(batch, 3, height, width) for batch, height, width in sizes]
    expected = [model(image)[-1] for image in images]

    def backend(graph: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    for stage in model.stages:
        for block in stage.blocks:
            block.compile(fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(recompile_limit=16):
        for image, out in zip(images, expected, strict=True):
            assert_close(model(image)[-1], out, NETWORK[torch.float32].forward)
    assert 5 <= len(graphs) <= 15


@pytest.mark.parametrize('kernel', [True, False])
def test_float32_agrees_with_float64(tiny, kernel, monkeypatch):
    """Maps and gradients, with the operator in C++ and without it."""
    if not kernel:
        monkeypatch.setattr(attention_cpu, 'is_available', lambda: False)
    torch.manual_seed(0)
    model = SGFormer(tiny, drop_path_rate=0.0)
    exact = SGFormer(tiny, drop_path_rate=0.0).double()
    exact.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 448, 544)
    results = []
    for net in (model, exact):
        outs, grad = run(net, image.to(net.pos_embed.dtype))
        results.append([*outs, grad, *(p.grad for p in net.parameters())])
    outs, exact_outs = (result[: len(STRIDES)] for result in results)
    for ours, other in zip(outs, exact_outs, strict=True):
        assert_close(ours, other, NETWORK[torch.float32].forward)
    grads, exact_grads = (torch.cat([g.flatten() for g in result[len(STRIDES) :]]) for result in results)
    assert_close(grads, exact_grads, NETWORK[torch.float32].backward)


@pytest.mark.parametrize('scale', [1e3, 1e4])
@pytest.mark.parametrize('dtype', AUTOCAST_TYPES)
def test_large_images_values_stay_finite_under_autocast(tiny, dtype, scale):
    torch.manual_seed(0)
    model = SGFormer(tiny)
    with torch.autocast('cpu', dtype):
        outs = model(scale * torch.randn(1, 3, 64, 64))
    assert all(out.isfinite().all() for out in outs)


def test_archs_have_long_names_too():
    for name, long_name in (('t', 'tiny'), ('s', 'Small'), ('m', 'medium'), ('b', 'Base')):
        assert resolve_arch(name) == resolve_arch(long_name)


@pytest.mark.parametrize('size', [(64, 96), (75, 133)])
def test_every_parameter_gets_a_gradient(tiny, size):
    """Larger than what rounding leaves of nothing in float64."""
    model = SGFormer(tiny, drop_path_rate=0.0).double()
    run(model, torch.randn(2, 3, *size, dtype=torch.float64))
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.norm() > 1e-6]
    assert not without


@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_gradient_checkpointing_changes_nothing(tiny, drop_path_rate, dtype):
    image = torch.randn(2, 3, 75, 133)
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = SGFormer(
            tiny, with_cp=with_cp, drop_path_rate=drop_path_rate, drop_rate=0.1, attn_drop_rate=0.1
        )
        with torch.autocast('cpu', dtype, enabled=dtype is not None):
            outs, grad = run(model, image)
        results.append([*outs, grad, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *results))


@pytest.fixture
def one_process_group():
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('with_cp', [False, True])
def test_composes_with_ddp_and_autocast(tiny, with_cp, one_process_group):
    """DDP finds every gradient, and changes none."""
    torch.manual_seed(0)
    model = SGFormer(tiny, with_cp=with_cp, drop_path_rate=0.0)
    image = torch.randn(1, 3, 75, 133)
    grads = []
    for backbone in (model, nn.parallel.DistributedDataParallel(model)):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            outs = backbone(image)
        probed(outs).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *grads))


def test_gradient_checkpointing_saves_memory(tiny):
    """Fewer elements are kept for the backward pass."""
    kept = []
    for with_cp in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t
        ):
            SGFormer(tiny, with_cp=with_cp)(torch.randn(1, 3, 128, 128))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize('dtype', AUTOCAST_TYPES)
def test_autocast_is_close_to_float32(tiny, dtype):
    """Closeness as the relative error in the Frobenius norm, per stage."""
    torch.manual_seed(0)
    model = SGFormer(tiny).eval()
    image = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast('cpu', dtype):
            outs = model(image)
    for out, reference in zip(outs, expected, strict=True):
        assert_close(out, reference, NETWORK[dtype].forward)


def test_train_and_eval_return_the_model(tiny):
    model = SGFormer(tiny, frozen_stages=1, norm_eval=True)
    assert model.eval() is model
    assert model.train() is model
    assert model.training


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages_as_in_mmdet(tiny, frozen_stages):
    """Frozen parts have no gradient and stay in eval mode; k freezes the stem and the first k stages."""
    model = SGFormer(tiny, frozen_stages=frozen_stages).train()
    for i, stage in enumerate(model.stages):
        is_frozen = i < frozen_stages
        assert all(p.requires_grad != is_frozen for p in stage.parameters())
        assert all(m.training != is_frozen for m in stage.modules())
    assert model.pos_embed.requires_grad == (frozen_stages < 0)
    assert all(p.requires_grad == (frozen_stages < 0) for p in model.stem.parameters())
    assert model.stem.training == (frozen_stages < 0)


def test_norm_eval_keeps_norms_in_eval_mode(tiny):
    model = SGFormer(tiny, norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.GroupNorm))]
    assert norms
    assert not any(m.training for m in norms)
    assert model.stages[0].blocks[0].ffn.training


@pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 2), (2, 0), [0, 1, 2, 3]])
def test_out_indices(small, model, out_indices):
    """The chosen maps in the chosen order; what no output needs is not trained, as DDP demands."""
    chosen = SGFormer(small, out_indices=out_indices).eval()
    chosen.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    outs = chosen(image)
    everything = model(image)
    for out, i in zip(outs, out_indices, strict=True):
        torch.testing.assert_close(out, everything[i])
    probed(outs).backward()
    assert all((p.grad is not None) == p.requires_grad for p in chosen.parameters())


def test_outputs_are_contiguous(model):
    """mmcv's RoIAlign reads any map as if it were contiguous: channels-last ones give garbage, silently."""
    assert all(out.is_contiguous() for out in model(torch.randn(2, 3, 96, 64)))


@pytest.mark.parametrize('grid', [224, (224, 224), (96, 160)])
def test_position_embedding_is_used_as_it_is_at_its_own_size(tiny, grid):
    model = SGFormer(tiny, pretrain_img_size=grid)
    height, width = (s // 4 for s in ((grid, grid) if isinstance(grid, int) else grid))
    assert model.pos_embed.shape == (1, height * width, 32)
    assert torch.equal(model._position_embedding(height, width).flatten(1, 2), model.pos_embed)


@pytest.mark.parametrize('size', [(9, 31), (80, 80)])
def test_position_embedding_is_resized_as_opencv_does(size):
    """Bicubic with a = -0.75, between the centres of cells that cover the same image; no antialiasing."""
    torch.manual_seed(0)
    model = SGFormer('s')
    nn.init.normal_(model.pos_embed)
    grid = model.pos_embed.detach().view(56, 56, 64).numpy()
    expected = torch.from_numpy(cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC))
    # OpenCV's weights are rounded to float32.
    assert_close(model._position_embedding(*size)[0].detach(), expected, 1e-5)


def test_sincos_position_embedding():
    """Channels: sin and cos of x, then sin and cos of y, at frequencies 1 / 10000^(2i/D)."""
    embedding = sincos_position_embedding(5, 7, 16).view(5, 7, 16)
    y, x, i = 3, 4, 1
    frequency = 10000 ** (-2 * i / 8)
    expected = torch.tensor([frequency * x, frequency * x, frequency * y, frequency * y])
    expected = torch.stack([expected[0].sin(), expected[1].cos(), expected[2].sin(), expected[3].cos()])
    torch.testing.assert_close(embedding[y, x, i::4], expected)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = drop_path(torch.ones(4000, 3, 2), 0.25, training=True)
    per_sample = x.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert per_sample.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert x.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path(x, 0.25, training=False), x)


@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_stochastic_depth_grows_linearly_over_all_blocks(tiny, rate):
    rates = [
        block.drop_path.probability
        for stage in SGFormer(tiny, drop_path_rate=rate).stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([rate * i / 8 for i in range(9)])


def test_initial_weights():
    """Linear std 0.02, convolution variance 2 / fan_out with groups counted, zero biases."""
    torch.manual_seed(0)
    model = SGFormer('s')
    block = model.stages[2].blocks[0]
    assert block.ffn.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.ffn.conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert model.stem.conv2.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    assert all((p == 0).all() for n, p in model.named_parameters() if n.endswith('bias'))


GOOD_ARCH = {'embed_dims': (32, 64, 128, 256), 'depths': (2, 2, 4, 1), 'num_heads': (2, 4, 8, 16)}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'arch': 'xxl'}, "unknown arch 'xxl'.*'s', 'm', 'b'"),
        ({'arch': 5}, 'arch must be a name or a dict'),
        ({'arch': {k: v for k, v in GOOD_ARCH.items() if k != 'depths'}}, r"missing: \['depths'\]"),
        ({'arch': {**GOOD_ARCH, 'depth': 3}}, r"unknown: \['depth'\]"),
        ({'arch': {**GOOD_ARCH, 'depths': (2, 2, 4)}}, r"arch\['depths'\] must be 4 positive integers"),
        ({'arch': {**GOOD_ARCH, 'depths': (2, 2, 4, 0)}}, r"arch\['depths'\] must be 4 positive integers"),
        ({'arch': {**GOOD_ARCH, 'embed_dims': 32}}, r"arch\['embed_dims'\] must be 4 positive integers"),
        ({'arch': {**GOOD_ARCH, 'num_heads': (2, 4, 8, 15)}}, 'stage 3: embed_dims 256 .* num_heads 15'),
        ({'arch': {**GOOD_ARCH, 'num_heads': (1, 4, 8, 16)}}, 'stage 0: num_heads must be even'),
        ({'arch': {**GOOD_ARCH, 'embed_dims': (34, 64, 128, 256)}}, 'multiple of 4'),
        ({'out_indices': (0, 4)}, r'out_indices must be a list of distinct stages in 0\.\.3'),
        ({'out_indices': (-1,)}, r'out_indices must be a list of distinct stages in 0\.\.3'),
        ({'out_indices': (1, 1)}, r'out_indices must be a list of distinct stages in 0\.\.3'),
        ({'out_indices': 3}, r'out_indices must be a list of distinct stages in 0\.\.3'),
        ({'out_indices': ()}, r'out_indices must be a list of distinct stages in 0\.\.3'),
        ({'frozen_stages': 5}, r'frozen_stages must be in -1\.\.4, got 5'),
        ({'frozen_stages': 1.0}, r'frozen_stages must be in -1\.\.4, got 1.0'),
        ({'frozen_stages': -2}, r'frozen_stages must be in -1\.\.4, got -2'),
        ({'drop_path_rate': 1.0}, r'drop_path_rate must be in \[0, 1\)'),
        ({'pretrain_img_size': (224,)}, 'pretrain_img_size must be'),
        ({'drop_path_rate': '0.1'}, r'drop_path_rate must be in \[0, 1\)'),
        ({'pretrain_img_size': 224.0}, 'pretrain_img_size must be'),
        ({'pretrain_img_size': 16}, 'pretrain_img_size must be'),
        ({'in_channels': 0}, 'in_channels must be'),
        ({'attn_backend': 'cuda'}, "must be one of auto, reference, chunked, triton, got 'cuda'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SGFormer(**{'arch': GOOD_ARCH, **arguments})


@pytest.mark.parametrize('shape', [(1, 3, 31, 64), (1, 3, 64, 31), (1, 4, 64, 64), (3, 64, 64)])
def test_bad_images_are_named(model, shape):
    with pytest.raises(ValueError, match=rf'H, W >= 32, got shape \({shape[0]}, {shape[1]}'):
        model(torch.zeros(shape))


def test_integer_images_are_refused(model):
    with pytest.raises(TypeError, match='floating-point images'):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_another_type_than_the_weights_are_refused(model, dtype):
    with pytest.raises(TypeError, match=f'SGFormer has weights of torch.float32 here, got images of {dtype}'):
        model(torch.zeros(1, 3, 64, 64, dtype=dtype))


def test_an_empty_batch_gives_empty_maps(model):
    assert [out.shape[0] for out in model(torch.zeros(0, 3, 64, 64))] == [0, 0, 0, 0]


def test_only_torch_and_mmengine_are_needed():
    frameworks = ['mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision']
    program = f'import sys; sys.modules.update(dict.fromkeys({frameworks})); import mmsgformer'
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_in_channels(tiny):
    assert len(SGFormer(tiny, in_channels=5)(torch.randn(1, 5, 64, 64))) == 4


ORDERS = [('mmdet', 'mmsgformer'), ('mmsgformer', 'mmseg'), ('mmpretrain', 'mmsgformer')]


@pytest.mark.parametrize(
    ('first', 'second'), ORDERS + [pytest.param(*order[::-1], marks=pytest.mark.slow) for order in ORDERS]
)
def test_each_framework_builds_it_in_a_process_of_its_own(first, second):
    """Whichever is imported first."""
    framework = second if first == 'mmsgformer' else first
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f'{framework} is not installed: the backbone alone is tested')
    imports = {framework: f'from {framework}.registry import MODELS', 'mmsgformer': 'import mmsgformer'}
    build = "print(type(MODELS.build(dict(type='SGFormer', arch='s'))).__name__, MODELS.scope)"
    program = '; '.join([imports[first], imports[second], build])
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == ['SGFormer', framework], result.stderr


def test_what_is_no_image_is_a_clear_error():
    """60 random inputs: sizes, layouts, dtypes, empty batches, extreme values, things that are no tensors."""
    fuzz(inputs=60, seed=0)
