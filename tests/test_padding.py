"""Padding takes no part: an image of a padded batch has the maps, gradients and detections it has alone."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseDataPreprocessor, BaseModel, MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from mmsgformer import SGFormer
from mmsgformer.sgformer import STRIDES
from mmsgformer.visualization.maps import batch_maps, record_significance, significance_maps

DEMO = Path(__file__).parents[1] / 'configs' / 'demo'
BATCH = (100, 130)
SIZES = [(64, 90), (100, 50), (64, 90), (20, 130)]
SMALL = {'embed_dims': (16, 32, 64, 128), 'depths': (2, 2, 2, 1), 'num_heads': (2, 2, 4, 4)}


class Model(BaseModel):
    """What the frameworks' models have in common, and the maps themselves as predictions."""

    def __init__(self, **options: object) -> None:
        super().__init__(BaseDataPreprocessor())
        self.backbone = SGFormer(SMALL, **options)

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> tuple[Tensor, ...] | dict[str, Tensor]:
        maps = self.backbone(inputs)
        return {'loss': probed(maps, BATCH)} if mode == 'loss' else maps


def probed(maps: tuple[Tensor, ...], size: tuple[int, int], images: slice = slice(None)) -> Tensor:
    """A loss of what lies within images of a size: the maps times fixed random numbers, summed."""
    fixed = torch.Generator().manual_seed(0)
    total = 0
    for m in maps:
        probe = torch.randn(*m.shape[1:2], *BATCH, generator=fixed).to(m)
        inside = m[images, :, : -(-size[0] // stride(m)), : -(-size[1] // stride(m))]
        total = total + (inside * probe[:, : inside.shape[2], : inside.shape[3]]).sum()
    return total


def stride(m: Tensor) -> int:
    return STRIDES[SMALL['embed_dims'].index(m.shape[1])]


def samples(sizes: list[tuple[int, int]]) -> list[BaseDataElement]:
    return [BaseDataElement(metainfo={'img_shape': size}) for size in sizes]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model(ignore_padding=True).double().eval()


@pytest.fixture
def images() -> Tensor:
    """A batch with garbage, which nothing may depend on, where the padding is."""
    return torch.randn(len(SIZES), 3, *BATCH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3, 1)])
def test_an_image_has_the_maps_and_gradients_that_it_has_alone(model, images, with_cp, out_indices):
    """Against the backbone by itself, one cropped image at a time. A side is at least 32, the stride."""
    weights = model.state_dict()
    model = Model(ignore_padding=True, with_cp=with_cp, out_indices=out_indices).double().eval()
    model.load_state_dict(weights)
    images.requires_grad_()
    maps = model(images, samples(SIZES))
    sum(probed(maps, size, slice(i, i + 1)) for i, size in enumerate(SIZES)).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    for i, (height, width) in enumerate(SIZES):
        height = max(height, 32)
        image = images[i : i + 1, :, :height, :width].detach().requires_grad_()
        expected = model.backbone(image)
        probed(expected, SIZES[i]).backward()
        for ours, alone in zip(maps, expected, strict=True):
            assert ours.shape[2:] == tuple(-(-side // stride(ours)) for side in BATCH)
            assert ours.is_contiguous()
            inside = torch.zeros_like(ours[i])
            inside[:, : alone.shape[2], : alone.shape[3]] = alone[0]
            torch.testing.assert_close(ours[i], inside, rtol=0, atol=1e-10)
        found = images.grad[i].clone()
        torch.testing.assert_close(found[:, :height, :width], image.grad[0], rtol=0, atol=1e-9)
        found[:, :height, :width] = 0
        assert not found.any()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-10, atol=1e-9)


def test_without_the_mode_the_padding_takes_part(model, images):
    """What the mode is for; and switching it off is switching off all of it."""
    ordinary = Model().double().eval()
    ordinary.load_state_dict(model.state_dict())
    one = images[:1, :, :64, :90]
    whole, alone = ordinary(images, samples(SIZES)), ordinary(one, samples(SIZES[:1]))
    assert (whole[0][0, :, :16, :22] - alone[0][0, :, :16, :22]).abs().max() > 0.1
    assert not ordinary._forward_pre_hooks


def test_a_batch_without_padding_runs_once(model, images):
    """At no cost, and with the same bits."""
    calls = []
    model.backbone.stem.register_forward_hook(lambda *_: calls.append(1))
    maps = model(images, samples([BATCH] * len(images)))
    assert len(calls) == 1
    assert all(map(torch.equal, maps, model.backbone(images)))
    calls.clear()
    model(images, samples(SIZES))
    assert len(calls) == 3  # the sizes


def test_sizes_hold_for_one_forward_pass_and_its_batch(model, images):
    """Not after an error, not for a backbone that is called by itself or with parts of the batch."""
    whole = model.backbone(images)
    assert all(map(torch.equal, model(images), whole))  # no data samples
    with pytest.raises(TypeError, match='weights of'):
        model(images.float(), samples(SIZES))
    assert all(map(torch.equal, model.backbone(images), whole))
    model.register_forward_pre_hook(lambda model, *_: seen.append(model.backbone(images[..., 10:])))
    seen = []
    model(images, samples(SIZES))
    assert all(map(torch.equal, seen[0], model.backbone(images[..., 10:])))


def test_copies_have_sizes_of_their_own(model, images):
    """As a moving average's or a teacher's; and those that torch saves whole."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin(images, samples(SIZES))[0][0, :, 16:].abs().max() == 0
    assert twin(images, samples(SIZES))[0][0, :, :16].abs().max() > 0


def test_a_pipeline_that_does_not_say_the_size_is_refused(model, images):
    with pytest.raises(ValueError, match='add img_shape to the meta_keys'):
        model(images, [BaseDataElement() for _ in images])


def test_distributed_training(model, images, tmp_path):
    """DDP hands the batch on to the model, as it does in MMEngine's train_step."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        batch = {'inputs': images, 'data_samples': samples(SIZES), 'mode': 'loss'}
        expected = torch.autograd.grad(model(**batch)['loss'], list(model.parameters()))
        wrapped = MMDistributedDataParallel(model)
        wrapped(**batch)['loss'].backward()
        for grad, parameter in zip(expected, model.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-10, atol=1e-9)
    finally:
        torch.distributed.destroy_process_group()


def test_significance_is_that_of_each_size(model, images):
    """And the significance of a batch of one image is the image's, without its padding."""
    with record_significance(model.backbone) as maps:
        model(images, samples(SIZES))
    assert [len(m.values) for m in maps] == [2, 2, 2, 1, 1, 1, 1, 1, 1]
    expected = significance_maps(model.backbone, images[:1, :, :64, :90])
    batch = {'inputs': images[:1], 'data_samples': samples(SIZES[:1])}
    for of_batch, alone, m in zip(batch_maps(model, batch), expected, maps, strict=False):
        assert torch.equal(of_batch.values, alone.values)
        torch.testing.assert_close(m.values[:1], alone.values)


def build(name: str, **options: object) -> BaseModel:
    """A demo's model with random weights, always the same."""
    cfg = Config.fromfile(DEMO / name)
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


def remember_maps(model: BaseModel) -> list[Tensor]:
    """The maps that the backbone gave last, without gradients."""
    seen: list[Tensor] = []
    model.backbone.register_forward_hook(
        lambda _, __, maps: seen.__setitem__(slice(None), [m.detach() for m in maps])
    )
    return seen


def same_inside(batch: list[Tensor], alone: list[Tensor]) -> bool:
    """Whether the first image of a batch has the maps that it has alone."""
    pairs = zip(batch, alone, strict=True)
    return all(
        torch.allclose(m[:1, :, : one.shape[2], : one.shape[3]], one, rtol=0, atol=1e-4) for m, one in pairs
    )


@pytest.mark.parametrize('mode', [True, False])
def test_a_detector_finds_what_it_finds_alone(mode):
    """Through mmdet's own preprocessor, in training and in testing; without the mode it does not.

    What is left is the neck's: its 3x3 convolutions see beyond the image's edge what it makes of zeros.
    """
    from mmdet.testing import demo_mm_inputs

    options = {'backbone.ignore_padding': mode, 'data_preprocessor.pad_size_divisor': 32}
    detector = build('mask-rcnn_sgformer-tiny_fpn_shapes.py', **options)
    shapes = [(3, 64, 96), (3, 128, 160)]
    batch = demo_mm_inputs(2, shapes, num_items=[2, 2], num_classes=4, with_mask=True)
    alone = {key: value[:1] for key, value in batch.items()}
    seen = remember_maps(detector)

    def train(data: dict) -> list[Tensor]:
        detector.train()(**detector.data_preprocessor(copy.deepcopy(data), training=True), mode='loss')
        return list(seen)

    @torch.no_grad()
    def find(data: dict) -> tuple[list[Tensor], Tensor]:
        found = detector.eval().test_step(copy.deepcopy(data))[0].pred_instances
        return list(seen), found.scores[:5]

    assert same_inside(train(batch), train(alone)) == mode
    (maps, best), (maps_alone, best_alone) = find(batch), find(alone)
    assert same_inside(maps, maps_alone) == mode
    assert torch.allclose(best, best_alone, rtol=0, atol=5e-3) == mode


@pytest.mark.parametrize('mode', [True, False])
def test_a_segmenter_trains_on_what_it_sees_alone(mode):
    """mmseg pads in training, to the size of its preprocessor."""
    segmenter = build('sgformer-tiny_upernet_shapes.py', **{'backbone.ignore_padding': mode}).train()
    seen = remember_maps(segmenter)
    data = segmenter.data_preprocessor(segmentation_batch((64, 90), (112, 112)), training=True)
    assert data['inputs'].shape[2:] == (112, 112)
    segmenter(**data, mode='loss')['decode.loss_ce'].backward()
    maps = list(seen)
    segmenter.backbone(data['inputs'][:1, :, :64, :90])
    assert same_inside(maps, seen) == mode


def segmentation_batch(*sizes: tuple[int, int]) -> dict:
    """Random images of these sizes, of one photo of 100 x 140, in the form of mmseg's data loaders."""
    from mmseg.structures import SegDataSample

    packed = []
    for size in sizes:
        labels = PixelData(data=torch.randint(0, 5, (1, *size)))
        meta = {'img_shape': size, 'ori_shape': (100, 140), 'img_path': 'photo.jpg'}
        sample = SegDataSample(gt_sem_seg=labels, metainfo=meta)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        packed.append({'inputs': image, 'data_samples': sample})
    return pseudo_collate(packed)


def test_test_time_augmentation():
    """mmseg's, of two sizes and in slices: each size is padded, to a multiple of 64, on its own."""
    from mmseg.models import SegTTAModel

    options = {'backbone.ignore_padding': True, 'data_preprocessor.test_cfg': {'size_divisor': 64}}
    segmenter = build('sgformer-tiny_upernet_shapes.py', **options).eval()
    sizes = []
    segmenter.backbone.stem.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:]))
    two = [segmentation_batch(size) for size in [(100, 140), (150, 210)]]
    with torch.no_grad():
        SegTTAModel(module=segmenter).test_step({key: [batch[key] for batch in two] for key in two[0]})
    assert sizes == [(100, 140), (150, 210)]


def test_slices_are_not_taken_for_the_image():
    """mmseg's slices of an image have the backbone run on parts of the batch, which have no padding."""
    options = {'test_cfg': {'mode': 'slide', 'crop_size': (96, 96), 'stride': (64, 64)}}
    batch = segmentation_batch((100, 140))
    found = []
    for mode in (True, False):
        options['backbone.ignore_padding'] = mode
        segmenter = build('sgformer-tiny_upernet_shapes.py', **options).eval()
        with torch.no_grad():
            found.append(segmenter.test_step(copy.deepcopy(batch))[0].seg_logits.data)
    assert torch.equal(*found)
