"""Predictions and maps of image files, for every framework, and what happens to files that are no images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.visualization.drawing import draw_panel
from mmsgformer.visualization.predictions import Predictor, find_images, read_image

CONFIGS = Path(__file__).parents[2] / 'configs' / 'demo'
KINDS = {
    'detector': 'mask-rcnn_sgformer-tiny_fpn_shapes.py',
    'segmenter': 'sgformer-tiny_upernet_shapes.py',
    'classifier': 'sgformer-tiny_shapes.py',
}


def untrained(kind: str, folder: Path) -> Path:
    """A checkpoint of a freshly initialised model."""
    cfg = Config.fromfile(CONFIGS / KINDS[kind])
    init_default_scope(cfg.default_scope)
    path = folder / 'weights.pth'
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, path)
    return path


@pytest.mark.parametrize('kind', KINDS)
def test_an_image_gets_predictions_maps_and_a_panel(kind, shapes, tmp_path):
    predictor = Predictor(CONFIGS / KINDS[kind], untrained(kind, tmp_path), device='cpu')
    path = shapes / 'val2017' / '000001.jpg'
    sample = predictor.predict(path)
    field = {'detector': 'pred_instances', 'segmenter': 'pred_sem_seg', 'classifier': 'pred_label'}[kind]
    assert field in sample
    maps = predictor.maps(path)
    side = 64 if kind == 'classifier' else 112
    assert [m.values.shape for m in maps] == [(1, side >> s, side >> s) for s in (2, 3, 4, 4)]
    image = read_image(path)
    drawn = predictor.draw(path, sample)
    assert drawn.shape == image.shape
    draw_panel(image, maps, path.name, drawn).savefig(tmp_path / 'panel.png')
    assert (tmp_path / 'panel.png').stat().st_size > 10_000


def test_padding_is_not_shown(shapes, tmp_path):
    """A 100 x 60 image is resized to 112 x 67 and padded to 112 x 112."""
    predictor = Predictor(CONFIGS / KINDS['detector'], untrained('detector', tmp_path), device='cpu')
    path = tmp_path / 'wide.png'
    write_noise(path, height=60, width=100)
    assert [m.values.shape[1:] for m in predictor.maps(path)] == [(17, 28), (9, 14), (5, 7), (5, 7)]


def write_noise(path: Path, height: int, width: int) -> None:
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_pictures_are_drawn_on_the_pixels_that_the_pipeline_read(shapes, tmp_path):
    """A photo that its EXIF turns by 90 degrees, with a pipeline that ignores that, as its boxes do."""
    with Image.open(shapes / 'val2017' / '000001.jpg') as photo:
        stored = np.asarray(photo.convert('RGB').crop((0, 0, 112, 80)))
    path = tmp_path / 'turned.png'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(path, exif=exif)
    cfg = Config.fromfile(CONFIGS / KINDS['detector'])
    for color_type, expected in (('color', np.rot90(stored, -1)), ('color_ignore_orientation', stored)):
        cfg.test_dataloader.dataset.pipeline[0].color_type = color_type
        cfg.dump(tmp_path / 'config.py')
        predictor = Predictor(tmp_path / 'config.py', untrained('detector', tmp_path), device='cpu')
        sample = predictor.predict(path)
        sample.pred_instances = sample.pred_instances[:0]  # what is drawn then is the image
        assert sample.ori_shape == expected.shape[:2]
        np.testing.assert_array_equal(predictor.draw(path, sample), expected)


@pytest.mark.parametrize('flag', ['color', 'unchanged', 'grayscale'])
@pytest.mark.parametrize('to_float32', [False, True])
def test_whatever_a_pipeline_reads_can_be_drawn_on(flag, to_float32, tmp_path):
    """Grey, with alpha, in floating point: three channels of 8 bits with the same values."""
    cv2.imwrite(str(tmp_path / 'grey.png'), np.arange(12, dtype=np.uint8).reshape(3, 4))
    image = read_image(tmp_path / 'grey.png', LoadImageFromFile(to_float32=to_float32, color_type=flag))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.arange(12).reshape(3, 4, 1).repeat(3, axis=2))


@pytest.mark.parametrize('content', [None, '', 'no image'], ids=['absent', 'empty', 'text'])
def test_a_file_that_is_no_image_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / 'bad.jpg').write_text(content)
    with pytest.raises(ValueError, match=r'bad\.jpg is no image'):
        read_image(tmp_path / 'bad.jpg')


def test_images_are_found_by_name(tmp_path):
    for name in ('b.JPG', 'a.png', 'notes.txt'):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ['a.png', 'b.JPG']
    assert find_images(tmp_path / 'a.png') == [tmp_path / 'a.png']
    (tmp_path / 'empty').mkdir()
    for path in (tmp_path / 'absent', tmp_path / 'empty'):
        with pytest.raises(FileNotFoundError, match=path.name):
            find_images(path)


def test_weights_of_another_kind_of_model_are_refused(official, tmp_path):
    torch.save(official, tmp_path / 'official.pth')
    with pytest.raises(CheckpointError, match='does not hold the whole model'):
        Predictor(CONFIGS / KINDS['segmenter'], tmp_path / 'official.pth', device='cpu')


def test_the_tool_reports_a_bad_image_and_draws_the_others(run_tool, shapes, tmp_path):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    (images / 'bad.jpg').write_text('no image')
    (images / 'empty.jpg').touch()
    (images / 'good.jpg').write_bytes((shapes / 'val2017' / '000001.jpg').read_bytes())
    model = ['--config', CONFIGS / KINDS['segmenter'], '--checkpoint', untrained('segmenter', tmp_path)]
    result = run_tool('visualize_significance.py', images, *model, '--out-dir', out, '--device', 'cpu')
    assert result.returncode == 1
    assert '1 of 3 images drawn' in result.stdout
    assert 'bad.jpg is no image' in result.stderr
    assert 'empty.jpg is no image' in result.stderr
    assert [path.name for path in out.iterdir()] == ['good.jpg.png']


@pytest.mark.parametrize('kind', KINDS)
def test_the_frameworks_inferencers_agree(kind, shapes, tmp_path):
    """DetInferencer, MMSegInferencer and ImageClassificationInferencer, given our config and checkpoint."""
    config, weights = str(CONFIGS / KINDS[kind]), str(untrained(kind, tmp_path))
    path = str(shapes / 'val2017' / '000001.jpg')
    ours = Predictor(config, weights, device='cpu').predict(path)
    if kind == 'detector':
        from mmdet.apis import DetInferencer

        theirs = DetInferencer(config, weights, device='cpu')(path)['predictions'][0]
        np.testing.assert_allclose(theirs['bboxes'], ours.pred_instances.bboxes, atol=1e-3)
        assert theirs['labels'] == ours.pred_instances.labels.tolist()
    elif kind == 'segmenter':
        from mmseg.apis import MMSegInferencer

        theirs = MMSegInferencer(config, weights, device='cpu')(path)['predictions']
        assert (theirs == ours.pred_sem_seg.data[0].numpy()).all()
    else:
        from mmpretrain import ImageClassificationInferencer

        (theirs,) = ImageClassificationInferencer(config, weights, device='cpu')(path)
        np.testing.assert_allclose(theirs['pred_scores'], ours.pred_score, atol=1e-6)
