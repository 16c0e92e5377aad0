"""The configs of the study: equal but for the backbone, at one budget, and they train on the real data."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from mmengine.structures import InstanceData

from mmsgformer.data.check import check_data
from mmsgformer.data.paths import set_data_root
from mmsgformer.release.flops import count_macs
from mmsgformer.study.plan import read_study

ROOT = Path(__file__).parents[2]
DATA = {'imagenette': 'imagenette128', 'camvid': 'camvid', 'nuclei': 'dsb2018'}
CONFIGS = sorted(p for folder in DATA for p in (ROOT / 'configs' / folder).glob('*.py'))
OURS = {folder: next((ROOT / 'configs' / folder).glob('*sgformer-t_*.py')) for folder in DATA}
PEERS = [path for path in CONFIGS if 'sgformer' not in path.name]
SIZES = {'imagenette': (112, 112), 'camvid': (256, 256), 'nuclei': (256, 256)}


def in_the_study(path: Path) -> str:
    return f'{path.parent.name}/{path.stem}'


def backbone_cost(path: Path) -> tuple[int, int]:
    """Parameters, and MACs of one image of the training's size, of the backbone alone."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.eval()
    macs = count_macs(backbone, torch.randn(1, 3, *SIZES[path.parent.name]))['']
    return sum(parameter.numel() for parameter in backbone.parameters()), macs


@pytest.mark.parametrize('path', PEERS, ids=in_the_study)
def test_peers_have_ours_budget(path):
    """Within 10 %, and as docs/study.md says."""
    ours, peer = backbone_cost(OURS[path.parent.name]), backbone_cost(path)
    for our_number, number in zip(ours, peer, strict=True):
        assert abs(number / our_number - 1) <= 0.10
    page = (ROOT / 'docs' / 'study.md').read_text()
    name = re.sub('^mask-rcnn_', '', path.name).partition('_')[0]
    for backbone, (parameters, macs) in {'sgformer-t': ours, name: peer}.items():
        (row,) = re.findall(rf'\| `{backbone}` \|.*', page)
        assert f'{parameters / 1e6:.2f}' in row
        assert f'{macs / 1e9:.3f}' in row


@pytest.mark.parametrize('path', PEERS + [p for p in CONFIGS if 'sgformer-t-' in p.name], ids=in_the_study)
def test_only_the_backbone_and_its_channels_differ(path):
    ours, other = Config.fromfile(OURS[path.parent.name]), Config.fromfile(path)
    for cfg in (ours, other):
        cfg.model.pop('backbone')
        for part in ('neck', 'decode_head', 'auxiliary_head', 'head'):
            if part in cfg.model:
                cfg.model[part].pop('in_channels', None)
        for key in ('custom_imports', 'peer', 'channels'):
            cfg.pop(key, None)
    assert ours.to_dict() == other.to_dict()


@pytest.mark.parametrize('path', CONFIGS, ids=in_the_study)
def test_a_leaf_is_short(path):
    limit = 20 if path == OURS[path.parent.name] else 7
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize('folder', DATA)
def test_held_out_images_are_not_trained_on_and_all_others_are(folder):
    cfg = Config.fromfile(OURS[folder])
    trained, held_out = (cfg[f'{split}_dataloader'].dataset.indices for split in ('train', 'val'))
    assert sorted(trained + held_out) == list(range(len(trained) + len(held_out)))
    assert 0.09 < len(held_out) / (len(trained) + len(held_out)) < 0.13


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/studies').glob('*.yml')), ids=lambda p: p.stem)
def test_studies_are_read(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert read_study(path).reference == 'SG-Former'


@pytest.mark.parametrize('name', ['sgformer-t', 'swin', 'convnext', 'resnet'])
def test_a_segmenters_backbone_starts_from_the_classifiers(name, tmp_path):
    """All weights but the norms of maps that a classifier has not, and the resized position embedding."""
    file = tmp_path / 'classifier.pth'
    torch.manual_seed(0)
    classifier = build(f'imagenette/{name}_imagenette')
    torch.save({'state_dict': classifier.state_dict()}, file)
    start = {'type': 'Pretrained', 'checkpoint': str(file), 'prefix': 'backbone.'}
    backbone = build(f'camvid/{name}_upernet_camvid', init_cfg=start).backbone
    backbone.init_weights()
    given = classifier.backbone.state_dict()
    for key, value in backbone.state_dict().items():
        if key != 'pos_embed' and not re.match(r'norm[012]\.', key):
            assert torch.equal(value, given[key]), key


def build(config: str, **backbone) -> torch.nn.Module:
    cfg = Config.fromfile(ROOT / f'configs/{config}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(backbone)
    return MODELS.build(cfg.model)


SMALL = {
    'train_cfg.max_iters': 1,
    'train_dataloader.batch_size': 2,
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
    'train_dataloader.persistent_workers': False,
    'val_dataloader.dataset.indices': [3],
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.interval': -1,
    'default_hooks.checkpoint.save_last': False,
    'randomness.seed': 0,
}
SMALLER = {
    'imagenette': {'train_dataloader.dataset.pipeline.1.scale': 64},
    'camvid': {
        'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
        'model.data_preprocessor.size': (64, 64),
    },
    'nuclei': {
        'train_dataloader.dataset.pipeline.2.crop_size': (96, 96),
        'model.train_cfg.rpn_proposal.max_per_img': 50,
        'model.test_cfg.rpn.max_per_img': 50,
    },
}


@pytest.mark.parametrize('path', [p for p in CONFIGS if 'sgformer-s' not in p.name], ids=in_the_study)
def test_it_trains_an_iteration_and_validates_on_the_real_data(path, photos, tmp_path, run_tool):
    folder = path.parent.name
    options = [f'{key}={value}' for key, value in (SMALL | SMALLER[folder]).items()]
    options.append('train_cfg.val_interval=1')
    common = ['--data-root', photos / DATA[folder], '--work-dir', tmp_path]
    result = run_tool('train.py', path, *common, '--cfg-options', *options)
    assert result.returncode == 0, result.stderr
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    metric = {'imagenette': 'accuracy/top1', 'camvid': '"mIoU"', 'nuclei': 'coco/segm_mAP"'}[folder]
    assert metric in log.read_text() or folder == 'nuclei'  # no detection, no metric


@pytest.mark.parametrize(('folder', 'score'), [('nuclei', 'coco/segm_mAP_50'), ('camvid', 'mIoU')])
def test_the_held_out_truth_as_prediction_scores_full_marks(folder, score, photos):
    """Nuclei: without an annotation file of its own, 125 and 313 in the first images. CamVid: void apart."""
    cfg = Config.fromfile(OURS[folder])
    set_data_root(cfg, str(photos / DATA[folder]))
    init_default_scope(cfg.default_scope)
    held_out = cfg.val_dataloader.dataset
    held_out.indices = held_out.indices[:3]
    dataset, metric = DATASETS.build(held_out), METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        if folder == 'camvid':
            sample.pred_sem_seg = sample.gt_sem_seg.clone()
        else:
            truth = sample.gt_instances
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes.tensor,
                labels=truth.labels,
                scores=torch.ones(len(truth)),
                masks=torch.from_numpy(truth.masks.to_ndarray()).bool(),
            )
        metric.process({}, [sample.to_dict()])
    assert metric.evaluate(len(dataset))[score] == (100 if folder == 'camvid' else 1)


@pytest.mark.slow
@pytest.mark.parametrize('folder', DATA)
def test_the_real_data_is_sound(folder, photos):
    cfg = Config.fromfile(OURS[folder])
    set_data_root(cfg, str(photos / DATA[folder]))
    problems, _ = check_data(cfg, ('train', 'val', 'test'))
    assert [problem for problem in problems if problem.is_error] == []
