"""Choosing by measurement among C++ and Triton kernels and their configurations: run by test_triton.py, interpreted on the CPU."""

import pytest
import torch

import torchsmith
from torchsmith import dispatch, triton_backend
from torchsmith.kernels import _gemm, _shared
from torchsmith.tuned import Entry, Table, describe

assert not triton_backend.absent()  # which imports every row
X, W, B = torch.randn(20, 7), torch.randn(5, 7), torch.randn(5)
NATIVE = {"linear_forward": (X, W, B, True)}


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The native ops whose Triton launchers ran."""
    seen = []

    def spy(op, launcher):
        return lambda *args, **keywords: (seen.append(op), launcher(*args, **keywords))

    monkeypatch.setattr(_shared, "LAUNCHERS", {op: spy(op, run) for op, run in _shared.LAUNCHERS.items()})
    yield seen
    Table().activate()


def table(*entries):
    return Table({e.key: e for e in entries})


def kernel_entry(op, args, cpp, triton):
    return Entry(op, describe(args), 0, False, {"cpp": cpp, "triton": triton})


def test_auto_runs_each_pass_in_the_faster_kernel(launched):
    table(kernel_entry("linear_forward", NATIVE["linear_forward"], 9.0, 4.0)).activate()
    x = X.clone().requires_grad_()
    y = torchsmith.linear_relu(x, W, B)
    assert launched == ["linear_forward"]
    said = torchsmith.explain()
    assert said.implementation == "triton"
    assert said.reason == "Triton's kernel is faster for these sizes: measured 4 us against 9 us"
    y.sum().backward()
    assert launched == ["linear_forward"]
    torch.testing.assert_close(y, torch.relu(x @ W.t() + B))


@pytest.mark.parametrize("name", ["cpp", "torch"])
def test_a_backend_that_is_set_is_obeyed(name, launched):
    table(kernel_entry("linear_forward", NATIVE["linear_forward"], 9.0, 4.0)).activate()
    with torchsmith.backend(name, ["linear_relu"]):
        torchsmith.linear_relu(X, W, B)
        assert launched == [] and torchsmith.explain().implementation == name
    torchsmith.linear_relu(X, W, B)
    assert launched == ["linear_forward"]


def test_cpp_is_kept_where_it_is_faster_or_nothing_is_known(launched):
    other = kernel_entry("linear_forward", (torch.randn(500, 500), W, B, True), 9.0, 4.0)
    table(kernel_entry("linear_forward", NATIVE["linear_forward"], 4.0, 4.1), other).activate()
    torchsmith.linear_relu(X, W, B)
    torchsmith.linear_relu(X[:3], W, B)
    assert launched == [] and torchsmith.explain().implementation == "cpp"


def test_without_an_entry_nothing_stands_between():
    table(kernel_entry("linear_forward", NATIVE["linear_forward"], 4.0, 9.0)).activate()
    assert not triton_backend.in_use()


def runs_of(config):
    """The configurations that a product is run in, with the grid it gets."""
    seen = []
    run = type(_gemm.gemm_kernel).run

    def recorded(self, *args, grid, warmup, **keywords):
        seen.append(({name: keywords[name] for name in config}, grid))
        return run(self, *args, grid=grid, warmup=warmup, **keywords)

    return seen, recorded


def test_measuring_a_call_measures_its_kernels_and_their_configurations(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHSMITH_CACHE", str(tmp_path))
    entries = torchsmith.tune(lambda: torchsmith.linear_relu(X.clone().requires_grad_(), W, B), quick=True)
    by_op = {}
    for entry in entries:
        by_op.setdefault(entry.op, []).append(entry)
        assert min(entry.us.values()) > 0
    assert {op: [list(e.us) for e in es][0] for op, es in by_op.items() if op != "gemm_kernel"} == {
        "linear_forward": ["cpp", "triton"], "linear_backward": ["cpp", "triton"], "linear_relu": ["ours", "torch"],
    }  # fmt: skip
    labels = {config.label for config in _gemm.CONFIGS}
    # the product, and in the backward pass dx alone: no weight asks for its gradient
    assert len(by_op["gemm_kernel"]) == 2 and all(set(e.us) == labels for e in by_op["gemm_kernel"])
    assert by_op["linear_forward"][0].fastest == "cpp"  # an interpreter never wins
    assert Table.load().entries == {e.key: e for e in entries}
    assert entries[-1].op == "linear_relu"


@pytest.mark.parametrize("config", _gemm.CONFIGS, ids=lambda c: c.label)
def test_a_launch_takes_the_configuration_measured_fastest_with_its_own_grid(config, monkeypatch):
    keys = []

    def attempt(kernel, arguments, runners):
        keys.append((kernel, arguments))
        return list(runners)[0]

    a, b, c = torch.randn(100, 30), torch.randn(30, 150), torch.empty(100, 150)
    triton_backend.use_configurations({}, attempt)
    _gemm.gemm(a, b, c)
    us = {other.label: 2.0 for other in _gemm.CONFIGS} | {config.label: 1.0}
    table(Entry(*keys[0], 0, False, us)).activate()
    seen, recorded = runs_of(config)
    monkeypatch.setattr(type(_gemm.gemm_kernel), "run", recorded)
    c.fill_(0)
    _gemm.gemm(a, b, c)
    ((constants, grid),) = seen
    assert constants == dict(config)
    assert grid == (-(-100 // config["BM"]), -(-150 // config["BN"]), 1)
    torch.testing.assert_close(c, a @ b)


def test_a_compiled_graph_holds_the_op_and_runs_the_kernel_chosen(launched):
    """One graph for every backend: what runs inside is chosen when it runs."""
    ours = torch.compile(lambda x: torchsmith.linear_relu(x, W, B).sum(), fullgraph=True, backend="aot_eager")
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ours(x), x)
    assert launched == []
    with dispatch.backend("triton"):
        (again,) = torch.autograd.grad(ours(x), x)
    assert launched == ["linear_forward", "linear_backward"]
    torch.testing.assert_close(grad, again)
    Table().activate()
