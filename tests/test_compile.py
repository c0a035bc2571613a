"""torch.compile(fullgraph=True): every op, module and course model, forward and backward, with our ops in the graph.

The graphs run on AOT autograd and the ops themselves ("aot_eager"), which is all of the compiler that an op meets; two models
go through inductor too. What a graph computes must be bit for bit what eager mode computes: the kernels are the same.
"""

import copy

import pytest
import torch
from compare import compare
from contract import Call, samples_of
from torch.nn.utils.rnn import PackedSequence
from torch.nn.utils.rnn import pack_padded_sequence as pack

import torchsmith
from torchsmith import models, nn
from torchsmith.packed import pack_padded_sequence, pad_packed_sequence
from torchsmith.spec import all_specs


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


class Graphs:
    """Compiles as aot_eager does, and keeps the names of our ops in the graphs of either pass."""

    def __init__(self):
        from torch._dynamo.backends.common import aot_autograd  # takes seconds: of the worker alone that runs this

        self.forward, self.backward = set(), set()
        keep = {"fw_compiler": self._into(self.forward), "bw_compiler": self._into(self.backward)}
        self.backend = aot_autograd(**keep, inference_compiler=keep["fw_compiler"])

    @staticmethod
    def _into(names):
        from torch._functorch.aot_autograd import make_boxed_func

        def compiler(graph, inputs):
            targets = [n.target for n in graph.graph.nodes if n.op == "call_function"]
            names.update(t._opname for t in targets if getattr(t, "namespace", "") == "torchsmith")
            return make_boxed_func(graph)

        return compiler

    def compile(self, function, dynamic=None):
        return torch.compile(function, backend=self.backend, fullgraph=True, dynamic=dynamic)


def tensors(value):
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def run(module, function, inputs):
    """Outputs, then gradients of the parameters for fixed output gradients."""
    torch.manual_seed(1)  # dropout
    outputs = tensors(function(*inputs))
    parameters = [p for p in module.parameters() if p.requires_grad]
    differentiable = [o for o in outputs if o.requires_grad]
    grads = []
    if differentiable and parameters:
        torch.manual_seed(2)
        # By shape alone: randn_like would follow the layout.
        given = [torch.randn(o.shape).to(o.dtype) for o in differentiable]
        grads = torch.autograd.grad(differentiable, parameters, given)
    return [*outputs, *grads]


def assert_same(ours, eager):
    assert len(ours) == len(eager) > 0
    for a, b in zip(ours, eager, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def check(module, *inputs, kernels, dynamic=None):
    """Compiled as in eager mode, both passes, by these rows' kernels and no others."""
    graphs = Graphs()
    assert_same(run(module, graphs.compile(module, dynamic), inputs), run(module, module, inputs))
    assert graphs.forward == {f"{name}_forward" for name in kernels}
    with_gradients = {f"{name}_backward" for name in kernels if list(module.parameters())}
    assert graphs.backward == with_gradients


# ------------------------------------------------------------------------------------------------ ops

#: A few that take different ways through the Python side of an op; all are compared with native in test_contract.py.
TRACED = (
    "course 2", "same, even window", "channels_last", "unbatched",
    "2 odd", "ceil pad", "indices",
    "2x33x8", "vector", "no bias",
    "b3 5->7", "relu: b3 5->7",
    "two layers, both directions", "packed, unsorted", "dropout, packed", "relu: packed",
    "embedding, batch first, int32", "embedding, packed",
)  # fmt: skip


def traced(spec):
    return [
        i for i, s in enumerate(samples_of(spec, torch.float32)) if s.name in TRACED or s.name.startswith("course 2 ")
    ]


@pytest.mark.parametrize(
    "spec, index", [pytest.param(s, i, id=f"{s.name}-{i}") for s in all_specs() for i in traced(s)]
)
def test_every_op(spec, index):
    call, graphs = Call(samples_of(spec, torch.float32)[index]), Graphs()
    with torchsmith.backend("cpp"):  # auto leaves channels_last to native, traced or not
        outputs, grads = call.gradients(graphs.compile(spec.function))
        expected, expected_grads = call.gradients(spec.function)
    assert_same([*outputs, *grads], [*expected, *expected_grads])
    forward, backward = spec.kernels
    assert graphs.forward == {forward} and graphs.backward == {backward}


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_without_grad_in_another_dtype(spec):
    call, graphs = Call(samples_of(spec, torch.bfloat16)[1]), Graphs()
    with torch.no_grad():
        assert_same(call.run(graphs.compile(spec.function)), call.run(spec.function))
    assert graphs.forward == {spec.kernels[0]} and not graphs.backward


def test_what_is_computed_by_native_has_none_of_our_ops():
    """That the checks above can fail: a backend set to torch is traced as such."""
    graphs, module = Graphs(), nn.GRU(3, 4)
    with torchsmith.backend("torch"):
        graphs.compile(module)(torch.randn(2, 5, 3))
    assert graphs.forward == set()


def test_errors_are_said_while_tracing():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        Graphs().compile(nn.Linear(3, 4))(torch.randn(2, 5))


# ------------------------------------------------------------------------------------------------ modules and models

IMAGE = (2, 3, 9, 8)
MODULES = [
    (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), IMAGE, ["conv2d"]),
    (lambda: nn.Conv2d(3, 6, 3, padding="same", groups=3, bias=False), IMAGE, ["conv2d"]),
    (lambda: nn.Conv2dReLU(3, 5, 3, stride=2), IMAGE, ["conv2d"]),
    (lambda: nn.Conv2dReLUMaxPool2d(3, 5, 3, pool_kernel_size=3, pool_stride=2, pool_padding=1), IMAGE, ["conv2d"]),
    (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE, ["maxpool2d"]),
    (lambda: nn.Linear(5, 7), (2, 3, 5), ["linear"]),
    (lambda: nn.LinearReLU(5, 7, bias=False), (3, 5), ["linear"]),
    (lambda: nn.RNNCell(4, 6, nonlinearity="relu"), (3, 4), ["rnn_cell"]),
    (lambda: nn.GRUCell(4, 6), (4,), ["gru_cell"]),
    (lambda: nn.RNN(4, 6, 2, "relu", bias=False, batch_first=True), (3, 5, 4), ["rnn"]),
    (lambda: nn.GRU(4, 6, 2, bidirectional=True, dropout=0.5), (5, 3, 4), ["gru"]),
    (lambda: nn.GRU(4, 6), (5, 4), ["gru"]),
]


@pytest.mark.parametrize("make, shape, kernels", MODULES, ids=[repr(make())[:60] for make, _, _ in MODULES])
def test_every_module(make, shape, kernels):
    check(make(), torch.randn(shape), kernels=kernels)


def digits(n=3):
    return (torch.randn(n, 1, 28, 28),)


def characters(n=3, t=6, of=4):
    return (torch.randint(of, (n, t)),)


def names(n=3, t=9):
    return torch.randint(128, (n, t)), torch.arange(t, t - n, -1)


MODELS = {
    "LinearModel": (lambda: (torch.randn(3, 1),), ["linear"]),
    "LogisticRegression": (lambda: (torch.randn(3, 1),), ["linear"]),
    "DiabetesMLP": (lambda: (torch.randn(3, 8),), ["linear"]),
    "MnistMLP": (digits, ["linear"]),
    "MnistCNN": (digits, ["conv2d", "linear"]),
    "MnistInception": (digits, ["conv2d", "linear"]),
    "MnistResNet": (digits, ["conv2d", "linear"]),
    "MnistDenseNet": (digits, ["conv2d", "linear"]),
    "HelloRNNCell": (characters, ["rnn_cell"]),
    "HelloRNN": (characters, ["rnn"]),
    "HelloEmbedding": (characters, ["rnn", "linear"]),
    "CharGRU": (characters, ["gru", "linear"]),
    "NameGRU": (names, ["gru", "linear"]),
}


@pytest.mark.parametrize("name", models.__all__)
def test_every_course_model(name):
    inputs, kernels = MODELS[name]
    check(getattr(models, name)(), *inputs(), kernels=kernels)


@pytest.mark.minutes(1)
@pytest.mark.parametrize("name", ["MnistCNN", "NameGRU"])
def test_inductor(name):
    """The code that inductor writes around our ops: a step of training, at two sizes, one compilation."""
    inputs, _ = MODELS[name]
    model = getattr(models, name)()
    double = copy.deepcopy(model).double()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for given in (inputs(5), inputs(7)):
            # By the contract's rule: what is not ours (an embedding's gradient) inductor sums in another order.
            ours, native = run(model, compiled, given), run(model, model, given)
            exact = run(double, double, [t.double() if t.is_floating_point() else t for t in given])
            for i, values in enumerate(zip(ours, native, exact, strict=True)):
                compare(*values, f"result {i}")


# ------------------------------------------------------------------------------------------------ sizes left open

SIZES = [(3, 8), (5, 13), (2, 6)]  # batch and length
OPEN = {
    "Linear": (lambda: nn.Linear(17, 21), lambda b, t: (torch.randn(b, t, 17),)),
    "Conv2d": (lambda: nn.Conv2d(19, 7, 3, padding=1), lambda b, t: (torch.randn(b, 19, 20 + t, 40 + b),)),
    "Conv2dReLUMaxPool2d": (
        lambda: nn.Conv2dReLUMaxPool2d(19, 7, 3),
        lambda b, t: (torch.randn(b, 19, 20 + t, 40 + b),),
    ),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), lambda b, t: (torch.randn(b, 19, 20 + t, 40 + b),)),
    "RNNCell": (lambda: nn.RNNCell(17, 21), lambda b, t: (torch.randn(b, 17), torch.randn(b, 21))),
    "GRUCell": (lambda: nn.GRUCell(17, 21), lambda b, t: (torch.randn(b, 17), torch.randn(b, 21))),
    "RNN": (lambda: nn.RNN(17, 21, 2, bidirectional=True), lambda b, t: (torch.randn(t, b, 17),)),
    "GRU": (lambda: nn.GRU(17, 21, batch_first=True), lambda b, t: (torch.randn(b, t, 17),)),
    "GRU, packed": (
        lambda: nn.GRU(17, 21, bidirectional=True),
        lambda b, t: (pack(torch.randn(t, b, 17), torch.linspace(t, 1, b).long()), torch.randn(2, b, 21)),
    ),
    "NameGRU": (
        lambda: models.NameGRU(
            characters=6, hidden_size=21
        ),  # fewer than there are steps: as eager mode, by their index
        lambda b, t: (torch.randint(6, (b, t)), torch.linspace(t, 1, b).long()),
    ),
}


@pytest.mark.parametrize(
    "name, dynamic", [*((name, True) for name in OPEN), ("Linear", None), ("GRU", None), ("GRU, packed", None)]
)
def test_open_sizes_are_compiled_once(name, dynamic):
    """Asked for, sizes are open from the first call on; by default from the second one that differs on."""
    make, inputs = OPEN[name]
    module, graphs = make(), Graphs()
    compiled = graphs.compile(module, dynamic)
    for index, sizes in enumerate(SIZES):
        given = inputs(*sizes)
        with torch._dynamo.config.patch(error_on_recompile=index > (0 if dynamic else 1)):
            assert_same(run(module, compiled, given), run(module, module, given))
    assert graphs.forward


# ------------------------------------------------------------------------------------------------ packed sequences


@pytest.mark.parametrize("cell", ["RNN", "GRU"])
@pytest.mark.parametrize("sort, state", [(True, True), (True, False), (False, False)])
def test_packed_outside(cell, sort, state):
    module = getattr(nn, cell)(4, 6, 2, bidirectional=True)
    packed = pack(torch.randn(5, 3, 4), torch.tensor([5, 4, 2] if sort else [2, 5, 4]), enforce_sorted=sort)
    check(module, packed, *([torch.randn(4, 3, 6)] if state else []), kernels=[cell.lower()])


@pytest.mark.parametrize(
    "first, sort, total", [(False, True, None), (True, False, 7), (True, True, 7), (False, False, None)]
)
def test_packed_and_padded_inside(first, sort, total):
    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 6, bidirectional=True)

        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, first, sort)
            states, last = self.gru(packed)
            return *pad_packed_sequence(states, first, -1.0, total), last

    x = torch.randn(3, 7, 4) if first else torch.randn(7, 3, 4)
    check(Tagger(), x, torch.tensor([5, 4, 2] if sort else [2, 5, 4]), kernels=["gru"])


def test_packing_in_eager_mode_is_torchs():
    x, lengths = torch.randn(5, 3, 4), torch.tensor([5, 4, 2])
    ours, theirs = pack_padded_sequence(x, lengths), pack(x, lengths)
    assert isinstance(ours, PackedSequence)
    assert_same(tensors(tuple(ours)), tensors(tuple(theirs)))
    expected = torch.nn.utils.rnn.pad_packed_sequence(theirs, True, 2.0, 6)
    assert_same(list(pad_packed_sequence(ours, True, 2.0, 6)), list(expected))


def test_lengths_that_do_not_fit_are_refused_when_the_graph_runs():
    module = nn.GRU(4, 6)
    compiled = Graphs().compile(lambda x, n: module(pack_padded_sequence(x, n))[1])
    compiled(torch.randn(7, 3, 4), torch.tensor([5, 4, 2]))
    for lengths in ([2, 5, 4], [5, 4, 0], [8, 4, 2]):
        with pytest.raises(RuntimeError, match="lengths: expected 1 to T for each sequence, in descending order"):
            compiled(torch.randn(7, 3, 4), torch.tensor(lengths))


def test_a_state_of_another_batch_is_refused_when_the_graph_runs():
    """Traced, hx is believed where batch_sizes is a tensor; the kernel compares."""
    compiled = Graphs().compile(nn.GRU(4, 6))
    packed = pack(torch.randn(5, 3, 4), torch.tensor([5, 4, 2]))
    with pytest.raises(
        RuntimeError, match="batch_sizes: positive and never growing, the first not above the batch of hx"
    ):
        compiled(packed, torch.zeros(1, 2, 6))


@pytest.mark.parametrize("kernel", ["gru", "conv2d"])
def test_under_autocast(kernel):
    module, x = (nn.GRU(4, 6), torch.randn(5, 3, 4)) if kernel == "gru" else (nn.Conv2d(3, 5, 3), torch.randn(IMAGE))
    native = torch.nn.GRU(4, 6) if kernel == "gru" else torch.nn.Conv2d(3, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        check(module, x, kernels=[kernel])
        assert [t.dtype for t in tensors(module(x))] == [t.dtype for t in tensors(native(x))]
