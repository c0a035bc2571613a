"""The rules by which a call is native's where nothing was measured on this machine."""

import sys

import pytest
import torch
from tables import chosen, entry, table
from torch.utils._pytree import tree_map

import torchsmith
from torchsmith import _native, dispatch, tuning

pytestmark = pytest.mark.usefixtures("cache")


def test_calls_that_a_rule_leaves_to_native_are_recorded(monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    assert chosen("max_pool2d", x, 2).implementation == "torch"
    with tuning.record() as calls:
        torchsmith.max_pool2d(x, 2)
    assert [c.op for c in calls] == ["max_pool2d"]


def test_rules_about_few_values_are_the_cpus(monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    for grad in (False, True):
        x = torch.randn(1, 8, 8, 8, device="meta", requires_grad=grad)
        assert chosen("max_pool2d", x, 2).implementation == "cpp"
        assert chosen("linear", x, torch.randn(4, 8, device="meta")).implementation == "cpp"


def test_small_pools_are_natives_until_something_is_measured(monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    x = torch.randn(1, 8, 32, 32, requires_grad=True)
    said = chosen("max_pool2d", x, 2)
    assert said.implementation == "torch" and said.reason.startswith("few values: native's autograd node")
    assert torchsmith.max_pool2d(x, 2).grad_fn.name().startswith("MaxPool2DWithIndices")
    smaller = torch.randn(1, 8, 8, 8)
    said = chosen("max_pool2d", smaller, 2)
    assert said.implementation == "torch" and said.reason.startswith("few values: native's call")
    for other in (x.detach(), torch.randn(1, 8, 32, 33, requires_grad=True), torch.randn(1, 8, 8, 9)):
        assert chosen("max_pool2d", other, 2).implementation == "cpp"
    with torchsmith.backend("cpp"):
        assert chosen("max_pool2d", smaller, 2).implementation == "cpp"
    table(entry("max_pool2d", (x, 2, 2, 0, 1, False), cpp_us=1.0, torch_us=2.0)).activate()
    assert chosen("max_pool2d", x, 2).implementation == "cpp"


#: Sizes of input and weight, stride and groups: the reason's beginning on AVX-512, and elsewhere; "" for our kernel.
CONVOLUTIONS = [
    ((2, 128, 6, 6), (128, 128, 3, 3), 1, 1, "many channels:", ""),
    ((2, 64, 16, 16), (64, 64, 3, 3), 1, 1, "many channels:", ""),
    ((2, 64, 16, 16), (63, 64, 3, 3), 1, 1, "", ""),
    ((1, 32, 23, 23), (128, 32, 3, 3), 1, 1, "", ""),
    ((1, 32, 22, 22), (128, 32, 3, 3), 1, 1, "many channels:", ""),
    ((1, 43, 23, 23), (96, 43, 3, 3), 1, 1, "many channels:", ""),
    ((2, 128, 6, 6), (128, 128, 1, 1), 1, 1, "", ""),
    ((2, 128, 2, 2), (128, 128, 1, 1), 1, 1, "many channels:", ""),
    ((2, 128, 6, 6), (128, 128, 3, 3), 2, 1, "many channels:", "many channels, few cells"),
    ((1, 128, 6, 6), (128, 128, 3, 3), 2, 1, "many channels:", ""),
    ((2, 64, 6, 6), (64, 64, 5, 5), 1, 1, "many channels:", "many channels and"),
    ((2, 64, 6, 6), (63, 64, 5, 5), 1, 1, "", ""),
    ((2, 128, 6, 6), (128, 1, 3, 3), 2, 128, "few cells", ""),
    ((2, 128, 20, 20), (128, 1, 3, 3), 1, 128, "", ""),
    ((2, 8, 24, 24), (8, 1, 3, 3), 2, 8, "", ""),
    ((2, 8, 48, 48), (8, 1, 3, 3), 3, 8, "", "depthwise, stride above 2"),
    ((2, 8, 33, 33), (8, 1, 3, 3), 3, 8, "", ""),
]


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_convolutions_that_are_natives_until_something_is_measured(monkeypatch, isa):
    monkeypatch.setattr(dispatch, "RULES", True)
    monkeypatch.setattr(_native, "isa_active", lambda: isa)
    for input, weight, stride, groups, with_avx512, without in CONVOLUTIONS:
        x, w = torch.randn(input), torch.randn(weight)
        said, reason = chosen("conv2d", x, w, None, stride, 1, 1, groups), with_avx512 if "avx512" in isa else without
        assert said.implementation == ("torch" if reason else "cpp"), (said, input, weight)
        assert said.reason.startswith(reason), (said, input, weight)
    small = torch.randn(2, 8, 4, 4)
    # Padding, dilation, columns of the window.
    same = [(1, 1, 3), ("same", 1, 3), ((0, 1), 1, 3), (2, 2, 3), ((1, 2), 1, 5)]
    for padding, dilation, columns in (*same, (0, 1, 3), ("valid", 1, 3), ((1, 0), 1, 3), (1, 1, 5), (2, 1, 3)):
        said = chosen("conv2d", small, torch.randn(8, 1, 3, columns), None, 1, padding, dilation, 8)
        ours = (padding, dilation, columns) in same or "avx512" not in isa
        assert said.implementation == ("cpp" if ours else "torch"), (said, padding, dilation)
    monkeypatch.undo()
    monkeypatch.setattr(dispatch, "RULES", True)
    x, w = torch.randn(2, 64, 6, 6), torch.randn(64, 64, 5, 5)
    assert chosen("conv2d_relu", x, w).implementation == "torch"
    assert torch.equal(torchsmith.conv2d(x, w), torch.nn.functional.conv2d(x, w))
    assert chosen("conv2d_relu_maxpool2d", x, w).implementation == "cpp"
    with torchsmith.backend("cpp"):
        assert chosen("conv2d", x, w).implementation == "cpp"
    table(entry("conv2d", (x, w, None, 1, 0, 1, 1), cpp_us=1.0, torch_us=2.0)).activate()
    assert chosen("conv2d", x, w).implementation == "cpp"


def test_rules_of_convolutions_by_dtype(monkeypatch):
    """Native's float16 is several times as slow, its float64 has no blocked channels: only 1 x 1 windows are left to it."""
    monkeypatch.setattr(dispatch, "RULES", True)
    monkeypatch.setattr(_native, "isa_active", lambda: "avx512")
    for input, weight, stride, groups, *_ in CONVOLUTIONS:
        for dtype in (torch.float16, torch.float64):
            x, w = torch.randn(input, dtype=dtype), torch.randn(weight, dtype=dtype)
            left = dtype == torch.float64 and weight == (128, 128, 1, 1)
            said = chosen("conv2d", x, w, None, stride, 1, 1, groups)
            assert said.implementation == ("torch" if left else "cpp"), (said, input, weight, dtype)
            assert said.reason.startswith("many channels" if left else "cpu kernel")
    for dtype, left in ((torch.float16, False), (torch.float32, True)):
        x, w = torch.randn(2, 4, 8, 8).to(dtype, memory_format=torch.channels_last), torch.randn(4, 4, 3, 3).to(dtype)
        assert chosen("conv2d", x, w).implementation == ("torch" if left else "cpp")


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_float16_whose_weights_are_cast_in_each_call(isa, monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    monkeypatch.setattr(sys.modules["torchsmith.ops.linear"], "MKL_AT_HOME", True)
    monkeypatch.setattr(sys.modules["torchsmith.ops._cell"], "AMX", True)
    monkeypatch.setattr(_native, "isa_active", lambda: isa)
    w = torch.randn(512, 512).half()
    for rows, left in ((1, True), (2, False), (7, False), (8, True)):
        x = torch.randn(rows, 512).half()
        said = chosen("linear", x, w)
        assert said.implementation == ("torch" if left and isa == "avx512" else "cpp"), (said, rows)
    assert chosen("linear", x.float(), w.float()).implementation == "cpp"
    for hidden, left in ((209, False), (210, True)):  # of 6 x 210 x 210 elements, 2^18 and some
        weights = torch.randn(2, 3 * hidden, hidden)
        x = torch.randn(1, hidden)
        said = chosen("gru_cell", x.half(), x.half(), *weights.half())
        assert said.implementation == ("torch" if left and isa == "avx512" else "cpp"), (said, hidden)
        assert chosen("gru_cell", x, x, *weights).implementation == "cpp"
        with torchsmith.backend("cpp"):
            assert chosen("gru_cell", x.half(), x.half(), *weights.half()).implementation == "cpp"
    if isa == "avx512":
        arguments = x.half(), x.half(), *weights.half()
        assert torch.equal(torchsmith.gru_cell(*arguments), torch.gru_cell(*arguments))


@pytest.mark.parametrize(
    "at_home, isa, rows, left",
    [(True, "avx512", 64, True), (True, "avx512", 63, False), (True, "avx2", 64, False), (False, "avx512", 64, False)],
)
@pytest.mark.parametrize("dtype, columns", [(torch.float32, 2**14), (torch.bfloat16, 2**9)])
def test_large_products_are_mkls_where_it_is_at_home(at_home, isa, rows, left, dtype, columns, monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    monkeypatch.setattr(sys.modules["torchsmith.ops.linear"], "MKL_AT_HOME", at_home)
    monkeypatch.setattr(_native, "isa_active", lambda: isa)
    x, w = torch.randn(rows, columns, dtype=dtype), torch.randn(256, columns, dtype=dtype)
    for op in ("linear", "linear_relu"):
        said = chosen(op, x, w)
        assert (said.implementation, "MKL" in said.reason) == (("torch", True) if left else ("cpp", False)), said
    with torchsmith.backend("cpp"):
        assert chosen("linear", x, w).implementation == "cpp"
    with pytest.raises(TypeError, match="'input'"):
        torchsmith.linear(None, w)
    table(entry("linear", (x, w), cpp_us=1.0, torch_us=2.0)).activate()
    assert chosen("linear", x, w).implementation == "cpp"


@pytest.mark.parametrize("isa, left", [("avx512_amx", False), ("avx512_bf16", True)])
def test_bfloat16_products_are_ours_where_they_use_amx(isa, left, monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    monkeypatch.setattr(dispatch, "AMX", True)
    monkeypatch.setattr(sys.modules["torchsmith.ops.linear"], "MKL_AT_HOME", True)
    monkeypatch.setattr(_native, "isa_active", lambda: isa)
    x, w = torch.randn(64, 512, dtype=torch.bfloat16), torch.randn(256, 512, dtype=torch.bfloat16)
    expected = "torch" if left else "cpp"
    assert chosen("linear", x, w).implementation == expected
    x, hx, weights = tree_map(lambda t: t.bfloat16() if t is not None else t, _sequence(64))
    assert chosen("gru", x, hx, weights).implementation == expected
    images, weight = torch.randn(64, 24, 12, 12, dtype=torch.bfloat16), torch.randn(24, 24, 3, 3, dtype=torch.bfloat16)
    assert chosen("conv2d", images, weight).implementation == expected


def _sequence(hidden):
    return torch.randn(3, 2, 4), None, [torch.randn(3 * hidden, n) for n in (4, hidden)]


@pytest.mark.parametrize(
    "op, arguments, left",
    [
        ("conv2d", (torch.randn(64, 16, 12, 12), torch.randn(16, 16, 3, 3)), True),
        ("conv2d_relu", (torch.randn(64, 32, 4, 4), torch.randn(32, 32, 3, 3)), True),
        ("conv2d", (torch.randn(64, 10, 12, 12), torch.randn(16, 10, 1, 1)), False),  # 10 cells a window
        ("conv2d", (torch.randn(1, 16, 12, 12), torch.randn(16, 16, 3, 3)), False),  # small
        ("conv2d", (torch.randn(64, 16, 12, 12), torch.randn(16, 1, 3, 3), None, 1, 0, 1, 16), False),
        ("conv2d_relu_maxpool2d", (torch.randn(64, 10, 12, 12), torch.randn(20, 10, 5, 5)), False),
        ("conv2d_relu_maxpool2d", (torch.randn(64, 88, 12, 12), torch.randn(20, 88, 5, 5)), True),
        ("gru", _sequence(64), True),
        ("gru", _sequence(63), False),
    ],
)
def test_bfloat16_is_native_s_where_amx_multiplies_it(op, arguments, left, monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    monkeypatch.setattr(dispatch, "AMX", True)
    monkeypatch.setattr(_native, "isa_active", lambda: "avx512_bf16")

    def said(dtype):
        return chosen(op, *tree_map(lambda t: t.to(dtype) if isinstance(t, torch.Tensor) else t, arguments))

    found = said(torch.bfloat16)
    assert (found.implementation, "AMX" in found.reason) == (("torch", True) if left else ("cpp", False))
    assert said(torch.float16).implementation == "cpp"
    with torchsmith.backend("cpp"):
        assert said(torch.bfloat16).implementation == "cpp"
    monkeypatch.setattr(dispatch, "AMX", False)
    assert said(torch.bfloat16).implementation == "cpp"


def test_a_weight_without_dimensions_is_refused_in_words_with_amx_too(monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    monkeypatch.setattr(dispatch, "AMX", True)
    x = torch.zeros(1, 1, 2100, 2100, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="weight needs 4 dimensions"):
        torchsmith.conv2d(x, torch.zeros((), dtype=torch.bfloat16))


@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1)])
def test_a_convolution_left_to_native_keeps_native_s_results_and_our_pool(pool):
    x, w = torch.randint(-3, 4, (4, 3, 33, 33)).float(), torch.randint(-2, 3, (8, 3, 3, 3)).float()  # zeros and ties
    x[0, 0, 5, 6], x[1, 1, 8, 8] = float("nan"), float("inf")
    x.requires_grad_()
    w.requires_grad_()
    arguments = (x, w, None, 1, 1, 1, 1, *pool)
    table(entry("conv2d_relu_maxpool2d", arguments, cpp_us=2.0, torch_us=1.0, grad=True)).activate()
    y = torchsmith.conv2d_relu_maxpool2d(*arguments)
    assert torchsmith.explain().op == "conv2d_relu_maxpool2d" and torchsmith.explain().implementation == "torch"
    with torchsmith.backend("torch"):
        native = torchsmith.conv2d_relu_maxpool2d(*arguments)
    g = torch.randint(-4, 5, y.shape).float()
    results = [(out, *torch.autograd.grad(out, (x, w), g)) for out in (y, native)]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
