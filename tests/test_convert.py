"""torchsmith.convert and revert: what is swapped, fused or left alone, and that nothing else changes."""

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from compare import compare
from torch import nn
from torch.nn.utils import parametrize, weight_norm

import torchsmith
from torchsmith import chains, convert, explain, revert
from torchsmith import nn as ours
from torchsmith.convert import TWINS, Layer, survey

X = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(3))


def sequential():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(7, 3),
    )  # fmt: skip


class Attributes(nn.Module):
    """Layers in attributes; one ReLU, used twice."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fcs = nn.ModuleList([nn.Linear(6, 7), nn.Linear(7, 3)])

    def forward(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        x = self.relu(self.pool(self.conv2(x)))
        return self.fcs[1](self.relu(self.fcs[0](self.flat(x))))

    def flat(self, x):
        return torch.flatten(x, 1)


class Functions(nn.Module):
    """Parameters and sizes in attributes, everything else a call of a function."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.fc = nn.Linear(100, 7)
        self.register_buffer("weight", torch.randn(3, 7))
        self.size, self.p = 2, 0.5

    def forward(self, x, scale=2.0):
        x = F.max_pool2d(F.conv2d(x, self.kernel, padding=0).relu(), self.size)
        x = F.dropout(torch.relu(self.fc(x.view(x.size(0), -1))), self.p, self.training)
        return F.linear(x * scale, self.weight)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.twice = False

    def forward(self, x):
        x = F.relu(self.conv(x))
        return 2 * x if self.twice else x


MODELS = {"Sequential": sequential, "attributes": Attributes, "functions": Functions, "branches": Branches}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def verdicts(model):
    return {line.layer: line.verdict for line in survey(model)}


def run(model, x=X):
    torch.manual_seed(5)
    return model(x)


def results(model, x=X):
    """Output and gradients, with the same dropout in every arm."""
    output = run(model, x)
    output.square().sum().backward()
    found = [output.detach(), *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    return found


def ops_of(model, *inputs):
    return [line.op for line in explain(model, *inputs) if line.op]


# ------------------------------------------------------------------------------------------------ swapped and fused


@pytest.mark.parametrize("train", [True, False])
def test_same_numbers_and_names(model, train):
    model.train(train)
    converted = convert(model)
    assert list(converted.state_dict()) == list(model.state_dict()) and converted.training is train
    assert all(a is b for a, b in zip(converted.parameters(), model.parameters(), strict=True)), "shared, not copied"
    assert all(a is b for a, b in zip(converted.buffers(), model.buffers(), strict=True))
    found, native, exact = results(converted), results(model), results(copy.deepcopy(model).double(), X.double())
    for i, (a, b, c) in enumerate(zip(found, native, exact, strict=True)):
        compare(a, b, c, str(i))


def test_every_layer_has_its_twin():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3, stride=2, bias=False), "pool": nn.MaxPool2d(2, ceil_mode=True), "fc": nn.Linear(3, 4),
            "rnn_cell": nn.RNNCell(3, 4, nonlinearity="relu"), "gru_cell": nn.GRUCell(3, 4),
            "rnn": nn.RNN(3, 4, 2, bidirectional=True), "gru": nn.GRU(3, 4, 2, batch_first=True, dropout=0.1), "norm": nn.BatchNorm2d(4),
        }
    )  # fmt: skip
    shown = repr(model)
    converted = convert(model)
    assert {n: type(m) for n, m in converted.items()} == {n: TWINS.get(type(m), type(m)) for n, m in model.items()}
    assert repr(converted) == shown
    assert verdicts(converted) == {n: "kept" if n == "norm" else "swapped" for n in model}


def test_a_sequential_runs_rows_as_one():
    model = convert(sequential()).eval()
    assert ops_of(model, X) == [
        "conv2d_relu_maxpool2d",
        "conv2d_relu_maxpool2d",
        "conv2d_relu",
        "linear_relu",
        "linear",
    ]
    told = verdicts(model)
    assert [told[str(i)] for i in range(13)] == ["fused"] * 8 + ["kept"] + ["fused"] * 2 + ["kept", "swapped"]


def test_attributes_run_as_one():
    model = convert(Attributes())
    assert ops_of(model, X) == ["conv2d_relu_maxpool2d", "conv2d_relu_maxpool2d", "linear_relu", "linear"]
    assert isinstance(model, Attributes) and type(model).__name__ == "Attributes"
    (line,) = [line for line in survey(model) if line.layer == ""]
    assert line.verdict == "fused" and "conv2 + pool + relu" in line.reason and "fcs.0 + relu" in line.reason


def test_functions_run_as_one():
    model = convert(Functions())
    assert ops_of(model, X) == ["conv2d_relu_maxpool2d", "linear_relu", "linear"]
    assert not torch.equal(model.train()(X), model.eval()(X)), "training is read in every call"
    assert torch.equal(model(X, scale=4.0), 2 * model(X))
    model.size = 5
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(X)


def test_a_forward_with_branches_keeps_them():
    model = convert(Branches())
    assert type(model) is Branches and ops_of(model, X) == ["conv2d"]
    (line,) = [line for line in survey(model) if line.layer == ""]
    assert line.verdict == "kept" and "branches or loops" in line.reason
    before = model(X)
    model.twice = True
    assert torch.equal(model(X), 2 * before)


class Mixed(nn.Module):
    """A convolution whose output is used twice, and one with something done between."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.other = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        z = F.relu(y)
        return F.relu(self.other(z).neg()) + y


def test_what_is_used_elsewhere_is_not_fused():
    model = Mixed()
    converted = convert(model)
    assert ops_of(converted, X) == ["conv2d", "conv2d"] and type(converted) is Mixed
    torch.testing.assert_close(converted(X), model(X))


class InPlace(nn.Module):
    """Adds to its input, which the convolution's output is not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        x += 1
        return F.relu(y) + x


def test_changes_in_place_stay_in_place():
    model, inputs = InPlace(), (X.clone(), X.clone())
    converted = convert(model)
    assert ops_of(converted, X.clone()) == ["conv2d_relu"]
    torch.testing.assert_close(converted(inputs[0]), model(inputs[1]))
    assert torch.equal(inputs[0], X + 1) and torch.equal(inputs[1], X + 1)


@pytest.mark.parametrize("pool", [{"ceil_mode": True}, {"dilation": 2}, {"return_indices": True}])
def test_pools_that_the_op_does_not_have(pool):
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.MaxPool2d(2, **pool))
    converted = convert(model)
    assert ops_of(converted, X)[0] == "conv2d_relu"
    for a, b in zip(*(torch.utils._pytree.tree_leaves(m(X)) for m in (converted, model)), strict=True):
        torch.testing.assert_close(a, b)


def refusals():
    """Forwards of which a trace would hold less than they say, and a word of the reason."""

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.count = 0

    class Optional(Layers):
        def forward(self, x, mask=None):
            return F.relu(self.conv(x)) if mask is None else x

    class Counts(Layers):
        def forward(self, x):
            self.count = 1
            return F.relu(self.conv(x))

    class NoGrad(Layers):
        def forward(self, x):
            with torch.no_grad():
                return F.relu(self.conv(x))

    class Random(Layers):
        def forward(self, x):
            return F.relu(self.conv(x)) * torch.rand(1)

    class Super(Counts):
        def forward(self, x):
            return F.relu(super().forward(x))

    class Prints(Layers):
        def forward(self, x):
            print(x.shape)
            return F.relu(self.conv(x))

    class Keywords(Layers):
        def forward(self, x, **others):
            return F.relu(self.conv(x))

    class Helper(Layers):
        def forward(self, x):
            return self.help(self.conv(x))

        def help(self, x):
            return F.relu(x) if self.count else x

    words = ("branches", "sets an attribute", "torch.no_grad", "torch.rand", "super", "print", "takes", "branches")
    return zip((Optional, Counts, NoGrad, Random, Super, Prints, Keywords, Helper), words, strict=True)


@pytest.mark.parametrize("cls, word", [pytest.param(*r, id=r[0].__name__) for r in refusals()])
def test_forwards_that_a_trace_would_change_are_left(cls, word):
    model = cls()
    converted = convert(model)
    assert type(converted) is cls and type(converted.conv) is ours.Conv2d
    (line,) = [line for line in survey(converted) if line.layer == ""]
    assert "layers alone are swapped" in line.reason and word in line.reason
    state = torch.get_rng_state()
    survey(model)
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------------------------- what must stay as it is


def test_hooks_see_what_they_saw():
    model = sequential().eval()
    seen = {0: [], 1: []}
    for log, layers in enumerate((model, convert(model, inplace=False))):
        for i in (0, 4, 10):
            layers[i].register_forward_hook(lambda m, a, y, log=log: seen[log].append(y.clone()))
        layers(X)
    for a, b in zip(*seen.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_hooks_come_along_and_are_removed_as_ever():
    model, calls = sequential(), []
    handle = model[0].register_forward_hook(lambda *a: calls.append(1))
    converted = convert(model, inplace=True).eval()
    assert "hooks" in next(line.reason for line in survey(converted) if line.layer == "0")
    converted(X)
    assert calls == [1]
    handle.remove()
    assert ops_of(converted, X)[0] == "conv2d_relu_maxpool2d" and calls == [1]


def test_the_copy_shares_strangers_hooks():
    class Counter:
        def __init__(self):
            self.calls = 0

        def __call__(self, *args):
            self.calls += 1

    model, counter = sequential(), Counter()
    model[3].register_forward_hook(counter)
    convert(model)(X)
    assert counter.calls == 1


def test_layers_replaced_later_do_what_torch_s_would():
    native = Attributes()
    converted = convert(native)
    for model in (native, converted):
        torch.manual_seed(1)
        model.conv1 = nn.Conv2d(1, 4, 3)  # torch.nn's own
        model.relu = nn.Tanh()
    torch.testing.assert_close(converted(X), native(X))
    model = convert(sequential())
    cut = model[:1]
    torch.testing.assert_close(cut(X), F.conv2d(X, model[0].weight, model[0].bias))


def test_tied_layers_and_weights():
    layer = nn.Linear(12, 12)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(12, 12))
    model[3].weight = layer.weight
    model[3].bias.requires_grad_(False)
    converted = convert(model)
    assert converted[0] is converted[2] and converted[3].weight is converted[0].weight is layer.weight
    assert not converted[3].bias.requires_grad
    torch.testing.assert_close(converted(X), model(X))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_old():
    model = nn.Sequential(weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU())
    model(X).sum().backward()  # now the weight is a computed tensor, which deepcopy alone refuses
    converted = convert(model)
    assert type(converted[0]) is ours.Conv2d and list(converted.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        model[0].weight_g.mul_(2)
    torch.testing.assert_close(converted(X), model(X))


def test_an_optimizer_goes_on_with_the_model():
    model = sequential().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = model(X).detach()
    run(convert(model, inplace=True)).sum().backward()
    optimizer.step()
    assert not torch.equal(model(X), before)


def test_copies_and_pickles(model):
    converted = convert(model).eval()
    expected = run(converted)
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    for other in (
        copy.deepcopy(converted),
        pickle.loads(pickle.dumps(converted)),
        torch.load(file, weights_only=False),
    ):
        assert type(other) is type(converted) and torch.equal(run(other), expected)
        assert type(revert(other)) is type(model) and not [m for m in other.modules() if type(m) in TWINS.values()]


def test_revert_gives_back_the_numbers_bit_by_bit(model):
    kinds, before = [type(m) for m in model.modules()], results(model)
    contents = [set(vars(m)) for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    for changed in (convert(model), convert(model, inplace=True)):
        assert revert(changed) is changed
        assert [type(m) for m in changed.modules()] == kinds
        assert [set(vars(m)) for m in changed.modules()] == contents
        assert all(torch.equal(a, b) for a, b in zip(results(changed), before, strict=True))
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_revert_leaves_what_was_torchsmith_s():
    model = nn.Sequential(ours.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert survey(model)[2] == Layer("2", "Conv2d", "swapped", "torchsmith.nn.Conv2d")
    back = revert(convert(model))
    assert [type(m) for m in back] == [ours.Conv2d, nn.ReLU, nn.Conv2d] and type(back) is nn.Sequential


def test_convert_twice(model):
    once = convert(model, inplace=True)
    kinds = [type(m) for m in once.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice = convert(once, inplace=True)
    assert twice is once and [type(m) for m in twice.modules()] == kinds
    assert [type(m) for m in convert(once).modules()] == kinds


class MLP(nn.Sequential):
    """A Sequential by another name, as packages have them."""


def test_a_subclass_of_sequential():
    model = MLP(nn.Flatten(), nn.Linear(144, 5), nn.ReLU())
    converted = convert(model)
    assert ops_of(converted, X) == ["linear_relu"] and type(converted).__name__ == "MLP"
    assert [type(m) for m in convert(converted).modules()] == [type(m) for m in converted.modules()]
    assert torch.equal(copy.deepcopy(converted)(X), converted(X)) and type(revert(converted)) is MLP


@pytest.mark.parametrize("make", [sequential, Attributes, Functions])
def test_compiles_in_one_graph(make):
    converted = convert(make()).eval()
    torch.testing.assert_close(torch.compile(converted, fullgraph=True, backend="eager")(X), converted(X))


# -------------------------------------------------------------------------------------------------------- left alone


class Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


def parametrized():
    layer = nn.Linear(3, 4)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    return layer


def replaced():
    layer = nn.Linear(3, 4)
    layer.forward = lambda x: x
    return layer


LEFT = {
    "complex": (lambda: nn.Linear(3, 4, dtype=torch.complex64), "no kernel for torch.complex64"),
    "a subclass": (lambda: Own(1, 2, 3), "a subclass of Conv2d"),
    "parametrized": (parametrized, "parametrized"),
    "forward replaced": (replaced, "its forward was replaced"),
    "LSTM": (lambda: nn.LSTM(3, 4), "nothing of torchsmith computes it"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "lazily initialised"),
    "scripted": (lambda: torch.jit.script(nn.Linear(3, 4)), "scripted"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", LEFT)
def test_layers_that_are_left_alone(name):
    make, why = LEFT[name]
    layer = make()
    with pytest.warns(UserWarning, match=f"convert: nothing was converted .*{why}"):
        alone = convert(layer)
    assert type(alone) is type(layer)
    model = convert(nn.ModuleList([layer, nn.Linear(3, 3)]))
    assert type(model[0]) is type(layer) and type(model[1]) is ours.Linear
    line = survey(model)[0]
    assert (line.layer, line.verdict) == ("0", "kept") and why in line.reason
    assert all(a is b for a, b in zip(model[0].parameters(), layer.parameters(), strict=True))


def test_lazy_layers_convert_once_they_know_their_sizes():
    model = convert(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    model(X)
    assert type(model[0]) is nn.Conv2d
    assert type(convert(model, inplace=True)[0]) is ours.Conv2d


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*quantized.*:UserWarning")
def test_quantized_layers():
    ao = pytest.importorskip("torch.ao.quantization", reason="this torch has no torch.ao.quantization")
    if torch.backends.quantized.engine == "none":
        pytest.skip("this torch has no engine for quantized layers")
    model = ao.quantize_dynamic(nn.Sequential(nn.Linear(12, 6), nn.ReLU()), {nn.Linear}, torch.qint8)
    model.append(nn.Linear(6, 3))
    converted = convert(model)
    told = {line.layer: line for line in survey(converted)}
    assert told["0"].verdict == "kept" and "quantized" in told["0"].reason and told["2"].verdict == "swapped"
    torch.testing.assert_close(converted(X), model(X))


def test_scripted_models_as_a_whole():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(sequential())
    with pytest.warns(UserWarning, match="scripted"):
        assert convert(scripted) is scripted
    assert {line.reason for line in survey(scripted)} == {"scripted"}


@pytest.mark.parametrize("call", [convert, revert])
def test_what_is_no_module(call):
    with pytest.raises(TypeError, match=f"{call.__name__}: model: expected a torch.nn.Module, got function"):
        call(lambda x: x)


def test_what_cannot_be_copied():
    model = sequential()
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match="cannot be copied.*inplace=True"):
        convert(model)
    assert type(convert(model, inplace=True)) is ours.Sequential


@pytest.mark.parametrize("after", range(8))
def test_an_error_leaves_the_model_as_it_was(monkeypatch, after):
    from torchsmith.convert import __dict__ as inside

    model = nn.ModuleList([sequential(), Attributes()])
    kinds, contents = ([type(m) for m in model.modules()], [dict(vars(m)) for m in model.modules()])
    become, calls = inside["_become"], []

    def failing(*args):
        calls.append(args)
        become(*args)
        if len(calls) == after + 1:
            raise MemoryError("planted")

    monkeypatch.setitem(inside, "_become", failing)
    with pytest.raises(MemoryError, match="planted"):
        convert(model, inplace=True)
    assert [type(m) for m in model.modules()] == kinds
    assert [dict(vars(m)) for m in model.modules()] == contents
    monkeypatch.undo()
    assert type(convert(model, inplace=True)[0]) is ours.Sequential


# ------------------------------------------------------------------------------------------------------------ explain


def test_explain_lists_layers_without_calling_the_model(capsys):
    model = Attributes()
    planned = explain(model)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("verdict", "conv1 (Conv2d)", "fused", "in one pass"))
    assert planned == explain(convert(model))
    assert [(line.layer, line.verdict) for line in planned] == [
        ("", "fused"), ("conv1", "fused"), ("conv2", "fused"), ("relu", "fused"), ("pool", "fused"), ("fcs.0", "fused"),
        ("fcs.1", "swapped"),
    ]  # fmt: skip


def test_explain_with_inputs_names_the_layers_of_a_row():
    lines = explain(convert(sequential()), X)
    told = [(line.layer, line.op, line.reason) for line in lines[:3]]
    assert told[0][:2] == ("0", "conv2d_relu_maxpool2d")
    assert told[1:] == [("1", "", "in one pass with 0"), ("2", "", "in one pass with 0")]
    assert not chains.onlookers and chains.told is None
    assert torchsmith.explain().op == "linear"
