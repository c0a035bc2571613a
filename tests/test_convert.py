"""torchsmith.convert: what is swapped and fused, and what explain says of it."""

import copy
import unittest.mock

import pytest
import torch
import torch.nn.functional as F
from compare import compare
from convert_models import MODELS, Attributes, Branches, Functions, X, ops_of, results, sequential, verdicts
from torch import nn

import torchsmith
from torchsmith import chains, convert, explain
from torchsmith import nn as ours
from torchsmith.convert import TWINS, survey


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


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


# ------------------------------------------------------------------------------------- an embedding and who reads it


class Words(nn.Module):
    def __init__(self, cell="GRU", **keywords):
        super().__init__()
        self.embedding = nn.Embedding(5, 4, **keywords)
        self.recurrent = getattr(nn, cell)(4, 6, 2, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, words, state=None):
        states, last = self.recurrent(self.embedding(words), state)
        return self.fc(states) + last[-1].sum()


WORDS = torch.arange(12).view(3, 4) * 3 % 5


@pytest.mark.parametrize("cell", ["RNN", "GRU"])
@pytest.mark.parametrize("state", [None, torch.ones(2, 3, 6)])
def test_a_recurrent_layer_reads_an_embedding_by_its_rows(cell, state):
    model = Words(cell)
    converted = convert(model)
    told = verdicts(converted)
    assert [told[name] for name in ("", "embedding", "recurrent", "fc")] == ["fused", "fused", "fused", "swapped"]
    arms, double = [], None if state is None else state.double()
    with unittest.mock.patch.object(torch.nn.functional, "embedding", wraps=F.embedding) as looked_up:
        converted(WORDS, state)
    assert not looked_up.called
    for m, given in ((converted, state), (model, state), (copy.deepcopy(model).double(), double)):
        m.zero_grad()
        output = m(WORDS, given)
        output.square().sum().backward()
        arms.append([output.detach(), *(p.grad.clone() for p in m.parameters())])
    for i, values in enumerate(zip(*arms, strict=True)):
        compare(*values, str(i))


def test_an_embedding_that_does_more_is_called():
    for keywords in ({"padding_idx": 1}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}):
        assert verdicts(convert(Words(**keywords)))["embedding"] == "kept", keywords
    hooked = Words()
    converted, calls = convert(hooked), []
    expected = converted(WORDS)
    converted.embedding.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    torch.testing.assert_close(converted(WORDS), expected)
    assert calls == [(3, 4, 4)]
