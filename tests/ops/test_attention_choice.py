"""Ours or torch's attention on a CPU: measured once, kept, fixed by the environment, alone with itself."""

import json

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mmsgformer.ops import attention_choice, attention_cpu, dot_product_attention
from mmsgformer.ops.attention_choice import measure, ours_is_quicker

pytestmark = pytest.mark.skipif(not attention_cpu.is_available(), reason='no compiler for C++')
CASES = {
    f'{dtype}, {mode}, {keys}': False
    for dtype in ('float32', 'half')
    for mode in ('inference', 'training')
    for keys in ('few keys', 'many keys')
}


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """Where nothing was measured yet; returns the file that will say what was."""
    monkeypatch.delenv('MMSGFORMER_CPU_KERNEL', raising=False)
    monkeypatch.setattr(attention_cpu, 'library_path', lambda: tmp_path / 'attention.so')
    attention_choice._choices.cache_clear()
    yield tmp_path / 'attention.json'
    attention_choice._choices.cache_clear()


def queries(keys: int = 200, dtype: torch.dtype = torch.float32, **options) -> tuple:
    return torch.randn(1, 2, 10, 8, dtype=dtype, **options), torch.randn(1, 2, keys, 8, dtype=dtype)


@pytest.mark.parametrize('case', CASES)
def test_each_case_has_its_own_answer(case, monkeypatch):
    monkeypatch.setattr(attention_choice, 'measure', lambda: CASES | {case: True})
    kind, mode, keys = case.split(', ')
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for training in (False, True):
            for number in (49, 784):
                q, k = queries(number, dtype, requires_grad=training)
                right = (
                    (kind == 'float32') == (dtype == torch.float32)
                    and (mode == 'training') == training
                    and (keys == 'few keys') == (number == 49)
                )
                assert ours_is_quicker(q, k) == right
    with torch.no_grad():
        assert ours_is_quicker(*queries(784, requires_grad=True)) == (case == 'float32, inference, many keys')


def test_it_is_measured_once_a_machine(bare_machine, monkeypatch):
    monkeypatch.setattr(attention_choice, 'measure', lambda: dict.fromkeys(CASES, True))
    assert ours_is_quicker(*queries())
    attention_choice._choices.cache_clear()  # another process
    monkeypatch.setattr(attention_choice, 'measure', lambda: pytest.fail('measured again'))
    assert ours_is_quicker(*queries())
    assert json.loads(bare_machine.read_text()) == dict.fromkeys(CASES, True)


def test_the_first_of_two_processes_decides_for_both(bare_machine, monkeypatch):
    def measure_while_another_is_sooner():
        bare_machine.write_text(json.dumps(dict.fromkeys(CASES, True)))
        return CASES

    monkeypatch.setattr(attention_choice, 'measure', measure_while_another_is_sooner)
    assert ours_is_quicker(*queries())
    assert list(bare_machine.parent.iterdir()) == [bare_machine]


def test_a_measurement_that_fails_is_not_kept(bare_machine, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(attention_choice, '_times', fail)
    with pytest.raises(MemoryError):
        ours_is_quicker(*queries())
    assert not bare_machine.exists()


def test_where_nothing_can_be_kept_it_holds_for_the_process(bare_machine, monkeypatch):
    def refuse(*_):
        raise PermissionError('read only')

    monkeypatch.setattr(attention_choice.os, 'link', refuse)
    monkeypatch.setattr(attention_choice, 'measure', lambda: dict.fromkeys(CASES, True))
    assert ours_is_quicker(*queries())
    assert not bare_machine.exists()


@pytest.mark.parametrize('value', ['0', '1'])
def test_the_environment_fixes_it(value, bare_machine, monkeypatch):
    monkeypatch.setenv('MMSGFORMER_CPU_KERNEL', value)
    monkeypatch.setattr(attention_cpu, 'is_available', attention_cpu.is_available.__wrapped__)
    assert ours_is_quicker(*queries()) == (value == '1')
    assert not bare_machine.exists()


def test_tensors_without_numbers_are_not_timed(bare_machine):
    with FakeTensorMode():
        assert not ours_is_quicker(*queries())
    assert not bare_machine.exists()


def test_measuring_neither_sees_nor_changes_what_the_caller_has_on():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with FlopCounterMode(display=False) as counter, torch.autocast('cpu', torch.bfloat16):
        found = measure()
    assert found.keys() == CASES.keys()
    assert counter.get_total_flops() == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('ours', [False, True])
def test_either_way_gives_the_same(ours, monkeypatch):
    monkeypatch.setattr(attention_choice, 'measure', lambda: dict.fromkeys(CASES, ours))
    q, k = queries()
    expected = (q.double() @ k.double().mT / 8**0.5).softmax(-1) @ k.double()
    torch.testing.assert_close(dot_product_attention(q, k, k).double(), expected, rtol=0, atol=1e-5)
