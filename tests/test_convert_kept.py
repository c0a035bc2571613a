"""torchsmith.convert and revert: what stays as it is, and what is left alone."""

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from convert_models import MODELS, Attributes, Functions, X, ops_of, results, run, sequential
from torch import nn
from torch.nn.utils import parametrize, weight_norm

from torchsmith import convert, revert
from torchsmith import nn as ours
from torchsmith.convert import TWINS, Layer, survey


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


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
