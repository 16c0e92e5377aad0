"""timm's backbones of a fixed size: the four maps, and clear errors elsewhere."""

import pytest
import torch

timm = pytest.importorskip('timm')

from mmsgformer.study.timm_backbone import TimmBackbone  # noqa: E402

# Small ones of the kinds that the study has.
MAXVIT, GCVIT = 'maxvit_rmlp_pico_rw_256', 'gcvit_xxtiny'


@pytest.mark.parametrize('name', [MAXVIT, GCVIT])
def test_a_batch_gives_four_maps_of_each_image(name):
    """No image meets another one: timm's GC ViT once mixed them up."""
    torch.manual_seed(0)
    model = TimmBackbone(name, img_size=224, out_indices=(3, 0)).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        maps, alone = model(images), model(images[1:])
    assert [m.shape[2:] for m in maps] == [(7, 7), (56, 56)]
    for one, single in zip(maps, alone, strict=True):
        torch.testing.assert_close(one[1:], single, rtol=1e-4, atol=1e-4)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match='gcvit_xxtiny was built for images of 224 x 224, got 256 x 224'):
        TimmBackbone(GCVIT)(torch.zeros(1, 3, 256, 224))


def test_a_gcvit_that_mixes_images_up_is_refused(monkeypatch):
    monkeypatch.setattr(timm, '__version__', '0.9.16')
    with pytest.raises(ImportError, match='mixes the images of a batch up'):
        TimmBackbone(GCVIT)
