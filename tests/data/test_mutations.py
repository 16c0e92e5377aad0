"""Good data, changed in one way at a time: it is read as before, or the check names the file and what to do.

What is right is not listed here but read: the truth that the framework's own data set gives of the changed
split, with the score that this truth gets as a prediction, is compared with that of the good data. Every
mutation picks its victims at random, with a seed of its own.
"""

import codecs
import gzip
import json
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as coco_mask

from mmsgformer.data.check import check_data
from mmsgformer.data.errors import Problem
from mmsgformer.data.paths import set_data_root

CONFIGS = Path(__file__).parents[2] / 'configs' / 'demo'
SEED = 2026
Mutation = Callable[[Path, np.random.Generator], None]


def coco(change: Callable[[dict, np.random.Generator], object]) -> Mutation:
    """A mutation of an annotation file: the function changes its content, or returns another one."""

    def mutate(file: Path, rng: np.random.Generator) -> None:
        content = json.loads(file.read_text())
        changed = change(content, rng)
        file.write_text(json.dumps(content if changed is None else changed))

    return mutate


def renumber(part: str, references: str, new: Callable[[int], object]) -> Mutation:
    """Gives images or categories other ids, in the annotations too."""

    def change(content: dict, rng: np.random.Generator) -> None:
        places = rng.permutation(len(content[part]))
        ids = {entry['id']: new(int(place)) for entry, place in zip(content[part], places, strict=True)}
        for entry in content[part]:
            entry['id'] = ids[entry['id']]
        for entry in content['annotations']:
            entry[references] = ids[entry[references]]

    return coco(change)


def every(part: str, change: Callable[[dict], object]) -> Mutation:
    """Changes every entry of a list of an annotation file."""
    return coco(lambda content, _: [change(entry) for entry in content[part]] and None)


def one(part: str, change: Callable[[dict], object]) -> Mutation:
    """Changes one entry of a list of an annotation file."""
    return coco(lambda content, rng: (change(content[part][rng.integers(len(content[part]))]), None)[1])


def uncompressed(entry: dict) -> None:
    """The same mask, its run lengths as numbers: first of zeros, then of ones, ..."""
    flat = coco_mask.decode(entry['segmentation']).flatten(order='F')
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    entry['segmentation']['counts'] = np.diff([0, *edges, flat.size]).tolist()


def corners(entry: dict) -> list[float]:
    """The polygon of an object's box, [x1, y1, ...]."""
    x, y, w, h = entry['bbox']
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _elsewhere(box: list[float]) -> list[float]:
    """A box in the opposite corner of the image, away from this one."""
    x, y, w, h = box
    return [0 if x > 56 else 60, 0 if y > 56 else 60, min(w, 50), min(h, 50)]


def as_text(edit: Callable[[bytes], bytes]) -> Mutation:
    """Changes the bytes of an annotation file."""
    return lambda file, _: file.write_bytes(edit(file.read_bytes()))  # type: ignore[return-value]


DETECTION: dict[str, Mutation] = {
    'images in another order': coco(lambda c, rng: rng.shuffle(c['images'])),
    'annotations in another order': coco(lambda c, rng: rng.shuffle(c['annotations'])),
    'category ids with gaps': renumber('categories', 'category_id', lambda i: 7 + 11 * i),
    'category ids that are texts': renumber('categories', 'category_id', lambda i: f'c{i}'),
    'large image ids': renumber('images', 'image_id', lambda i: 10**12 + 17 * i),
    'image ids that are texts': renumber('images', 'image_id', lambda i: f'{i:06d}'),
    'image ids that are floats': renumber('images', 'image_id', float),
    'image ids from 0': renumber('images', 'image_id', lambda i: i),
    'annotation ids that are texts': every('annotations', lambda e: e.update(id=str(e['id']))),
    'an image id that is a text': one('annotations', lambda e: e.update(image_id=str(e['image_id']))),
    'a category id that is a text': one('annotations', lambda e: e.update(category_id=str(e['category_id']))),
    'category ids less 1': every('annotations', lambda e: e.update(category_id=e['category_id'] - 1)),
    'two categories of one id': coco(lambda c, _: c['categories'][1].update(id=c['categories'][0]['id'])),
    'a box of texts': one('annotations', lambda e: e.update(bbox=[str(v) for v in e['bbox']])),
    'a box with null': one('annotations', lambda e: e.update(bbox=[None, *e['bbox'][1:]])),
    'a box with NaN': one('annotations', lambda e: e.update(bbox=[float('nan'), *e['bbox'][1:]])),
    'a box of negative width': one('annotations', lambda e: e['bbox'].__setitem__(2, -e['bbox'][2])),
    'boxes that end at corners': every(
        'annotations',
        lambda e: e.update(bbox=[*e['bbox'][:2], e['bbox'][0] + e['bbox'][2], e['bbox'][1] + e['bbox'][3]]),
    ),
    'boxes relative to the image': every(
        'annotations', lambda e: e.update(bbox=[v / 112 for v in e['bbox']])
    ),
    'a box whose mask is elsewhere': one(
        'annotations', lambda e: e.update(segmentation=[corners(e)], bbox=_elsewhere(e['bbox']))
    ),
    'a box of half its mask': one(
        'annotations',
        lambda e: e.update(segmentation=[corners(e)], bbox=[*e['bbox'][:3], 0.4 * e['bbox'][3]]),
    ),
    'an image twice under two ids': coco(lambda c, _: c['images'].append({**c['images'][0], 'id': 999})),
    'no iscrowd': every('annotations', lambda e: e.pop('iscrowd', None)),
    'iscrowd as a text': one('annotations', lambda e: e.update(iscrowd='0')),
    'an object marked to be ignored': one('annotations', lambda e: e.update(ignore=1)),
    'no supercategory, no licence': coco(
        lambda c, _: [e.pop('supercategory', None) for e in c['categories']] and None
    ),
    'fields of other tools': every(
        'annotations', lambda e: e.update(score=1.0, attributes={'occluded': False}, keypoints=None)
    ),
    'a list instead of an object': coco(lambda c, _: [c]),
    'no categories': coco(lambda c, _: {k: v for k, v in c.items() if k != 'categories'}),
    'annotations that are null': coco(lambda c, _: {**c, 'annotations': None}),
    'annotations by id': coco(lambda c, _: {**c, 'annotations': {e['id']: e for e in c['annotations']}}),
    'a name with a space behind': one('categories', lambda e: e.update(name=e['name'] + ' ')),
    'a name that is a number': one('categories', lambda e: e.update(name=3)),
    'file names with ./': every('images', lambda e: e.update(file_name='./' + e['file_name'])),
    'file names with the folder': every('images', lambda e: e.update(file_name='val2017/' + e['file_name'])),
    'a file name of other case': one('images', lambda e: e.update(file_name=e['file_name'].upper())),
    'a file name that is a number': one('images', lambda e: e.update(file_name=17)),
    'sizes with a fraction': every('images', lambda e: e.update(width=112.0, height=112.0)),
    'sizes that are texts': every('images', lambda e: e.update(width='112', height='112')),
    'masks as run lengths': every('annotations', uncompressed),
    'a flat polygon': one('annotations', lambda e: e.update(segmentation=corners(e))),
    'a polygon of pairs': one(
        'annotations',
        lambda e: e.update(segmentation=[np.reshape(corners(e), (-1, 2)).tolist()]),
    ),
    'an empty mask': one('annotations', lambda e: e.update(segmentation=[])),
    'a polygon of two points': one('annotations', lambda e: e.update(segmentation=[[1, 1, 9, 9]])),
    'a BOM': as_text(lambda b: codecs.BOM_UTF8 + b),
    'UTF-16': as_text(lambda b: b.decode().encode('utf-16')),
    'Latin-1': as_text(lambda b: b.replace(b'disc', 'disé'.encode('latin-1'))),
    'compressed': as_text(gzip.compress),
    'a comma too much': as_text(lambda b: b.rstrip()[:-1] + b',}'),
    'cut in the middle': as_text(lambda b: b[: len(b) // 2]),
}


def label_map(change: Callable[[Image.Image, Path], object]) -> Mutation:
    """A mutation of one label map: the function writes it anew."""

    def mutate(folder: Path, rng: np.random.Generator) -> None:
        path = sorted(folder.iterdir())[rng.integers(len(list(folder.iterdir())))]
        with Image.open(path) as picture:
            change(picture.copy(), path)

    return mutate


def with_palette(picture: Image.Image) -> Image.Image:
    """The same ids, with colours to look at."""
    picture = picture.copy()
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    return picture


def changed_ids(change: Callable[[np.ndarray], np.ndarray]) -> Mutation:
    return label_map(lambda p, path: Image.fromarray(change(np.asarray(p)).astype(np.uint8)).save(path))


def image_beside(change: Callable[[Path], object]) -> Mutation:
    """A mutation of the image of one label map."""
    return label_map(
        lambda _, path: change(path.parents[2] / 'images' / path.parent.name / path.with_suffix('.jpg').name)
    )


def moved_together(name: str) -> Mutation:
    """An image and its label map under another name."""

    def change(image: Path) -> None:
        labels = image.parents[2] / 'annotations' / image.parent.name
        for path in (image, labels / f'{image.stem}.png'):
            target = path.parent / f'{name.format(path.stem)}{path.suffix}'
            target.parent.mkdir(exist_ok=True)
            path.rename(target)

    return image_beside(change)


SEGMENTATION: dict[str, Mutation] = {
    'ids with a palette': label_map(lambda p, path: with_palette(p).save(path)),
    'colours instead of ids': label_map(lambda p, path: with_palette(p).convert('RGB').save(path)),
    'ids as three equal channels': label_map(lambda p, path: p.convert('RGB').save(path)),
    'ids with alpha': label_map(lambda p, path: p.convert('LA').save(path)),
    'ids of 16 bits': label_map(lambda p, path: Image.fromarray(np.asarray(p).astype(np.uint16)).save(path)),
    'ids of 16 bits, scaled': label_map(
        lambda p, path: Image.fromarray(np.asarray(p).astype(np.uint16) * 1000).save(path)
    ),
    'black and white': label_map(lambda p, path: p.point(lambda v: 255 * (v > 1)).convert('1').save(path)),
    'ids stored as JPEG': label_map(lambda p, path: p.save(path, format='JPEG', quality=90)),
    'ids stored as BMP': label_map(lambda p, path: p.save(path, format='BMP')),
    'ids stretched to be seen': changed_ids(lambda ids: ids * 50),
    'ids one higher': changed_ids(lambda ids: ids + 1),
    'ids of another class list': changed_ids(lambda ids: ids + 100),
    'a map of half the size': label_map(lambda p, path: p.resize((56, 56), 0).save(path)),
    'a map turned by EXIF': label_map(lambda p, path: p.save(path, exif=_turned())),
    'an image turned by EXIF': image_beside(lambda i: _resave(i, exif=_turned())),
    'an image stored as PNG': image_beside(lambda i: _resave(i, format='PNG')),
    'an image stored as WebP': image_beside(lambda i: _resave(i, format='WebP', lossless=True)),
    'a map cut short': label_map(lambda _, path: path.write_bytes(path.read_bytes()[:60])),
    'no map': label_map(lambda _, path: path.unlink()),
    'a map without an image': label_map(lambda p, path: p.save(path.with_stem('999999'))),
    'an image of capital ending': image_beside(lambda i: i.rename(i.with_suffix('.JPG'))),
    'an image of another ending': image_beside(lambda i: i.rename(i.with_suffix('.jpeg'))),
    'maps with a suffix': label_map(lambda _, path: path.rename(path.with_stem(f'{path.stem}_labelIds'))),
    'names with spaces and umlauts': moved_together('Straße nach Köln {}'),
    'names with a dot': moved_together('{}.front'),
    'a subfolder': moved_together('second camera/{}'),
    "a Mac's shadow of an image": image_beside(
        lambda i: (i.parent / f'._{i.name}').write_bytes(b'\0\5\x16\7')
    ),
    'a file of a file manager': image_beside(lambda i: (i.parent / 'Thumbs.db').write_bytes(b'0')),
    'a link to the image': image_beside(
        lambda i: i.symlink_to(i.rename(i.parents[2] / f'moved {i.name}').resolve())
    ),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _resave(path: Path, **options: object) -> None:
    with Image.open(path) as picture:
        picture = picture.copy()
    picture.save(path, **{'quality': 95, **options})


def class_folder(change: Callable[[Path], object]) -> Mutation:
    """A mutation of one class's folder of a split."""
    return lambda folder, rng: change(sorted(folder.iterdir())[rng.integers(4)])  # type: ignore[return-value]


def photo(change: Callable[[Path], object]) -> Mutation:
    """A mutation of one photo in a class's folder."""

    def mutate(folder: Path, rng: np.random.Generator) -> None:
        paths = sorted(folder.rglob('*.jpg'))
        change(paths[rng.integers(len(paths))])

    return mutate


def list_file(change: Callable[[list[str], np.random.Generator], list[str]]) -> Mutation:
    """A list of photos with their labels, beside the folders, in which lines are changed."""

    def mutate(folder: Path, rng: np.random.Generator) -> None:
        names = sorted(path.name for path in folder.iterdir())
        lines = [
            f'{path.relative_to(folder)} {names.index(path.parent.name)}'
            for path in sorted(folder.rglob('*.jpg'))
        ]
        text = '\n'.join(change(lines, rng))
        (folder.parent / f'{folder.name}.txt').write_bytes(text.encode())

    return mutate


def _one_line(change: Callable[[str], str]) -> Mutation:
    def mutate(lines: list[str], rng: np.random.Generator) -> list[str]:
        place = int(rng.integers(len(lines)))
        return [*lines[:place], change(lines[place]), *lines[place + 1 :]]

    return list_file(mutate)


CLASSIFICATION: dict[str, Mutation] = {
    'another folder': class_folder(lambda f: (f.parent / 'extra').mkdir()),
    "a Mac's folder": class_folder(lambda f: (f.parent / '__MACOSX').mkdir()),
    'a folder of another class list': class_folder(lambda f: f.rename(f.with_name('hexagon'))),
    'a capital letter': class_folder(lambda f: f.rename(f.with_name(f.name.capitalize()))),
    'a space behind a name': class_folder(lambda f: f.rename(f.with_name(f'{f.name} '))),
    'no folder of a class': class_folder(shutil.rmtree),
    'an empty folder of a class': class_folder(lambda f: [path.unlink() for path in f.iterdir()]),
    'an archive instead of a folder': class_folder(
        lambda f: (shutil.make_archive(str(f), 'zip', f), shutil.rmtree(f))
    ),
    'a linked folder': class_folder(lambda f: f.symlink_to(f.rename(f.parents[1] / f'moved-{f.name}'))),
    'a link to nowhere': class_folder(lambda f: (shutil.rmtree(f), f.symlink_to(f.parents[1] / 'gone'))),
    'a subfolder': photo(lambda p: ((p.parent / 'more').mkdir(), p.rename(p.parent / 'more' / p.name))),
    'a photo outside the folders': photo(lambda p: p.rename(p.parents[1] / p.name)),
    'a capital ending': photo(lambda p: p.rename(p.with_suffix('.JPG'))),
    'an ending that is not read': photo(lambda p: p.rename(p.with_suffix('.jfif'))),
    'a WebP photo': photo(lambda p: (_resave(p, format='WebP'), p.rename(p.with_suffix('.webp')))),
    'a photo stored as PNG': photo(lambda p: _resave(p, format='PNG')),
    'a name with spaces and umlauts': photo(lambda p: p.rename(p.with_stem('Straße nach Köln'))),
    'a text beside': photo(lambda p: p.with_suffix('.txt').write_text('a note')),
    'a file of a file manager': photo(lambda p: (p.parent / '.DS_Store').write_bytes(b'0')),
    "a Mac's shadow of a photo": photo(lambda p: (p.parent / f'._{p.name}').write_bytes(b'\0\5\x16\7')),
    'a photo of 0 bytes': photo(lambda p: p.write_bytes(b'')),
    'a photo cut short': photo(lambda p: p.write_bytes(p.read_bytes()[:400])),
    'a list': list_file(lambda lines, _: lines),
    'a list in another order': list_file(lambda lines, rng: rng.permutation(lines).tolist()),
    'a list of CRLF lines': list_file(lambda lines, _: [f'{line}\r' for line in lines]),
    'a list with an empty line': list_file(lambda lines, _: [*lines[:2], '', *lines[2:]]),
    'a list with tabs': list_file(lambda lines, _: [line.replace(' ', '\t') for line in lines]),
    'a list with commas': list_file(lambda lines, _: [line.replace(' ', ',') for line in lines]),
    'labels from 1': list_file(lambda lines, _: [f'{line[:-1]}{int(line[-1]) + 1}' for line in lines]),
    'a label that is a name': _one_line(lambda line: f'{line[:-1]}disc'),
    'a line without a label': _one_line(lambda line: line[:-2]),
    'a line with a folder too much': _one_line(lambda line: f'val/{line}'),
    'a list with a BOM': list_file(lambda lines, _: ['\ufeff' + lines[0], *lines[1:]]),
}

MUTATIONS = {
    'detection': (DETECTION, 'mask-rcnn_sgformer-tiny_fpn_shapes.py', 'annotations/instances_{}2017.json'),
    'segmentation': (SEGMENTATION, 'sgformer-tiny_upernet_shapes.py', 'annotations/{}'),
    'classification': (CLASSIFICATION, 'sgformer-tiny_shapes.py', '{}'),
}
CASES = [(task, name) for task, (mutations, *_) in MUTATIONS.items() for name in mutations]


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    """A copy of the synthetic data."""
    return Path(shutil.copytree(shapes, tmp_path / 'data'))


def demo_config(task: str, data: Path, split: str) -> Config:
    """The task's demo config, with a list instead of folders where the split has one."""
    cfg = Config.fromfile(CONFIGS / MUTATIONS[task][1])
    set_data_root(cfg, str(data))
    if (data / f'{split}.txt').exists():
        cfg[f'{split}_dataloader'].dataset.update(
            ann_file=f'{split}.txt', data_prefix=split, data_root=str(data)
        )
    return cfg


def said(task: str, data: Path, split: str) -> set[Problem]:
    """What the check says, but for the numbers of objects or pixels, which follow from what is read."""
    problems, _ = check_data(demo_config(task, data, split), ('train', 'val'), lambda found, _: found)
    return {p for p in problems if not (p.file.endswith('_dataloader.dataset') and p.text.startswith('has '))}


def truth(task: str, cfg: Config, split: str) -> Counter:
    """What the framework reads: (pixels, what is said of them) of every image; and the truth's own score."""
    init_default_scope(cfg.default_scope)
    config = {**cfg[f'{split}_dataloader'].dataset, 'pipeline': cfg.val_dataloader.dataset.pipeline}
    dataset = DATASETS.build(config)
    evaluator = dict(cfg.val_evaluator)
    if 'ann_file' in evaluator:
        evaluator['ann_file'] = config['ann_file'] = str(Path(config['data_root']) / config['ann_file'])
    metric = METRICS.build(evaluator)
    metric.dataset_meta = dataset.metainfo
    names = dataset.metainfo['classes']
    read: Counter = Counter()
    for i in range(len(dataset)):
        item = dataset[i]
        pixels = zlib.crc32(item['inputs'].numpy().tobytes())
        read[pixels, READERS[task](item, metric, names)] += 1
    read[tuple(sorted(metric.evaluate(len(dataset)).items()))] += 1
    return read


def _objects(item: dict, metric: object, names: tuple) -> tuple:
    sample = item['data_samples']
    found = sample.gt_instances
    masks = found.masks.to_ndarray().astype(bool)
    sample.pred_instances = InstanceData(
        bboxes=found.bboxes.tensor,
        labels=found.labels,
        scores=torch.ones(len(found.labels)),
        masks=torch.from_numpy(masks),
    )
    metric.process({}, [sample.to_dict()])
    boxes = found.bboxes.tensor.round().int().tolist()
    areas = masks.sum((1, 2)).tolist()
    labels = [names[label] for label in found.labels]
    return tuple(sorted((n, *b, a) for n, b, a in zip(labels, boxes, areas, strict=True)))


def _pixels(item: dict, metric: object, names: tuple) -> tuple:
    sample = item['data_samples']
    sample.pred_sem_seg = sample.gt_sem_seg.clone()
    metric.process({}, [sample.to_dict()])
    labels = sample.gt_sem_seg.data[0].numpy()
    return tuple((name, zlib.crc32((labels == i).tobytes())) for i, name in enumerate(names))


def _class(item: dict, metric: object, names: tuple) -> tuple:
    sample = pseudo_collate([item])['data_samples'][0]
    scores = torch.zeros(len(names))
    scores[sample.gt_label] = 1.0
    metric.process({}, [sample.set_pred_score(scores).set_pred_label(sample.gt_label).to_dict()])
    folders = {*Path(sample.img_path).parts} & {*names}
    return names[int(sample.gt_label)], tuple(folders)


READERS = {'detection': _objects, 'segmentation': _pixels, 'classification': _class}


@pytest.fixture(scope='module')
def expected(shapes) -> dict[tuple[str, str], tuple[Counter, set]]:
    """The truth of the good data, and what is said of it."""
    return {
        (task, split): (truth(task, demo_config(task, shapes, split), split), said(task, shapes, split))
        for task in MUTATIONS
        for split in ('train', 'val')
    }


# What an error asks for, so that a reader knows how to go on.
FIX = re.compile(
    r'\b(correct|set|get|give|write|remove|add|renumber|take|make|rename|number|name|convert|turn)\b', re.I
)


@pytest.mark.parametrize(('task', 'name'), CASES, ids=[f'{task}: {name}' for task, name in CASES])
def test_a_change_is_right_or_named(task, name, data, expected):
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    split = str(rng.choice(['train', 'val']))
    mutations, _, target = MUTATIONS[task]
    folder = {'train': 'training', 'val': 'validation'}[split] if task == 'segmentation' else split
    target = data / target.format(folder)
    mutations[name](target, rng)
    problems = said(task, data, split) - expected[task, split][1]
    errors = [p for p in problems if p.is_error]
    for problem in errors:
        assert str(data) in problem.file + problem.text, problem
        assert FIX.search(problem.text), problem
    try:
        read = truth(task, demo_config(task, data, split), split)
    except Exception as error:
        read = repr(error)
    if read == expected[task, split][0]:
        assert not errors
    else:
        assert problems, f'nothing is said, but this is read: {read}'
