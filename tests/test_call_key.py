"""The number by which a call is looked up in the measured table: the same exactly for calls that are described alike."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from torchsmith import _native
from torchsmith.tuned import describe, tensors_of


def packed(*lengths, features=3):
    return pack_sequence([torch.zeros(n, features) for n in lengths], enforce_sorted=False)


T, W = torch.zeros(4, 6), nn.Parameter(torch.zeros(6, 4))
WIDE, LAST = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
CALLS = [
    ((T, W), ()),
    ((torch.ones(4, 6), nn.Parameter(torch.ones(6, 4))), ()),  # other values, the same call
    ((T, W.detach()), ()),
    ((T.double(), W.double()), ()),
    ((T.t().contiguous().t(), W), ()),
    ((T[:3], W), ()),
    ((torch.zeros(6, 4), W), ()),
    ((T, W, None), ()),
    ((T, None, W), ()),
    ((T.to("meta"), W.to("meta")), ()),
    ((T, [W]), ()),
    ((T, [W, W]), ()),
    ((T, [[W], [W]]), ()),
    ((WIDE,), (2, 1, 0)),
    ((WIDE,), (2, 0, 1)),
    ((WIDE,), ((2, 1), 1, 0)),
    ((WIDE,), ("same",)),
    ((LAST,), (2, 1, 0)),
    ((torch.zeros(2, 3, 4, 8)[..., ::2],), (2, 1, 0)),
    ((packed(3, 2, 2), [W]), ()),
    ((packed(2, 3, 2), [W]), ()),  # sorted on the way: the same call
    ((packed(4, 2, 1), [W]), ()),
    ((packed(2, 2, 2, 1), [W]), ()),
    ((packed(3, 3, 1, features=4), [W]), ()),
    ((torch.zeros(7, 3), [W]), ()),
]


def description(grad, tensors, others):
    return describe((*tensors, *others)), grad and any(t.requires_grad for t in tensors_of(tensors))


@pytest.fixture(params=["exchange", "attributes"])
def call_key(request):
    """The key that the table uses, and the one it would use in a torch without DLPack's exchange API."""
    exchanges = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    if request.param == "exchange" and not exchanges:
        pytest.skip("this torch has no exchange API")
    of = torch.Tensor if request.param == "exchange" else object
    return _native.call_key(packed=PackedSequence, tensor=of, parameter=nn.Parameter)


def test_keys_are_the_same_where_descriptions_are(call_key):
    made = [(call_key(grad, *call), (grad, description(grad, *call))) for call in CALLS for grad in (False, True)]
    for (key, said), (other, of_other) in itertools.combinations(made, 2):
        assert key != other or said == of_other, "two calls that are described otherwise have one key"
    assert call_key(True, *CALLS[0]) == call_key(True, *CALLS[1])
    assert call_key(True, *CALLS[0]) != call_key(True, *CALLS[2]), "a need of a gradient"
    assert call_key(False, *CALLS[0]) == call_key(False, *CALLS[2])
    assert call_key(True, *CALLS[19]) == call_key(True, *CALLS[20]) and isinstance(CALLS[19][0][0], PackedSequence)


def test_threads_are_part_of_it(call_key):
    before = torch.get_num_threads()
    keys = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            keys.append(call_key(True, *CALLS[0]))
    finally:
        torch.set_num_threads(before)
    assert keys[0] == keys[2] != keys[1]


def test_what_has_no_key_raises(call_key):
    with pytest.raises(TypeError, match="unhashable"):
        call_key(True, (T,), ([2, 2],))
    with pytest.raises(AttributeError, match="shape"):
        call_key(True, (T, 2.5), ())
    with pytest.raises(TypeError, match="expected grad, tensors and others, got 1"):
        call_key(True)


@pytest.mark.parametrize("without_grad", [True, False])
def test_an_answer_is_remembered_for_such_a_call(without_grad):
    asked = []

    def slow(tensors, others):
        asked.append((tensors, others))
        return f"answer {len(asked)}"

    quick = _native.remembered(
        packed=PackedSequence, tensor=torch.Tensor, parameter=nn.Parameter, grad_enabled=torch.is_grad_enabled,
        slow=slow, without_grad=without_grad, most=100,
    )  # fmt: skip
    assert [quick(*CALLS[i]) for i in (0, 1, 0, 2)] == ["answer 1", "answer 1", "answer 1", "answer 2"]
    assert asked == [CALLS[0], CALLS[2]]
    with torch.no_grad():
        assert quick(*CALLS[0]) == ("answer 3" if without_grad else "")
    count = len(asked)
    for _ in range(2):
        quick((T,), ([2, 2],))  # has no key
    assert len(asked) == count + 2
    with pytest.raises(ZeroDivisionError):
        _native.remembered(
            packed=PackedSequence, tensor=torch.Tensor, parameter=nn.Parameter, grad_enabled=torch.is_grad_enabled,
            slow=lambda tensors, others: 1 / 0, without_grad=True, most=100,
        )(*CALLS[0])  # fmt: skip


def test_calls_that_never_repeat_do_not_fill_the_memory():
    asked = []
    quick = _native.remembered(
        packed=PackedSequence, tensor=torch.Tensor, parameter=nn.Parameter, grad_enabled=torch.is_grad_enabled,
        slow=lambda tensors, others: asked.append(others) or "", without_grad=True, most=2,
    )  # fmt: skip
    for others in (1,), (2,), (1,), (3,), (3,), (1,):  # the third forgets both
        quick((T,), others)
    assert asked == [(1,), (2,), (3,), (1,)]
