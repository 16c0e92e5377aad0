"""The benchmark runs, and writes what it measured."""

import json

import pytest
import torch
from tool_calls import load_tool

SMALL = (
    "small={'type': 'SGFormer', 'arch': {'embed_dims': (32, 64, 128, 256), 'depths': (1, 1, 2, 1), "
    "'num_heads': (2, 4, 8, 16)}}"
)


def test_times_memory_and_tables(run_tool, tmp_path):
    """Two backbones by preset and by config, with ratios to the first."""
    arguments = ['--inputs', '64x96:2', '--modes', 'train', '--rounds', 1, '--warmup', 1, '--amp', 'bf16']
    result = run_tool('benchmark.py', 'swin-t', SMALL, *arguments, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / 'benchmark.json').read_text())['results']
    assert [r['backbone'] for r in results] == ['swin-t', 'small']
    assert all(r['seconds'] > 0 and r['peak_mib'] > 0 and r['gmacs'] > 0 for r in results)
    lines = (tmp_path / 'benchmark.md').read_text().splitlines()
    assert lines[-2].startswith('| train 64x96, batch 2 | swin-t |')
    assert '(1.00)' in lines[-2]
    assert (tmp_path / 'benchmark.png').stat().st_size > 0


@pytest.mark.parametrize(('arguments', 'row'), [([], '224x224, batch 8'), (['--inputs', '64'], '64x64')])
def test_the_inputs_that_are_measured(run_tool, tmp_path, arguments, row):
    """Those that were given, or the default."""
    quick = ['--no-memory', '--rounds', 1, '--warmup', 1, '--out', tmp_path]
    result = run_tool('benchmark.py', SMALL, *arguments, *quick)
    assert result.returncode == 0, result.stderr
    assert row in (tmp_path / 'benchmark.md').read_text()


def test_what_it_cannot_read_is_named(run_tool):
    for arguments in (['resnet'], ['x={}'], ['swin-t', '--inputs', '2:x']):
        result = run_tool('benchmark.py', *arguments)
        assert result.returncode == 2
        assert 'is neither one of' in result.stderr or 'is not SIZE[:BATCH]' in result.stderr


@pytest.mark.parametrize(('has_gpu', 'device'), [(True, 'cuda'), (False, 'cpu')])
def test_a_gpu_is_measured_where_there_is_one(has_gpu, device, monkeypatch, tmp_path):
    """Not the CPU beside it."""
    benchmark, measured = load_tool('benchmark'), []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    monkeypatch.setattr(benchmark, 'measure', lambda arguments: measured.append(arguments.device) or [])
    benchmark.main([SMALL, '--out', str(tmp_path)])
    assert measured == [device]


def test_what_does_not_compile_or_fit_is_left_out():
    """The others are measured, and the table says so."""
    benchmark = load_tool('benchmark')

    def fail(error: Exception) -> None:
        raise error

    steps = {
        'good': lambda: None,
        'bad': lambda: fail(torch._dynamo.exc.Unsupported('no such operator')),
        'large': lambda: fail(torch.cuda.OutOfMemoryError('64 GiB')),
    }
    failures = benchmark.warm_up(steps, 'cpu', 1)
    assert list(steps) == ['good']
    assert 'no such operator' in failures['bad']
    assert '64 GiB' in failures['large']
    case = {'mode': 'infer', 'batch': 1, 'height': 8, 'width': 8}
    table = benchmark.rows([{'backbone': 'bad', **case}, {'backbone': 'good', 'seconds': 0.5, **case}])
    assert [row[2] for row in table] == ['failed', '500']


@pytest.mark.parametrize(
    ('name', 'size', 'reason'),
    [
        ('maxvit-t', '64', 'maxvit_tiny_tf_224 was built for images of 224 x 224, got 64 x 64'),
        ('davit-t', '252x332', 'AssertionError: '),  # mmpretrain's own fault, at some odd sizes
    ],
)
def test_a_backbone_that_does_not_take_the_size_is_named(name, size, reason, run_tool, tmp_path):
    """The others are measured."""
    if name == 'maxvit-t':
        pytest.importorskip('timm')
    quick = ['--no-memory', '--rounds', 1, '--warmup', 1, '--out', tmp_path]
    result = run_tool('benchmark.py', SMALL, name, '--inputs', size, *quick)
    assert result.returncode == 0, result.stderr
    assert f'{name} failed: ' in result.stdout
    assert reason in ' '.join(result.stdout.split())
    ours, theirs = json.loads((tmp_path / 'benchmark.json').read_text())['results']
    assert ours['seconds'] > 0
    assert 'seconds' not in theirs


def test_every_mixer_and_every_rival_has_a_name():
    """All are built, and give four maps at 224."""
    benchmark = load_tool('benchmark')
    names = [n for n in benchmark.PRESETS if n.startswith('sgformer-t') or not n.startswith('sgformer')]
    assert {'sgformer-t-swin', 'sgformer-t-hornet', 'swin-t', 'davit-t', 'gcvit-t'} <= set(names)
    for name in names:
        if name in ('maxvit-t', 'gcvit-t'):
            pytest.importorskip('timm')
        with torch.no_grad():
            maps = benchmark.build(benchmark.PRESETS[name], 'infer')(torch.zeros(1, 3, 224, 224))
        assert [m.shape[2:] for m in maps] == [(s, s) for s in (56, 28, 14, 7)], name
