"""tools/report.py from a work dir to a page in a browser, and what it says when something is missing."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData, PixelData

import mmsgformer.report.page
from mmsgformer.checkpoint.files import read_checkpoint
from mmsgformer.report.data import split_to_report
from mmsgformer.report.page import make_page
from mmsgformer.report.run import read_run
from mmsgformer.visualization.predictions import Predictor

TASKS = ('detection', 'segmentation', 'classification')
CHROMIUM = '/usr/bin/chromium'
QUIET = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update']
QUIET += ['--disable-sync', '--no-first-run']
MAX_MB = 3


@pytest.fixture(scope='session')
def page_of(run_of, run_tool, tmp_path_factory) -> Callable[[str], Path]:
    """A function that returns the report on a task's run; each is made once."""
    made: dict[str, Path] = {}

    def make(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp('pages') / 'a report.html'
            result = run_tool('report.py', run_of(task), '--out', made[task])
            assert result.returncode == 0, result.stderr
        return made[task]

    return make


def with_truth(sample: BaseDataElement, num_classes: int) -> BaseDataElement:
    """A sample whose predictions are its annotations."""
    if 'gt_instances' in sample:
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=getattr(truth.bboxes, 'tensor', truth.bboxes),
            labels=truth.labels,
            scores=torch.ones(len(truth.labels)),
            masks=torch.from_numpy(truth.masks.to_ndarray()).bool(),
        )
    elif 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data
        sample.pred_sem_seg = PixelData(data=labels.where(labels < num_classes, 0))
    else:
        sample.set_pred_score(torch.eye(num_classes)[int(sample.gt_label)])
    return sample


def headline(page: str) -> dict[str, str]:
    """The main metrics on a page."""
    return {name: value for value, name in re.findall(r'<div><b>(.*?)</b>(.*?), validation</div>', page)}


@pytest.mark.parametrize('task', TASKS)
def test_numbers_are_those_that_testing_logs(page_of, run_of, run_tool, task, tmp_path):
    run = read_run(run_of(task))
    result = run_tool('test.py', run.config, run.checkpoint, '--work-dir', tmp_path)
    assert result.returncode == 0, result.stderr
    (log,) = tmp_path.glob('*/*.json')
    logged = json.loads(log.read_text())
    shown = headline(page_of(task).read_text())
    expected = {
        'detection': {'box AP': ('coco/bbox_mAP', 100), 'mask AP50': ('coco/segm_mAP_50', 100)},
        'segmentation': {'mIoU': ('mIoU', 1), 'pixel accuracy': ('aAcc', 1)},
        'classification': {'top-1 accuracy': ('accuracy/top1', 1)},
    }[task]
    for name, (key, scale) in expected.items():
        assert float(shown[name]) == pytest.approx(scale * logged[key], abs=0.051)


@pytest.mark.parametrize('task', TASKS)
def test_a_page_says_what_was_trained_on_what(page_of, run_of, task):
    page = page_of(task).read_text()
    (config,) = run_of(task).glob('*.py')
    for text in (config.name, 'backbone SGFormer', 'AdamW', 'Python', 'mmsgformer', 'images/s', 'star'):
        assert text in page
    assert page_of(task).stat().st_size < MAX_MB * 1e6


@pytest.mark.parametrize('task', TASKS)
def test_a_run_whose_predictions_are_the_truth(run_of, task, monkeypatch):
    """100 everywhere, nothing in the section of mistakes; on SGFormer's maps nothing depends."""

    class Perfect(Predictor):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            self.model.test_step = self.test_step

        def test_step(self, batch: dict) -> list:
            classes = self.visualizer.dataset_meta['classes']
            return [with_truth(sample, len(classes)) for sample in batch['data_samples']]

    monkeypatch.setattr(mmsgformer.report.page, 'Predictor', Perfect)
    monkeypatch.setattr(mmsgformer.report.page, 'NUM_MAPS', 0)
    run = read_run(run_of(task))
    cfg = Config.fromfile(run.config)
    page = make_page(run, cfg, split_to_report(cfg))
    assert set(headline(page).values()) <= {'100.0', '75.0'}  # a class that is nowhere has F1 0
    assert 'There is no mistake on any image.' in page
    assert 'there are no significance maps' in page


def test_of_many_classes_the_most_confused_pairs_are_listed(run_of, monkeypatch):
    """A matrix would be no longer readable."""
    monkeypatch.setattr(mmsgformer.report.page, 'SHOWN_CLASSES', 4)
    run = read_run(run_of('segmentation'))
    cfg = Config.fromfile(run.config)
    page = make_page(run, cfg, 'val')
    assert 'The pairs that are confused most, of 5 classes.' in page
    assert 'true \\ predicted' not in page


@pytest.fixture(scope='module')
def browser() -> Iterator:
    """A headless Chromium."""
    if not Path(CHROMIUM).exists() or importlib.util.find_spec('playwright') is None:
        pytest.skip(f'needs {CHROMIUM} and playwright')
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('task', TASKS)
def test_a_page_in_a_browser(browser, page_of, task, width):
    """No errors, no requests but for itself, all pictures load and are described, nothing is cut off."""
    view = browser.new_page(viewport={'width': width, 'height': 800})
    messages, requests = [], []
    view.on('console', lambda message: messages.append(message.text))
    view.on('pageerror', lambda error: messages.append(str(error)))
    view.on('request', lambda request: requests.append(request.url))
    view.goto(page_of(task).as_uri())
    view.wait_for_load_state('networkidle')
    assert messages == []
    assert [url for url in requests if not url.startswith('data:')] == [page_of(task).as_uri()]
    images = view.evaluate('[...document.images].map(i => [i.naturalWidth, i.alt.length, i.clientWidth])')
    assert len(images) > 5
    assert all(all(image) for image in images)
    assert max(wide for *_, wide in images) <= width
    assert view.evaluate('document.documentElement.scrollWidth') <= width
    view.close()


def broken(what: str, run: Path, folder: Path) -> Path:
    """A copy of a run in which something is missing or wrong."""
    work_dir = shutil.copytree(run, folder / 'run')
    (config,) = work_dir.glob('*.py')
    if what == 'config':
        config.unlink()
    elif what == 'checkpoint':
        for path in work_dir.glob('*.pth'):
            path.unlink()
    elif what == 'data':
        cfg = Config.fromfile(config)
        config.write_text(config.read_text().replace(cfg.data_root.rstrip('/'), '/no/such/data'))
    elif what == 'classes':
        (path,) = work_dir.glob('*.pth')
        content = {key: read_checkpoint(path)[key] for key in ('state_dict', 'meta')}
        content['meta']['dataset_meta']['classes'] = ('square', 'disc', 'triangle', 'star')
        torch.save(content, path)
    elif what == 'report':
        (work_dir / 'report.html').write_text('of old')
    return work_dir


@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('folder', 'is no folder'),
        ('config', 'has no config'),
        ('checkpoint', 'has no checkpoint'),
        ('data', '--data-root'),
        ('classes', "'square'"),
        ('report', 'is there already'),
        ('out', 'cannot be written to'),
    ],
)
def test_what_is_wrong_is_one_line(run_of, run_tool, what, message, tmp_path):
    """It is named, and nothing is written."""
    work_dir = broken(what, run_of('detection'), tmp_path)
    arguments = [work_dir]
    if what == 'folder':
        arguments = [tmp_path / 'none']
    if what == 'out':
        (tmp_path / 'file').touch()
        arguments += ['--out', tmp_path / 'file' / 'report.html']
    result = run_tool('report.py', *arguments)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if 'Warning' not in line and line.strip()]
    (line,) = [line for line in lines if line.startswith('error: ')]
    assert message in line
    assert lines[-1] == line
    assert 'Traceback' not in result.stderr
    pages = [path for path in tmp_path.rglob('*.html')]
    assert [path.read_text() for path in pages] == (['of old'] if what == 'report' else [])


def test_data_that_were_moved_are_given(run_of, run_tool, shapes, tmp_path):
    """With --data-root, or as a folder that is recognised with --data; the page says so."""
    work_dir = broken('data', run_of('classification'), tmp_path)
    for option, folder in (('--data-root', shapes), ('--data', tmp_path / 'own')):
        if option == '--data':
            shutil.copytree(shapes / 'train', folder / 'train')
            shutil.copytree(shapes / 'val', folder / 'val')
        out = tmp_path / f'{option}.html'
        result = run_tool('report.py', work_dir, option, folder, '--out', out)
        assert result.returncode == 0, result.stderr
        page = out.read_text()
        assert str(folder) in page
        assert 'trained on the data in /no/such/data' in page
    assert {path.name for path in folder.iterdir()} == {'train', 'val'}
