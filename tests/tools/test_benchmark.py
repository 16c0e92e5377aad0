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
