"""The measured table: what ``auto`` makes of it, and how its figures are made."""

import pytest
import torch
from tables import chosen, entry, table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence

import torchsmith
from torchsmith import dispatch, tuning
from torchsmith.bench import harness
from torchsmith.bench.harness import Times
from torchsmith.spec import all_specs
from torchsmith.tuned import Entry, Table, describe, size_class

pytestmark = pytest.mark.usefixtures("cache")


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
