"""Models taken elsewhere: torch.export's programs saved and loaded, AOTInductor packages, ATen's ops alone, ONNX."""

import copy
import zipfile

import processes
import pytest
import torch
from compare import compare
from contract import Call, samples_of
from torch.export import Dim

import torchsmith
from torchsmith import models, nn
from torchsmith.spec import all_specs


class Reader(torch.nn.Module):
    """A picture's columns read as a sequence: convolution, pool, cells, sequences and linear in one model."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2dReLUMaxPool2d(1, 4, 3, padding=1)
        self.pool = nn.MaxPool2d((3, 1), padding=(1, 0), return_indices=True)
        self.rnn = nn.RNN(8, 6, 2, nonlinearity="relu", bias=False)
        self.gru = nn.GRU(6, 5, 2, bidirectional=True, batch_first=True, dropout=0.5)
        self.cells = torch.nn.ModuleList((nn.GRUCell(10, 7), nn.RNNCell(10, 7)))
        self.fc = nn.LinearReLU(7, 3)

    def forward(self, x):
        """[N, 1, 12, W] to [N, 3], states [4, N, 5], and indices of maxima."""
        columns, indices = self.pool(self.conv(x))
        steps = self.rnn(columns.flatten(1, 2).permute(2, 0, 1))[0]
        states, last = self.gru(steps.transpose(0, 1))
        return self.fc(self.cells[1](states[:, 0], self.cells[0](states[:, -1]))), last, indices


OPS = ["conv2d", "gru_cell", "gru", "linear", "maxpool2d", "rnn_cell", "rnn"]
BATCH, TIME = Dim("batch", min=2, max=4000), Dim("time", min=2, max=500)


def names(n, t):
    return torch.randint(128, (n, t)), torch.linspace(t, 1, n).long()


#: model -> what makes it, inputs of a batch and a length, sizes left open, the rows in its program
MODELS = {
    "Reader": (Reader, lambda n, t: (torch.randn(n, 1, 12, 2 * t),), ({0: BATCH, 3: 2 * TIME},), OPS),
    "MnistResNet": (models.MnistResNet, lambda n, t: (torch.randn(n, 1, 28, 28),), ({0: BATCH},), ["conv2d", "linear"]),
    "NameGRU": (
        lambda: models.NameGRU(hidden_size=20),
        names,
        ({0: BATCH, 1: TIME}, {0: BATCH}),
        ["gru", "linear"],
    ),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, inputs, dynamic, rows = MODELS[request.param]
    return make().eval(), inputs, dynamic, rows


def ours_in(program):
    return {str(n.target).split(".")[1] for n in program.graph.nodes if str(n.target).startswith("torchsmith.")}


def leaves(value):
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def assert_same(ours, eager):
    ours, eager = leaves(ours), leaves(eager)
    assert len(ours) == len(eager) > 0
    for a, b in zip(ours, eager, strict=True):
        assert torch.equal(a, b)


def assert_right(ours, model, inputs):
    """By the contract's rule: beside native on the same weights, against float64."""
    doubled = [t.double() if t.is_floating_point() else t for t in inputs]
    with torch.no_grad(), torchsmith.backend("torch"):
        native, exact = leaves(model(*inputs)), leaves(copy.deepcopy(model).double()(*doubled))
    assert len(ours) == len(native)
    for i, (a, b, c) in enumerate(zip(ours, native, exact, strict=True)):
        compare(torch.as_tensor(a), b, c, f"output {i}")


def test_saved_and_loaded_program(case, tmp_path):
    model, inputs, dynamic, rows = case
    program = torch.export.export(model, inputs(3, 7), dynamic_shapes=dynamic)
    assert ours_in(program) == {f"{row}_forward" for row in rows}
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert ours_in(loaded) == ours_in(program)
    module = loaded.module()
    for sizes in ((3, 7), (5, 4)):
        given = inputs(*sizes)
        assert_same(module(*given), model(*given))


def test_a_packed_sequence_is_an_input_of_a_program():
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([5, 4, 2]))
    module = nn.GRU(4, 6).eval()
    for inputs in ((packed, torch.randn(1, 3, 6)), (packed,)):
        program = torch.export.export(module, inputs)
        assert ours_in(program) == {"gru_forward"}
        assert_same(program.module()(*inputs), module(*inputs))


AOT = """
import sys, torch
if sys.argv[2] == "with":
    import torchsmith
package = torch._inductor.aoti_load_package(sys.argv[1] + "/model.pt2")
for inputs, expected in torch.load(sys.argv[1] + "/values.pt", weights_only=True):
    ours = package(*inputs)
    assert torch.equal(ours, expected), (ours - expected).abs().max()
print("equal")
"""


@pytest.mark.minutes(1)
def test_aot_inductor_package_in_another_process(tmp_path):
    class Small(torch.nn.Module):  # what inductor writes itself is compiled for seconds
        def __init__(self):
            super().__init__()
            self.conv, self.gru, self.fc = (
                nn.Conv2dReLUMaxPool2d(1, 1, 3, padding=1),
                nn.GRU(6, 5, 2),
                nn.LinearReLU(5, 3),
            )

        def forward(self, x):
            return self.fc(self.gru(self.conv(x).squeeze(1))[0])

    def inputs(n, t):
        return (torch.randn(n, 1, 2 * t, 12),)

    model, rows = Small().eval(), ("conv2d", "gru", "linear")
    with torch.no_grad():
        program = torch.export.export(model, inputs(3, 7), dynamic_shapes=({0: BATCH, 2: 2 * TIME},))
        values = [(given, model(*given)) for given in (inputs(3, 7), inputs(5, 4))]
    # One wrapper and one kernel are compiled: precompiled headers cost more than they save (44 s where this takes 31).
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"), inductor_configs=quick)
    with zipfile.ZipFile(tmp_path / "model.pt2") as package:
        called = b"".join(package.read(n) for n in package.namelist() if n.endswith((".json", ".cpp"))).decode()
    assert all(f"torchsmith::{row}_forward" in called for row in rows)
    torch.save(values, tmp_path / "values.pt")

    def run(library):
        return processes.run("-c", AOT, tmp_path, library)

    done = run("with")
    assert done.returncode == 0 and done.stdout == "equal\n", done.stderr[-3000:]
    done = run("without")  # so it was our library that computed
    assert done.returncode != 0 and "torchsmith" in done.stderr


# ------------------------------------------------------------------------------------------------ ATen's ops alone


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_decompositions_compute_the_op(spec):
    """Of the samples that no dropout and no packing hinder; a few of each op are enough to tell every argument apart."""
    table = {str(op): function for op, function in torchsmith.export.decompositions().items()}
    forward = spec.kernels[0]
    tried = 0
    for sample in samples_of(spec, torch.float32):
        if sample.kwargs.get("training") or "packed" in sample.name or sample.name == "no channels":
            continue
        call, seen = Call(sample), []

        class Replace(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None, seen=seen):
                if str(func) != f"torchsmith.{forward}.default":
                    return func(*args, **(kwargs or {}))
                seen.append(func)
                made = table[str(func)](*args, **(kwargs or {}))
                if forward == "maxpool2d_forward":  # the positions too, which an op's results seldom tell
                    assert torch.equal(made[1], func(*args)[1])
                return made

        with torch.no_grad(), torchsmith.backend("cpp"), Replace():
            ours = call.run(spec.function)
        exact, native = Call(sample, torch.float64).run(spec.reference), call.run(spec.reference)
        for i, values in enumerate(zip(ours, native, exact, strict=True)):
            compare(*values, f"{sample.name}, output {i}")
        assert seen
        tried += 1
    assert tried >= 8


def test_program_without_our_ops():
    model, x = Reader().eval(), torch.randn(3, 1, 12, 14)
    program = torch.export.export(model, (x,)).run_decompositions(torchsmith.export.decompositions())
    assert ours_in(program) == set()
    assert_right(leaves(program.module()(x)), model, (x,))


def test_what_has_no_decomposition_is_refused():
    with pytest.raises(Exception, match="packed sequence has no decomposition"):
        program = torch.export.export(models.NameGRU().eval(), names(3, 7))
        program.run_decompositions(torchsmith.export.decompositions())


# ------------------------------------------------------------------------------------------------ ONNX


def test_onnx_runs_in_onnxruntime(case, tmp_path):
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, inputs, dynamic, rows = case
    program = torchsmith.export.onnx(model, inputs(3, 7), tmp_path / "model.onnx", dynamic_shapes=dynamic)
    assert not program.model.functions and {node.domain for node in program.model.graph} == {""}  # standard ops alone
    made = [node.op_type for node in program.model.graph]
    assert [made.count(row.upper()) for row in ("gru", "rnn")] == [2 * (row in rows) for row in ("gru", "rnn")]
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for sizes in ((3, 7), (5, 4)):
        given = inputs(*sizes)
        feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), given, strict=True)}
        assert_right(session.run(None, feed), model, given)


def test_onnx_refuses_dropout_that_is_on():
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
    with pytest.raises(ValueError, match=r"gru: dropout is on: .*model.eval\(\)"):
        torchsmith.export.onnx(nn.GRU(3, 4, 2, dropout=0.5), (torch.randn(5, 2, 3),))


def test_a_converted_model_goes_to_onnx_and_through_torch_export(tmp_path):
    """A model of torch.nn alone, converted: standard ONNX ops with native's outputs, and our ops in torch.export's program."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    native = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(2), torch.nn.GRU(16, 7)
    ).eval()  # fmt: skip
    x = torch.randn(3, 1, 12, 12)
    expected = native(x)
    exact = copy.deepcopy(native).double()(x.double())
    converted = torchsmith.convert(native)
    program = torch.export.export(converted, (x,))
    assert {str(n.target).split(".")[1] for n in program.graph.nodes if "torchsmith" in str(n.target)} == {
        "conv2d_forward", "gru_forward",
    }  # fmt: skip
    path = tmp_path / "model.onnx"
    torchsmith.export.onnx(converted, (x,), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    leaves = [expected[0], expected[1]]
    for found, moved, b, c in zip(
        outputs, torch.utils._pytree.tree_leaves(program.module()(x)), leaves, exact, strict=True
    ):
        compare(torch.from_numpy(found), b, c, "onnx")
        compare(moved, b, c, "program")
