"""SGFormer with every mixer of the registry: sizes, training, precision, tools, and clear errors."""

import pytest
import torch
from older_torch import needs_torch
from tolerances import NETWORK, assert_close
from torch import Tensor, nn

from mmsgformer import SGFormer
from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.mixers import MIXERS, build, from_official
from mmsgformer.release.flops import count_macs
from mmsgformer.study.merge_order import ReorderedSGFormer
from mmsgformer.visualization.maps import significance_maps

SMALL = {'embed_dims': (16, 32, 64, 128), 'depths': (2, 2, 2, 2), 'num_heads': (2, 2, 4, 4)}
NAMES = sorted(MIXERS.module_dict)
DILATED = {'type': 'neighborhood', 'kernel_size': 3, 'dilation': 'auto', 'stride': 2, 'bias': False}


@pytest.fixture(params=[*NAMES, DILATED], ids=lambda m: m if isinstance(m, str) else 'dilated')
def mixer(request) -> str | dict:
    torch.manual_seed(0)
    return request.param


def run(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Maps and all gradients, of the maps times fixed random numbers."""
    model.zero_grad()
    outs = model(image)
    fixed = torch.Generator().manual_seed(0)
    sum((out * torch.randn(out.shape[1:], generator=fixed).to(out)).sum() for out in outs).backward()
    return [*(out.detach() for out in outs), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize('size', [(32, 33), (75, 133), (224, 61)], ids=str)
def test_any_image_and_every_parameter_learns(mixer, size):
    """A batch gives what its images give, and the same bits in a second run."""
    model = SGFormer(SMALL, mixer=mixer, drop_path_rate=0.0).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    outs = run(model, images)
    for (name, _), grad in zip(model.named_parameters(), outs[4:], strict=True):
        assert grad.isfinite().all(), name
        # On a map of one token a softmax, and what is in it, has no say. HorNet starts with gates near 0.
        assert grad.any() or min(size) < 64, name
    assert all(map(torch.equal, outs, run(model, images)))
    alone = run(model, images[1:])
    for out, single in zip(outs[:4], alone[:4], strict=True):
        assert_close(out[1:], single, NETWORK[torch.float64].forward)


def test_gradient_checkpointing_changes_nothing(mixer):
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = SGFormer(SMALL, mixer=mixer, with_cp=with_cp, drop_path_rate=0.3, drop_rate=0.1)
        results.append(run(model, torch.randn(2, 3, 75, 133, generator=torch.Generator().manual_seed(1))))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize('autocast', [True, False])
def test_bfloat16_is_close_to_float32(mixer, autocast):
    model = SGFormer(SMALL, mixer=mixer).eval()
    image = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        expected = model(image)
        dtype = torch.float32 if autocast else torch.bfloat16
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            outs = model.to(dtype)(image.to(dtype))
    for out, reference in zip(outs, expected, strict=True):
        assert_close(out, reference, 2 * NETWORK[torch.bfloat16].forward)


@needs_torch(2, 6, 'tracing of zip(strict=True) and itertools.pairwise')
@pytest.mark.parametrize('block', [0, 1])
def test_compiles_without_a_graph_break(mixer, block):
    """One graph, forward and backward, with the same result."""
    module = build(mixer, 32, 2, stage=2, block=block).double()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    x, significance = torch.randn(2, 9, 16, 32, dtype=torch.float64), torch.rand(2, 9, 16)
    results = []
    for function in (compiled, module):
        module.zero_grad()
        out, _ = function(x.requires_grad_(), significance)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in module.parameters())])
    for i, (ours, eager) in enumerate(zip(*results, strict=True)):
        assert_close(ours, eager, NETWORK[torch.float64].backward, i)


@pytest.mark.slow
@needs_torch(2, 6, 'tracing of zip(strict=True) and itertools.pairwise')
def test_is_exported_at_a_fixed_size(mixer):
    model = SGFormer(SMALL, mixer=mixer).eval()
    image = torch.randn(1, 3, 96, 80)
    exported = torch.export.export(model, (image,), strict=False).module()
    for ours, eager in zip(exported(image), model(image), strict=True):
        assert_close(ours, eager, NETWORK[torch.float32].forward)


def test_layer_decay_and_costs_know_it(mixer):
    """Every parameter has a depth, and the counted multiplications grow with the image."""
    model = SGFormer(SMALL, mixer=mixer).eval()
    depths = {model.get_layer_depth(name) for name, _ in model.named_parameters()}
    assert depths == {(depth, 10) for depth in range(9)}
    macs = [count_macs(model, torch.zeros(1, 3, size, size))[''] for size in (64, 128)]
    assert macs[1] > 2 * macs[0] > 0


def test_only_its_own_mixer_makes_significance(mixer):
    model = SGFormer(SMALL, mixer=mixer)
    image = torch.randn(1, 3, 64, 64)
    if mixer == 'sgformer':
        assert len(significance_maps(model, image)) == 3
        return
    with pytest.raises(ValueError, match=r"no significance to show: the model has the mixer '\w+'"):
        significance_maps(model, image)
    with pytest.raises(ValueError, match='no block is self-guided'):
        ReorderedSGFormer('random', arch=SMALL, mixer=mixer)


def test_the_default_is_the_papers_network():
    """The same modules from the same random numbers, whether it is named or not."""
    models = []
    for arguments in ({}, {'mixer': 'sgformer'}, {'mixer': {'type': 'sgformer', 'backend': 'reference'}}):
        torch.manual_seed(0)
        models.append(SGFormer(SMALL, **arguments))
    for model in models[1:]:
        for key, value in models[0].state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
    assert models[2].stages[0].blocks[0].attn.backend == 'reference'


def test_a_checkpoint_of_another_mixer_is_named(tmp_path):
    """Or, with `partial`, gives all but the mixers."""
    path = tmp_path / 'weights.pth'
    paper = SGFormer(SMALL)
    torch.save({'state_dict': paper.state_dict()}, path)
    start = {'type': 'Pretrained', 'checkpoint': str(path)}
    with pytest.raises(CheckpointError, match=r"blocks have another mixer than 'swin', the config's"):
        SGFormer(SMALL, mixer='swin', init_cfg=start).init_weights()
    model = SGFormer(SMALL, mixer='swin', init_cfg={**start, 'partial': True})
    model.init_weights()
    for key, value in model.state_dict().items():
        if '.attn.' not in key:
            assert torch.equal(value, paper.state_dict()[key]), key


def test_deferred_initialisation(mixer):
    """All that a model on the meta device needs is in its checkpoint."""
    model = SGFormer(SMALL, mixer=mixer).eval()
    with torch.device('meta'):
        deferred = SGFormer(SMALL, mixer=mixer)
    deferred = deferred.to_empty(device='cpu').eval()
    for tensor in (*deferred.parameters(), *deferred.buffers()):
        tensor.data.fill_(torch.nan if tensor.is_floating_point() else -1)
    deferred.load_state_dict(model.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 96)
    assert all(map(torch.equal, deferred(image), model(image)))


def test_an_odd_number_of_heads_is_no_fault_of_a_rivals():
    arch = {**SMALL, 'embed_dims': (48, 96, 192, 384), 'num_heads': (3, 6, 12, 24)}
    SGFormer(arch, mixer='swin')
    with pytest.raises(ValueError, match='num_heads must be even'):
        SGFormer(arch)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            {'mixer': {'type': 'sgformer', 'backend': 'flash'}},
            "the attention backend must be one of .* 'flash'",
        ),
        ({'mixer': 'transformer'}, r"unknown mixer 'transformer'; choose from \[.*'swin'\]"),
        ({'mixer': 3}, "mixer must be a name or a dict with a name as 'type', got 3"),
        ({'mixer': {'window_size': 7}}, "must be a name or a dict with a name as 'type'"),
        ({'mixer': {'type': 'swin', 'windows': 7}}, "'swin' got an unexpected .* 'windows'; it takes dim,"),
        ({'mixer': 'swin', 'attn_backend': 'chunked'}, "the mixer 'swin' got an unexpected .* 'backend'"),
        ({'mixer': 'flow', 'attn_drop_rate': 0.1}, "the mixer 'flow' got an unexpected .* 'attn_drop'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SGFormer(SMALL, **arguments)


def test_dims_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match='dim 16 must be a multiple of num_heads 3'):
        build('swin', 16, 3)


def test_a_mixer_without_official_weights_is_named():
    with pytest.raises(ValueError, match="no official weights are known for the mixer 'sgformer'"):
        from_official('sgformer', {})
    with pytest.raises(ValueError, match="no official weights are known for the mixer 'registry'"):
        from_official('registry', {})


def test_a_mixer_of_ones_own_has_no_official_weights(monkeypatch):
    monkeypatch.setitem(MIXERS.module_dict, 'Mine', nn.Identity)
    with pytest.raises(ValueError, match="no official weights are known for the mixer 'Mine'"):
        from_official('Mine', {})
