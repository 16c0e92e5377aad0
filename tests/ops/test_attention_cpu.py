"""The operator in C++: where it is built and where not, and the same bits with any number of threads."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import OPERATOR, assert_close

from mmsgformer.ops import attention_cpu, attention_with_column_means, attention_with_column_means_reference

needs_a_compiler = pytest.mark.skipif(not attention_cpu.is_available(), reason='no compiler for C++')


def heads(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(B, heads, N, d), split off channels."""
    batch, num_heads, tokens, dim = shape
    return torch.randn(batch, tokens, num_heads, dim, dtype=dtype).transpose(1, 2)


@needs_a_compiler
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('size', [(2, 2, 100, 30, 16), (1, 3, 500, 70, 32), (2, 1, 49, 49, 24)], ids=str)
def test_every_type_is_computed_in_float(size, dtype):
    torch.manual_seed(0)
    batch, num_heads, queries, keys, dim = size
    q, k, v = (heads(batch, num_heads, n, dim, dtype=dtype) for n in (queries, keys, keys))
    out, means, lse = attention_cpu.attend(q, k, v, None)
    exact_q, exact_k, exact_v = (x.double() for x in (q, k, v))
    exact, exact_means = attention_with_column_means_reference(exact_q, exact_k, exact_v)
    assert (out.dtype, means.dtype, lse.dtype) == (dtype, torch.float32, torch.float32)
    assert_close(out, exact, OPERATOR[dtype].forward)
    assert_close(means, exact_means, OPERATOR[torch.float32].forward)
    logits = exact_q @ exact_k.mT / dim**0.5
    assert_close(lse, logits.logsumexp(-1), OPERATOR[torch.float32].forward)


@needs_a_compiler
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ('size', 'padded'),
    [
        ((2, 2, 100, 30, 16), False),
        ((1, 3, 500, 70, 32), False),
        ((2, 1, 49, 49, 24), True),
        ((3, 2, 64, 64, 40), True),
    ],
    ids=str,
)
def test_gradients_of_every_type_are_computed_in_float(size, dtype, padded):
    torch.manual_seed(0)
    batch, num_heads, queries, keys, dim = size
    valid = torch.arange(keys) < torch.tensor([keys, 7, 3][:batch])[:, None] if padded else None
    inputs = [heads(batch, num_heads, n, dim, dtype=dtype) for n in (queries, keys, keys)]
    grad = heads(batch, num_heads, queries, dim, dtype=dtype)
    out, _, lse = attention_cpu.attend(*inputs, valid)
    found = attention_cpu.attend_backward(grad, *inputs, valid, out, lse)
    exact = [x.double().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(
        attention_with_column_means_reference(*exact, valid)[0], exact, grad.double()
    )
    for ours, reference, like in zip(found, expected, inputs, strict=True):
        assert (ours.dtype, ours.shape, ours.stride()) == (dtype, like.shape, like.stride())
        assert_close(ours, reference, OPERATOR[dtype].backward)


@needs_a_compiler
def test_padded_keys_receive_nothing_and_padded_queries_pay_nothing():
    torch.manual_seed(0)
    q, k, v = (heads(2, 2, 40, 16) for _ in range(3))
    valid = torch.arange(40) < torch.tensor([[40], [7]])
    _, means, _ = attention_cpu.attend(q, k, v, valid)
    assert (means[1, 7:] == 0).all()
    assert means.sum(dim=1).tolist() == pytest.approx([1.0, 7 / 40], rel=1e-5)


@needs_a_compiler
def test_the_bits_do_not_depend_on_the_threads():
    torch.manual_seed(0)
    q, k, v = heads(2, 2, 1000, 32), heads(2, 2, 90, 32), heads(2, 2, 90, 32)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            out, means, lse = attention_cpu.attend(q, k, v, None)
            grads = attention_cpu.attend_backward(torch.ones_like(q), q, k, v, None, out, lse)
            results.append([out, means, lse, *grads])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_without_a_compiler_it_goes_on_and_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.ops, 'mmsgformer', object())  # as in a process that has not loaded it
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', str(tmp_path / 'no-compiler'))
    attention_cpu.is_available.cache_clear()
    try:
        q, k, v = (heads(1, 2, 60, 16) for _ in range(3))
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                out, _ = attention_with_column_means(q, k, v)
    finally:
        attention_cpu.is_available.cache_clear()
    exact, _ = attention_with_column_means_reference(*(x.double() for x in (q, k, v)))
    assert_close(out, exact, OPERATOR[torch.float32].forward)
    said = [record.message for record in caplog.records if 'attention is slower here' in record.message]
    assert len(said) == 1
    assert not list((tmp_path / 'mmsgformer').glob('*.so'))


@needs_a_compiler
def test_where_it_cannot_be_kept_it_is_used_and_that_is_said(tmp_path, monkeypatch, caplog):
    def compile_(name: str, *_: object, build_directory: str, **__: object) -> None:
        Path(build_directory, f'{name}.so').touch()

    monkeypatch.setattr('torch.utils.cpp_extension.load', compile_)
    (tmp_path / 'mmsgformer').touch()  # where the folder should be made
    with caplog.at_level(logging.WARNING):
        attention_cpu._build(tmp_path / 'mmsgformer' / 'attention_cpu.so')
    assert 'every process will compile it, since it cannot be kept' in caplog.text


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv('MMSGFORMER_CPU_KERNEL', '0')
    assert not attention_cpu.is_available.__wrapped__()


def test_another_source_or_torch_has_a_file_of_its_own(monkeypatch):
    first = attention_cpu.library_path()
    assert first == attention_cpu.library_path()
    monkeypatch.setattr(torch, '__version__', '2.99.0')
    assert attention_cpu.library_path() != first


@needs_a_compiler
@pytest.mark.slow
def test_processes_that_build_it_at_once_do_not_wait_for_each_other(tmp_path):
    """Nor for one that was killed: torch's own cache has a lock that stays."""
    program = (
        'from mmsgformer.ops import attention_cpu as a; assert a.is_available(); print(a.library_path())'
    )
    environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path)}
    command = [sys.executable, '-c', program]
    killed = subprocess.Popen(command, env=environment)
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(8)
    killed.kill()
    killed.wait()
    builders = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in 'ab']
    outputs = {process.communicate(timeout=600)[0] for process in builders}
    assert [process.returncode for process in builders] == [0, 0]
    assert outputs == {f'{file}\n' for file in (tmp_path / 'mmsgformer').iterdir()}
