"""torchsmith.explain(model, *inputs): a line a layer, true to what computed it."""

import pytest
import torch

import torchsmith
from torchsmith import nn as ours
from torchsmith import tuned, tuning


@pytest.fixture
def model():
    head = torch.nn.Sequential(torch.nn.Flatten(), ours.LinearReLU(32, 6), torch.nn.Linear(6, 4))
    return torch.nn.Sequential(ours.Conv2d(1, 2, 3), ours.MaxPool2d(1), head)


X = torch.randn(2, 1, 6, 6)


def told(lines):
    return [(line.layer, line.op, line.implementation) for line in lines]


def test_every_layer_has_a_line(model, capsys):
    lines = torchsmith.explain(model, X)
    assert told(lines) == [
        ("0", "conv2d", "cpp"),
        ("1", "max_pool2d", "cpp"),
        ("2.0", "", "torch"),
        ("2.1", "linear_relu", "cpp"),
        ("2.2", "", "torch"),
    ]
    assert lines[0].shapes == "2x1x6x6, 2x1x3x3, 2" and lines[0].kind == "Conv2d"
    assert lines[2].reason == "a layer of torch.nn"
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("layer", "2.1 (LinearReLU)", "linear_relu", "2x32, 6x32, 6", "measured us"))


def test_the_reasons_are_the_ops_own(model):
    with torchsmith.backend("torch", ["conv2d"]):
        lines = torchsmith.explain(model.double(), X.double())
    assert (lines[0].implementation, lines[0].reason) == ("torch", 'backend("torch") is set')
    assert (lines[1].implementation, lines[1].reason) == ("cpp", "cpu kernel")


def test_what_was_measured_stands_beside_and_is_obeyed(model):
    with tuning.record() as calls:
        model(X)
    slow, fast = (
        tuned.Entry(*call.key, {"ours": 7.0, "torch": t}) for call, t in zip(calls[:2], (5.0, 9.0), strict=True)
    )
    tuned.Table({e.key: e for e in (slow, fast)}).activate()
    try:
        lines = torchsmith.explain(model, X)
        assert told(lines)[:2] == [("0", "conv2d", "torch"), ("1", "max_pool2d", "cpp")]
        assert lines[0].us == {"ours": 7.0, "torch": 5.0} and "native is faster" in lines[0].reason
        assert lines[1].us == {"ours": 7.0, "torch": 9.0} and lines[3].us == {}
        with torch.no_grad():  # another call than the one measured
            assert torchsmith.explain(model, X)[0].us == {}
    finally:
        tuned.Table().activate()


def test_it_leaves_nothing_behind(model):
    before = dict(torchsmith.dispatch.KNOWN)
    with pytest.raises(RuntimeError):
        torchsmith.explain(model, torch.randn(2, 3, 6, 6))
    assert before == torchsmith.dispatch.KNOWN
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model(X)


def test_functions_and_calls_outside_layers():
    lines = torchsmith.explain(lambda x: torchsmith.linear(x, torch.ones(3, 5)), torch.ones(2, 5))
    assert told(lines) == [("", "linear", "cpp")]
    with pytest.raises(TypeError, match="explain: model: expected a module or a function, got int"):
        torchsmith.explain(3)


def test_recurrent_models():
    model = torchsmith.models.NameGRU()
    lines = torchsmith.explain(model, torch.randint(0, 128, (3, 5)), torch.tensor([5, 4, 2]))
    assert [line.op for line in lines if line.op] == ["gru", "linear"]
    assert lines[0].shapes.startswith("11, 4x3x100")  # the packed characters; the layer looks the embedding up itself
