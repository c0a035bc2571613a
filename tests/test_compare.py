"""The comparator itself: what is wrong must be rejected, what is rounding must pass."""

import pytest
import torch
from compare import compare, nudged


@pytest.fixture
def triple():
    torch.manual_seed(0)
    exact = torch.randn(40, 30, dtype=torch.float64)
    return exact.float(), exact.float(), exact


def test_equal_passes(triple):
    compare(*triple)


def test_rounding_passes(triple):
    ours, native, exact = triple
    compare(torch.nextafter(ours, torch.tensor(9.0)), native, exact)


def _nan(t):
    t[3, 4] = float("nan")


def _inf(t):
    t[3, 4] = float("inf")


def _sign(t):
    t.neg_()


def _one_element(t):
    t[7, 7] += 1e-4


def _one_element_flipped(t):
    t[7, 7] *= -1


def _all_slightly(t):
    t.mul_(1 + 1e-5)


@pytest.mark.parametrize("spoil", [_nan, _inf, _sign, _one_element, _one_element_flipped, _all_slightly])
def test_wrong_is_rejected(triple, spoil):
    ours, native, exact = triple
    ours = ours.clone()
    spoil(ours)
    with pytest.raises(AssertionError):
        compare(ours, native, exact)


def test_the_worst_of_several_native_results_counts(triple):
    ours, native, exact = triple
    off = ours + 1e-4
    with pytest.raises(AssertionError):
        compare(off, [native, native], exact)
    compare(off, [native, native + 1e-4], exact)


def test_nudged_moves_each_value_by_a_bit_at_most():
    for dtype, integers in ((torch.float32, torch.int32), (torch.float16, torch.int16), (torch.bfloat16, torch.int16)):
        values = torch.randn(1000).to(dtype)
        values[:2] = torch.tensor([0.0, float("inf")])
        moved = nudged(values)
        assert set((moved.view(integers) - values.view(integers)).tolist()) == {-1, 0, 1}
        assert torch.equal(moved[:2], values[:2])


def test_lost_nan_is_rejected(triple):
    ours, native, exact = triple
    native, exact = native.clone(), exact.clone()
    native[0, 0] = exact[0, 0] = float("nan")
    with pytest.raises(AssertionError):
        compare(ours, native, exact)
    ours = ours.clone()
    ours[0, 0] = float("nan")
    compare(ours, native, exact)


def test_a_nan_that_native_alone_has_is_not_asked_for(triple):
    """oneDNN's bfloat16 weight gradients by AMX have such ones beside a true NaN."""
    ours, native, exact = (t.clone() for t in triple)
    native[0, 0] = float("nan")
    compare(native.clone(), native, exact)
    compare(ours, native, exact)
    ours[0, 0] += 1e-4
    with pytest.raises(AssertionError, match="error"):
        compare(ours, native, exact)


def test_wrong_sign_of_infinity_is_rejected(triple):
    ours, native, exact = (t.clone() for t in triple)
    native[0, 0] = exact[0, 0] = float("inf")
    ours[0, 0] = -float("inf")
    with pytest.raises(AssertionError):
        compare(ours, native, exact)


def test_shape_dtype_and_integers(triple):
    ours, native, exact = triple
    with pytest.raises(AssertionError):
        compare(ours[:-1], native, exact)
    with pytest.raises(AssertionError):
        compare(ours.double(), native, exact)
    with pytest.raises(AssertionError):
        compare(torch.tensor([1, 2]), torch.tensor([1, 3]), torch.tensor([1, 3]))
