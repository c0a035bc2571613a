"""The measured table: what ``auto`` makes of it, and how its figures are made."""

import sys

import pytest
import torch
from tables import entry, table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_map

import torchsmith
from torchsmith import _native, dispatch, tuning
from torchsmith.bench import harness
from torchsmith.bench.harness import Times
from torchsmith.spec import all_specs
from torchsmith.tuned import Entry, Table, describe, size_class

pytestmark = pytest.mark.usefixtures("cache")


def chosen(op, *arguments, **keywords):
    getattr(torchsmith, op)(*arguments, **keywords)
    return torchsmith.explain()


# ------------------------------------------------------------------------------------------------ what auto makes of it


def test_auto_takes_the_faster_one_and_says_why():
    x, w = torch.randn(3, 5), torch.randn(4, 5)
    ours = torchsmith.linear(x, w)
    table(entry("linear", (x, w, None), cpp_us=12.0, torch_us=9.0)).activate()
    decision = chosen("linear", x, w)
    assert decision.implementation == "torch"
    assert decision.reason == "native is faster for these sizes: measured 9 us against 12 us"
    torch.testing.assert_close(torchsmith.linear(x, w), ours)
    assert torch.equal(torchsmith.linear(x, w), torch.nn.functional.linear(x, w))
    with torchsmith.backend("cpp"):
        assert chosen("linear", x, w).implementation == "cpp"
    assert chosen("linear_relu", x, w).implementation == "cpp"  # nothing is known of it


@pytest.mark.parametrize(
    ("cpp_us", "torch_us", "taken"),
    [(9.0, 12.0, "cpp"), (10.0, 10.4, "cpp"), (10.0, 10.2, "torch"), (10.2, 10.0, "torch")],
)
def test_ours_is_taken_where_it_is_faster_by_more_than_noise(cpp_us, torch_us, taken):
    x, w = torch.randn(3, 5), torch.randn(4, 5)
    table(entry("linear", (x, w, None), cpp_us, torch_us)).activate()
    said = chosen("linear", x, w)
    assert said.implementation == taken
    assert taken == "cpp" or "native is as fast as ours for these sizes" in said.reason
    with torchsmith.backend("cpp"):
        assert chosen("linear", x, w).implementation == "cpp"


def test_near_ties_are_measured_longer(monkeypatch):
    budgets = []

    def interleave(pair, plan):
        budgets.append(plan.budget_s)
        return Times([1.0, 1.0], [1.05, 1.05] if len(budgets) == 1 else [1.5, 1.5])

    monkeypatch.setattr(harness, "interleave", interleave)
    call = tuning.Call("linear", (torch.randn(2, 3), torch.randn(4, 3), None), False, 1)
    us = tuning.compare({"ours": lambda n: None, "torch": lambda n: None}, call, quick=False)
    assert budgets[1] == 4 * budgets[0] and us["torch"] == 1.5 * us["ours"]


@pytest.mark.parametrize("first, second, us", [(1.1, 0.9, 0.9), (1.1, 1.3, 1.1), (1.3, 0.5, 1.3), (0.95, 9.0, 0.95)])
def test_a_narrow_win_is_measured_in_other_memory(monkeypatch, first, second, us):
    """Of two measurements the one that is worse for us counts."""
    measured = []

    def compare(arms, call, quick):
        measured.append(call.arguments)
        return {name: 1.0 if name != "torch" else (first, second)[len(measured) - 1] for name in arms}

    monkeypatch.setattr(tuning, "compare", compare)
    x, w = torch.randn(5, 4).t(), torch.randn(3, 5, requires_grad=True)
    (found,) = tuning.measure(tuning.Call("linear", (x, w, None), True, 1))
    assert found.us == {"ours": 1.0, "torch": us} and found.key == tuning.Call("linear", (x, w, None), True, 1).key
    assert len(measured) == (2 if first == 1.1 else 1)
    for one, other in zip(measured[0][:2], measured[-1][:2], strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride() and one.requires_grad == other.requires_grad
        assert (one.data_ptr() == other.data_ptr()) == (first != 1.1)


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


def test_an_op_that_never_loses_is_not_looked_up():
    table(entry("linear", (torch.randn(3, 5), torch.randn(4, 5), None), 1.0, 2.0)).activate()
    assert not dispatch.KNOWN


def test_what_distinguishes_calls():
    x, w = torch.randn(20, 30), torch.randn(40, 30)
    table(entry("linear", (x, w, None), 2.0, 1.0)).activate()
    assert chosen("linear", x, w).implementation == "torch"
    assert chosen("linear", x.double(), w.double()).implementation == "cpp"
    assert chosen("linear", x.requires_grad_(), w).implementation == "cpp"
    x.requires_grad_(False)
    assert chosen("linear", x.t().contiguous().t(), w).implementation == "cpp"
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert chosen("linear", x, w).implementation == "cpp"
    finally:
        torch.set_num_threads(before)


def test_sizes_between_the_measured_ones_take_what_their_class_takes():
    w = torch.randn(40, 30)
    near = [entry("linear", (torch.randn(n, 30), w, None), cpp, native) for n, cpp, native in ((96, 5, 4), (100, 9, 5))]
    table(*near, entry("linear", (torch.randn(101, 30), w, None), 1.0, 2.0)).activate()
    decision = chosen("linear", torch.randn(110, 30), w)
    assert (decision.implementation, "sizes like these" in decision.reason) == ("torch", True)
    assert chosen("linear", torch.randn(101, 30), w).implementation == "cpp"  # measured itself
    assert chosen("linear", torch.randn(400, 30), w).implementation == "cpp"


def test_small_sizes_are_classes_of_their_own():
    assert [size_class(describe(torch.empty(n))) for n in range(9)] == [describe(torch.empty(n)) for n in range(9)]
    classes = [size_class(describe(torch.empty(n)))[1][0] for n in range(9, 5000)]
    assert classes == sorted(classes)
    assert 16 <= len(set(classes)) <= 20  # two an octave


CALLS = {
    "conv2d": lambda x: torchsmith.conv2d(x, torch.randn(4, 3, 3, 3), None, 2, (1, 1)),
    "conv2d_relu_maxpool2d": lambda x: torchsmith.conv2d_relu_maxpool2d(x, torch.randn(4, 3, 3, 3), pool_kernel_size=3),
    "max_pool2d": lambda x: torchsmith.max_pool2d(x, 2),
    "linear_relu": lambda x: torchsmith.linear_relu(x, torch.randn(4, 9)),
    "rnn_cell": lambda x: torchsmith.nn.RNNCell(3, 4, nonlinearity="relu")(x[0, :, :2, 0].t(), torch.zeros(2, 4)),
    "gru_cell": lambda x: torchsmith.nn.GRUCell(3, 4)(x[0, :, :2, 0].t(), torch.zeros(2, 4)),
    "rnn": lambda x: torchsmith.nn.RNN(9, 4, 2, bidirectional=True)(x[0]),
    "gru": lambda x: torchsmith.nn.GRU(9, 4, batch_first=True)(x[0]),
    "gru packed": lambda x: torchsmith.nn.GRU(9, 4)(pack_sequence([x[0, 0], x[0, 1, :2]])),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_op_obeys(name):
    """What is recorded of a call is found again at the next one, through the file, and decides it."""
    x, call = torch.randn(1, 3, 9, 9), CALLS[name]
    with tuning.record() as calls:
        call(x)
    (seen,) = calls
    assert seen.op == name.partition(" ")[0]
    Table(
        {seen.key: Entry(seen.op, describe(seen.arguments), seen.threads, seen.grad, {"ours": 2.0, "torch": 1.0})}
    ).save()
    Table.load().activate()
    call(x)
    assert torchsmith.explain() == dispatch.Decision(
        seen.op, "torch", "native is faster for these sizes: measured 1 us against 2 us"
    )


@pytest.mark.parametrize("name", CALLS)
def test_every_op_can_be_measured_as_recorded(name):
    with tuning.record() as calls:
        CALLS[name](torch.randn(1, 3, 9, 9))
    (measured,) = tuning.measure(calls[0], quick=True)
    assert measured.key == calls[0].key
    assert list(measured.us) == ["ours", "torch"] and min(measured.us.values()) > 0


def test_a_compiled_function_is_one_graph_with_a_table():
    x, w = torch.randn(3, 5), torch.randn(4, 5)
    table(entry("linear", (x, w, None), cpp_us=12.0, torch_us=9.0)).activate()
    compiled = torch.compile(lambda x: torchsmith.linear(x, w), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), torch.nn.functional.linear(x, w))


@pytest.mark.parametrize(
    "name", [n for n in CALLS if "packed" not in n]
)  # whose lengths are data: torch cannot trace those
def test_sizes_that_are_symbols_are_not_looked_up(name):
    """torch's tracers with symbols for sizes, outside of torch.compile: nothing is known of those, and nothing is raised."""
    with tuning.record() as calls:
        CALLS[name](torch.randn(2, 3, 9, 9))
    table(*(Entry(*call.key, {"ours": 9.0, "torch": 5.0}) for call in calls)).activate()
    assert dispatch.KNOWN
    traced = make_fx(CALLS[name], tracing_mode="symbolic")(torch.randn(2, 3, 9, 9))
    assert any("torchsmith" in str(node.target) for node in traced.graph.nodes)


def test_windows_of_one_size_are_one_call():
    assert describe((3, 3)) == describe([3, 3]) == 3
    assert describe((3, 2)) == (3, 2)


def test_channels_last_convolutions_are_natives():
    x, w = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last), torch.randn(8, 4, 3, 3)
    decision = chosen("conv2d", x, w)
    assert decision.implementation == "torch" and "channels_last" in decision.reason
    assert chosen("conv2d", x, torch.randn(4, 1, 3, 3), groups=4).implementation == "cpp"
    assert chosen("conv2d_relu_maxpool2d", x, w).implementation == "cpp"
    assert chosen("conv2d", x.contiguous(), w).implementation == "cpp"
    with torchsmith.backend("cpp"):
        assert chosen("conv2d", x, w).implementation == "cpp"


# ------------------------------------------------------------------------------------------------ measuring a model


def test_tune_measures_what_a_model_calls(cache):
    model = torch.nn.Sequential(
        torchsmith.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torchsmith.nn.Linear(32, 4), torchsmith.nn.Linear(4, 4)
    )
    x = torch.randn(2, 1, 6, 6)
    entries = torchsmith.tune(model, x, quick=True)
    assert [(e.op, e.grad) for e in entries] == [("conv2d", True), ("linear", True), ("linear", True)]
    assert entries[0].arguments[0] == ("tensor", (2, 1, 6, 6), "float32", "contiguous")
    assert list(Table.load().entries.values()) == entries
    with torch.no_grad():
        again = torchsmith.tune(model, x, quick=True, save=False)
    assert [e.grad for e in again] == [False] * 3
    assert len(Table.load().entries) == 3


@pytest.mark.parametrize("name", CALLS)
def test_the_figures_are_of_the_named_implementations(name):
    """The arm called torch is ATen, found as a table's verdict is, and the arm called cpp is ours; explain() tells."""
    with tuning.record() as calls, torch.no_grad():
        CALLS[name](torch.randn(2, 3, 9, 9))
    function = next(s.function for s in all_specs() if s.name == calls[0].op)
    for backend in ("cpp", "torch"):
        tuning._arm(function, calls[0], backend)(2)
        made = torchsmith.explain()
        assert made.implementation == backend and ("measured" in made.reason) == (backend == "torch")
    assert not dispatch.KNOWN
