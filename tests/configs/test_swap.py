"""The swap guide's examples: each builds, and trains two steps with its own optimizer."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

EXAMPLES = sorted((Path(__file__).parents[2] / 'configs' / 'swap').glob('*.py'))
SIZE = (96, 128)
# Fewer of everything that is not the backbone, so that a step is quick on CPU.
SMALLER = {
    'mmdet_cascade-rcnn': {
        'model.train_cfg.rpn_proposal.max_per_img': 50,
        **{f'model.train_cfg.rcnn.{i}.sampler.num': 16 for i in range(3)},
        **{f'model.roi_head.bbox_head.{i}.fc_out_channels': 64 for i in range(3)},
    },
    'mmdet_dino': {'model.num_queries': 20, 'model.encoder.num_layers': 1, 'model.decoder.num_layers': 2},
    'mmdet_mask2former': {
        'model.data_preprocessor.batch_augments': None,
        'model.panoptic_head.num_queries': 20,
        'model.panoptic_head.transformer_decoder.num_layers': 3,
        'model.panoptic_head.pixel_decoder.encoder.num_layers': 1,
        'model.train_cfg.num_points': 500,
    },
    'mmseg_mask2former': {
        'model.decode_head.num_queries': 20,
        'model.decode_head.transformer_decoder.num_layers': 3,
        'model.decode_head.pixel_decoder.encoder.num_layers': 1,
        'model.decode_head.train_cfg.num_points': 500,
    },
}


def swap_in_tiny(node: ConfigDict | list, tiny: dict) -> None:
    """Give a config the arch `tiny`, and its channels wherever those of the arch 's' are named, in place."""
    channels = dict(zip((64, 128, 256, 512), tiny['embed_dims'], strict=True))
    if isinstance(node, dict):
        inputs = node.get('in_channels')
        if node.get('type') == 'SGFormer':
            node['arch'] = tiny
        elif node.get('type') == 'LinearClsHead':
            node['in_channels'] = channels[inputs]
        elif isinstance(inputs, list) and node['type'] != 'FPNHead':  # that one's inputs come from the neck
            node['in_channels'] = [channels[width] for width in inputs]
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, (dict, list)):
            swap_in_tiny(child, tiny)


def two_images(scope: str) -> dict:
    """A batch of random images with one rectangle each, in the form of the framework's data loaders."""
    images = list(torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8))
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return {'inputs': images, 'data_samples': [DataSample().set_gt_label(label) for label in (0, 1)]}
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, [(3, *SIZE)] * 2, num_items=[1, 1], num_classes=80, with_mask=True)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.zeros(1, *SIZE, dtype=torch.long)
    labels[:, 20:60, 30:90] = 1
    samples = [SegDataSample(gt_sem_seg=PixelData(data=labels)) for _ in images]
    for sample in samples:
        sample.set_metainfo({'img_shape': SIZE, 'ori_shape': SIZE})
    return {'inputs': images, 'data_samples': samples}


def refuse_bad_numbers(what: str, numbers: object) -> None:
    """An error that says what is NaN or infinite: a tensor, or one in a tuple or list."""
    for x in numbers if isinstance(numbers, (tuple, list)) else [numbers]:
        if isinstance(x, torch.Tensor) and not x.isfinite().all():
            raise ArithmeticError(f'bad numbers in {what} {tuple(x.shape)}')


def watch(model: torch.nn.Module) -> None:
    """Let training stop at the first bad number, in the output of a module or in a gradient."""
    for name, module in model.named_modules():
        what = f'the output of {name} ({type(module).__name__})'
        module.register_forward_hook(lambda _, __, output, what=what: refuse_bad_numbers(what, output))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(partial(refuse_bad_numbers, f'the gradient of {name}'))


def machine() -> str:
    """What decides which kernels run."""
    cpuinfo = Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*: (.*)', cpuinfo.read_text()) if cpuinfo.exists() else []
    kernels = f'{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads'
    return ', '.join([f'torch {torch.__version__}', kernels, *names[:1]])


@pytest.fixture
def nan_in_fresh_memory():
    """What depends on memory that nobody wrote to fails everywhere, instead of now and then somewhere."""
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` returns
    yield
    torch.use_deterministic_algorithms(False)


# Examples that keep the rules of their base: its key `backbone` outweighs those for norms and biases.
BACKBONE_KEY = ('mmdet_dino', 'mmdet_mask2former', 'mmseg_mask2former')


def decayed(backbone: torch.nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """Which of the backbone's parameters are decayed that should not be: "norm", "bias", "pos_embed"."""
    ids = {id(p) for group in optimizer.param_groups if group['weight_decay'] for p in group['params']}
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm)
    return {
        'norm' if isinstance(module, norms) else name
        for module in backbone.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in ids and (isinstance(module, norms) or name in ('bias', 'pos_embed'))
    }


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda p: p.stem)
def test_a_swapped_model_trains_two_steps(path, tiny, nan_in_fresh_memory):
    torch.manual_seed(0)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(SMALLER.get(path.stem, {}))
    init_default_scope(cfg.default_scope)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as MMEngine's Runner does
    swap_in_tiny(cfg.model, tiny)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = SIZE
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    watch(model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    if path.stem != 'mmseg_semantic-fpn':  # its decay is 500 times smaller
        expected = {'norm', 'bias'} if path.stem in BACKBONE_KEY else set()
        assert decayed(model.backbone, optimizer.optimizer) == expected
    before = model.backbone.stages[0].blocks[0].ffn.fc1.weight.detach().clone()
    for step in (1, 2):
        try:
            losses = model.train_step(two_images(cfg.default_scope), optimizer)
            refuse_bad_numbers('the loss', losses['loss'])
        except Exception as error:
            raise AssertionError(f'{error!r} in step {step}; {machine()}') from error
    after = model.backbone.stages[0].blocks[0].ffn.fc1.weight
    assert not torch.equal(before, after), f'the backbone did not learn; {machine()}'


def test_fresh_memory_is_nan(nan_in_fresh_memory):
    assert torch.empty(9).isnan().all()


def test_the_module_that_makes_a_bad_number_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight.data[0, 0] = torch.nan
    watch(model)
    with pytest.raises(ArithmeticError, match=r'the output of 1 \(Linear\) \(3, 2\)'):
        model(torch.ones(3, 2))


def test_the_parameter_whose_gradient_is_bad_is_named():
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data.zero_()
    watch(layer)
    root = layer(torch.ones(1, 2)).sqrt()  # 0, and its derivative there is infinite
    with pytest.raises(ArithmeticError, match=r'the gradient of weight \(1, 2\)'):
        root.backward()


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda p: p.stem)
def test_the_guide_shows_the_examples_as_they_are(path):
    guide = (Path(__file__).parents[2] / 'docs' / 'swap.md').read_text()
    same_but_for_the_base = path.read_text().partition('custom_imports')[2]
    assert same_but_for_the_base in guide
    assert f'configs/swap/{path.name}' in guide
