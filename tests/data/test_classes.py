"""Names, order and number of the classes agree, or the place where they do not is named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from mmsgformer.data.classes import check_classes, read_categories
from mmsgformer.data.paths import set_data_root

CONFIGS = Path(__file__).parents[2] / 'configs'
DETECTOR = CONFIGS / 'demo' / 'mask-rcnn_sgformer-tiny_fpn_shapes.py'
SEGMENTER = CONFIGS / 'demo' / 'sgformer-tiny_upernet_shapes.py'
CLASSIFIER = CONFIGS / 'demo' / 'sgformer-tiny_shapes.py'
DEMO = ('disc', 'square', 'triangle', 'star')
TRAIN = 'annotations/instances_train2017.json'


def config(path: Path, data: Path, **options: object) -> Config:
    cfg = Config.fromfile(path)
    set_data_root(cfg, str(data))
    cfg.merge_from_dict(options)
    return cfg


def said(cfg: Config, checkpoint: tuple[str, ...] | None = None) -> str:
    """All problems, a line each."""
    return '\n'.join(f'{problem.file}: {problem.text}' for problem in check_classes(cfg, checkpoint))


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    """A copy of the synthetic data."""
    return Path(shutil.copytree(shapes, tmp_path / 'data'))


def edit(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    'path',
    [path for path in sorted(CONFIGS.glob('[!_]*/*.py')) if path.parent.name != 'demo'],
    ids=lambda p: p.stem,
)
def test_released_configs_agree(path):
    """No false alarm, and no data are needed."""
    assert said(Config.fromfile(path)) == ''


@pytest.mark.parametrize('path', [DETECTOR, SEGMENTER, CLASSIFIER], ids=lambda p: p.stem)
def test_the_demo_agrees_with_its_data(path, shapes):
    assert said(config(path, shapes)) == ''


def reverse(content: dict) -> None:
    content['categories'].reverse()


def capitalise(content: dict) -> None:
    for category in content['categories']:
        category['name'] = category['name'].title()


def repeat(content: dict) -> None:
    content['categories'].append({'id': 99, 'name': 'star'})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (reverse, r"names the classes in the order 'disc', .*train2017\.json lists 'star', 'triangle'"),
        (capitalise, r"train2017\.json: has no category 'disc', .*but 'Disc', 'Square'"),
        (lambda c: c['categories'].pop(), r"train2017\.json: has no category 'star' of the 4 classes"),
        (repeat, r"train2017\.json: has categories 'star' twice"),
        (
            lambda c: c.pop('categories'),
            r'train2017\.json: has no list of categories with names',
        ),
    ],
)
def test_categories_of_an_annotation_file(change, message, data):
    """mmdet's labels follow the file's order, whatever the config says."""
    edit(data / TRAIN, change)
    assert len(check_classes(config(DETECTOR, data))) == 1
    assert re.search(message, said(config(DETECTOR, data)))


def test_a_byte_order_mark_is_named(data):
    """Training rejects it."""
    (data / TRAIN).write_bytes(b'\xef\xbb\xbf' + (data / TRAIN).read_bytes())
    assert 'begins with a BOM, which training cannot read' in said(config(DETECTOR, data))


@pytest.mark.parametrize(
    'text',
    [
        '{"info": {"categories": ""}, "categories": [{"name": "a"}, {"name": "b", "skeleton": [[1], [3]]}]}',
        '{"categories": [{"name": "a", "note": "]"}, {"name": "b"}]}',
        '{"categories" : [{"name": "a", "x": [1, [2]]}, {"name": "b"}], "images": []}',
    ],
)
def test_the_list_of_categories_is_found(text, tmp_path):
    """Without parsing the rest; lists within it, and the word somewhere else, are no trouble."""
    (tmp_path / 'a.json').write_text(text)
    assert read_categories(str(tmp_path / 'a.json')) == ('a', 'b')


@pytest.mark.parametrize('text', ['', '{', '{"categories": [', '{"images": []}', '{"categories": 3}', '[]'])
def test_a_file_without_categories_is_named(text, tmp_path):
    (tmp_path / 'a.json').write_text(text)
    assert isinstance(read_categories(str(tmp_path / 'a.json')), str)


def test_ids_in_any_order_and_with_gaps_are_fine(data):
    """The order of the list counts, not the ids."""

    def renumber(content: dict) -> None:
        ids = {
            category['id']: new for category, new in zip(content['categories'], (90, 7, 33, 1), strict=True)
        }
        for entry in content['annotations']:
            entry['category_id'] = ids[entry['category_id']]
        for category in content['categories']:
            category['id'] = ids[category['id']]

    edit(data / TRAIN, renumber)
    assert said(config(DETECTOR, data)) == ''


@pytest.mark.parametrize('path', [DETECTOR, SEGMENTER], ids=lambda p: p.stem)
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_a_split_with_other_classes(path, split, shapes):
    cfg = config(path, shapes)
    names = list(cfg.train_dataloader.dataset.metainfo.classes)
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=['cat', *names[1:]])
    assert f'{split}_dataloader.dataset' in said(cfg)
    assert "'cat'" in said(cfg)


@pytest.mark.parametrize(
    ('path', 'option', 'value'),
    [
        (DETECTOR, 'model.roi_head.mask_head.num_classes', 2),
        (DETECTOR, 'model.roi_head.bbox_head.num_classes', 80),
        (SEGMENTER, 'model.auxiliary_head.num_classes', 3),
        (SEGMENTER, 'model.decode_head.num_classes', 150),
        (CLASSIFIER, 'model.head.num_classes', 5),
        (CLASSIFIER, 'model.data_preprocessor.num_classes', 3),
    ],
)
def test_a_head_with_another_number_is_named(path, option, value, shapes):
    """More outputs than classes too: the first validation would fail on them."""
    (problem,) = check_classes(config(path, shapes, **{option: value}))
    assert problem.file == option
    assert f'is {value}, but train_dataloader.dataset has' in problem.text


def test_a_loss_with_another_number_of_weights_is_named(shapes):
    loss = {'model.decode_head.loss_decode.class_weight': [1.0, 2.0]}
    (problem,) = check_classes(config(SEGMENTER, shapes, **loss))
    assert problem.file == 'model.decode_head.loss_decode.class_weight'


def test_one_output_and_a_softmax_learn_nothing(shapes):
    cfg = config(SEGMENTER, shapes)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(
            _delete_=True, classes=('object',), palette=[[0, 0, 0]]
        )
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 1
    assert said(cfg).count('the softmax of one output is 1 everywhere') == 2


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        ('square', "is the text 'square', not a list of names: write ('square',)"),
        (['disc', 'square', 'star', 'star'], "names 'star' twice"),
        (['disc', 'square', 3, 'star'], 'has 3, which are no texts'),
    ],
)
def test_names_that_are_no_proper_list(classes, message, shapes):
    cfg = config(DETECTOR, shapes)
    cfg.train_dataloader.dataset.metainfo.classes = classes
    assert message in said(cfg)


def test_more_names_than_colours(shapes):
    (problem,) = check_classes(
        config(DETECTOR, shapes, **{'train_dataloader.dataset.metainfo.palette': [(0, 0, 0)]})
    )
    assert problem.file == 'train_dataloader.dataset.metainfo.palette'
    assert problem.text.startswith('has 1 colours for 4 classes')


def test_what_two_splits_share_is_said_once(shapes):
    """The demo tests on its validation data."""
    palette = {f'{split}_dataloader.dataset.metainfo.palette': [(0, 0, 0)] for split in ('val', 'test')}
    (problem,) = check_classes(config(DETECTOR, shapes, **palette))
    assert problem.file == 'val_dataloader.dataset.metainfo.palette'


def test_an_evaluator_that_reads_another_file(shapes):
    other = str(shapes / TRAIN)
    (problem,) = check_classes(config(DETECTOR, shapes, **{'test_evaluator.ann_file': other}))
    assert problem.file == 'test_evaluator.ann_file'
    assert problem.text.endswith('instances_val2017.json does; give it the same file')


def test_an_evaluator_may_read_a_copy(data):
    copy = shutil.copy(data / 'annotations' / 'instances_val2017.json', data / 'copy.json')
    assert said(config(DETECTOR, data, **{'test_evaluator.ann_file': str(copy)})) == ''


def test_folders_are_classes_in_the_order_of_their_names(shapes):
    cfg = config(CLASSIFIER, shapes, **{'val_dataloader.dataset.classes': list(DEMO)})
    assert "the order of their labels, 'disc', 'square', 'star', 'triangle'" in said(cfg)


def test_a_folder_that_is_no_class_is_named(data):
    (data / 'train' / '.ipynb_checkpoints').mkdir()
    assert '.ipynb_checkpoints: is a folder that is taken for a class; remove it' in said(
        config(CLASSIFIER, data)
    )


def test_a_class_without_a_folder(data):
    shutil.rmtree(data / 'train' / 'star')
    assert "has 3 folders, 'disc', 'square', 'triangle', but" in said(config(CLASSIFIER, data))


@pytest.mark.parametrize('path', [DETECTOR, SEGMENTER, CLASSIFIER], ids=lambda p: p.stem)
def test_a_checkpoint_of_other_classes(path, shapes):
    cfg = config(path, shapes)
    dataset = cfg.train_dataloader.dataset
    names = tuple(dataset.get('classes') or dataset.metainfo.classes)
    assert said(cfg, names) == ''
    assert 'the checkpoint: has' in said(cfg, names[::-1])
    assert 'the checkpoint: has' in said(cfg, names[1:])
