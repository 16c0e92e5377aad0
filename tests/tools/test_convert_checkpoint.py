"""tools/convert_checkpoint.py and tools/publish_checkpoint.py, on files as users have them."""

import hashlib

import pytest
import torch

from mmsgformer.checkpoint.files import CheckpointError, read_checkpoint
from mmsgformer.checkpoint.names import official_to_ours
from mmsgformer.release.convert import convert


def same(some: dict, others: dict) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_official_to_a_classifier_to_official(run_tool, official, tmp_path):
    """The whole way through the tool, by .safetensors: the same values, bit for bit, head included."""
    first, classifier, last = tmp_path / 'a.pth', tmp_path / 'b.safetensors', tmp_path / 'c.pth'
    torch.save({'state_dict': {}, 'state_dict_ema': official}, first)
    result = run_tool('convert_checkpoint.py', first, classifier, '--to', 'classifier')
    assert result.returncode == 0, result.stderr
    assert hashlib.sha256(classifier.read_bytes()).hexdigest() in result.stdout
    assert f'from state_dict_ema of {first}' in result.stdout
    result = run_tool('convert_checkpoint.py', classifier, last, '--to', 'official')
    assert result.returncode == 0, result.stderr
    assert same(read_checkpoint(last)['state_dict'], official)
    before = last.read_bytes()
    result = run_tool('convert_checkpoint.py', classifier, last)
    assert result.returncode != 0
    assert f'error: {last} is there already' in result.stderr
    assert 'Traceback' not in result.stderr
    assert last.read_bytes() == before


def test_there_and_back_is_bit_identical(official):
    classifier, _ = convert(official, 'classifier', 'weights.pth')
    back, _ = convert({'state_dict': classifier}, 'official', 'weights.pth')
    assert same(back, official)


def test_the_backbone_of_a_detector(official):
    backbone = official_to_ours(official)
    detector = {f'backbone.{name}': value for name, value in backbone.items()}
    checkpoint = {'meta': {}, 'state_dict': {**detector, 'neck.conv.weight': torch.ones(3)}, 'optimizer': {}}
    assert same(convert(checkpoint, 'backbone', 'weights.pth')[0], backbone)


@pytest.mark.parametrize(
    ('change', 'target', 'message'),
    [
        (lambda w: w.pop('norm2.bias'), 'backbone', r'1 missing \(stages\.1\.norm\.bias\)'),
        (lambda w: w.update({'norm2.bias': torch.ones(3)}), 'backbone', r'1 of another shape'),
        (lambda w: w.pop('pos_embed'), 'official', 'holds only parts of an SG-Former'),
        (
            lambda w: [w.pop(f'head.{kind}') for kind in ('weight', 'bias')],
            'classifier',
            'no classifier head',
        ),
    ],
)
def test_incomplete_weights_are_not_converted(change, target, message, official):
    weights = dict(official)
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        convert(weights, target, 'weights.pth')


def test_publishing_strips_and_names_by_hash(run_tool, tmp_path):
    weights, meta = {'w': torch.ones(3)}, {'dataset_meta': {'classes': ('disc', 'star')}, 'epoch': 12}
    content = {'meta': meta, 'state_dict': weights, 'optimizer': {'state': torch.ones(99)}, 'message_hub': {}}
    torch.save(content, tmp_path / 'epoch_12.pth')
    result = run_tool('publish_checkpoint.py', tmp_path / 'epoch_12.pth', tmp_path / 'shapes.pth')
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob('shapes-*.pth')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'shapes-{digest[:8]}.pth'
    assert digest in result.stdout
    published = read_checkpoint(path)
    assert published.keys() == {'meta', 'state_dict'}
    assert published['meta'] == meta
    assert same(published['state_dict'], weights)


@pytest.mark.parametrize(('target', 'message'), [('x.safetensors', 'must end in .pth'), ('x.pth', 'no meta')])
def test_what_cannot_be_published_is_refused(run_tool, target, message, official, tmp_path):
    torch.save(official, tmp_path / 'weights.pth')
    result = run_tool('publish_checkpoint.py', tmp_path / 'weights.pth', tmp_path / target)
    assert result.returncode != 0
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
