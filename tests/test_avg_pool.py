"""Average pools as convolutions: torch's numbers, and torch's own pool wherever it is the better one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn as native

import torchsmith
from torchsmith import nn
from torchsmith.dispatch import explain

OURS = {
    "3x3": ((3, 1, 1), (3, 5, 12, 12)),
    "window and padding of two sizes": (((2, 5), 1, (1, 2)), (2, 3, 9, 11)),
    "no padding": ((3, 1), (2, 3, 9, 11)),
    "no padding, none counted": ((3, 1, 0, False, False), (2, 3, 9, 11)),
    "ceil mode": ((4, 1, 2, True), (2, 3, 9, 11)),
    "divisor": ((3, 1, 1, False, True, 4), (2, 3, 9, 11)),
    "sizes of one number": (((3,), (1,), (1,)), (2, 3, 9, 11)),
    "one image": ((3, 1, 1), (5, 9, 11)),
    "one channel": ((3, 1, 1), (2, 1, 9, 11)),
    "no images": ((3, 1, 1), (0, 3, 9, 11)),
    "window of one cell": ((1,), (2, 3, 9, 11)),
}


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(nn.AvgPool2d, "FROM", 0)


def error(found, exact):
    return (found.double() - exact).abs().max().item() if exact.numel() else 0.0


@pytest.mark.parametrize("last", [False, True], ids=["rows", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_values_and_gradients(name, dtype, last):
    arguments, shape = OURS[name]
    x = torch.randn(shape, dtype=dtype)
    if last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    found = []
    for module, of in ((nn.AvgPool2d, dtype), (native.AvgPool2d, dtype), (native.AvgPool2d, torch.float64)):
        input = x.detach().to(of).requires_grad_()
        y = module(*arguments)(input)
        if module is nn.AvgPool2d:
            decision = explain()
            assert (decision.op, decision.implementation) == ("conv2d", "cpp")
        g = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape).to(of)
        found.append((y.detach(), *torch.autograd.grad(y, input, g)))
    for ours, theirs, exact in zip(*found, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert error(ours, exact) <= 2 * error(theirs, exact) + 2 * torch.finfo(dtype).eps


def test_second_derivatives():
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nn.AvgPool2d(3, 1, 1), (x,)) and torch.autograd.gradgradcheck(
        nn.AvgPool2d(3, 1, 1), (x,)
    )


def database():
    invocations = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason="no OpInfo database")
    (info,) = (info for info in invocations.op_db if info.name == "nn.functional.avg_pool2d")
    return info


def test_samples_of_the_database():
    samples = list(database().sample_inputs("cpu", torch.float64))
    for sample in samples:
        expected = F.avg_pool2d(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(nn.AvgPool2d(*sample.args, **sample.kwargs)(sample.input), expected)
    assert len(samples) >= 7


def test_error_inputs_of_the_database():
    errors = list(database().error_inputs("cpu"))
    for error in errors:
        given = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            nn.AvgPool2d(*given.args, **given.kwargs)(given.input)
    assert len(errors) >= 5


def test_nan_and_inf_stay_in_their_windows():
    x = torch.ones(1, 2, 9, 9)
    x[0, 0, 4, 4], x[0, 1, 0, 0] = float("nan"), float("inf")
    torch.testing.assert_close(nn.AvgPool2d(3, 1, 1)(x), F.avg_pool2d(x, 3, 1, 1), equal_nan=True)


LEFT = {
    "stride": ((2,), {}, torch.float32, "stride 2"),
    "smaller windows": ((3, 1, 1), {"count_include_pad": False}, torch.float32, "smaller at the border"),
    "bfloat16": ((3, 1, 1), {}, torch.bfloat16, "bfloat16"),
}


def reason(pool, x):
    """What explain says of a pool that is left to torch."""
    (line,) = torchsmith.explain(pool, x)
    assert (line.op, line.implementation) == ("", "torch")
    return line.reason


@pytest.mark.parametrize("name", LEFT)
def test_left_to_torch(name):
    """Bit for bit, and explain says why."""
    arguments, keywords, dtype, why = LEFT[name]
    x = torch.randn(2, 3, 8, 8).to(dtype)
    ours = nn.AvgPool2d(*arguments, **keywords)
    assert torch.equal(ours(x), native.AvgPool2d(*arguments, **keywords)(x))
    assert why in reason(ours, x)


def test_small_autocast_compiled_and_set_elsewhere(monkeypatch):
    x, pool = torch.randn(2, 3, 8, 8), nn.AvgPool2d(3, 1, 1)
    expected = F.avg_pool2d(x, 3, 1, 1)
    with torchsmith.backend("torch"):
        assert torch.equal(pool(x), expected) and "backend" in reason(pool, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pool(x).dtype == torch.float32 and "autocast" in reason(pool, x)
    graph = torch.export.export(pool, (x,)).graph
    assert [str(n.target) for n in graph.nodes if n.op == "call_function"] == ["aten.avg_pool2d.default"]
    monkeypatch.setattr(nn.AvgPool2d, "FROM", x.numel() * 9 + 1)
    assert torch.equal(pool(x), expected) and "small" in reason(pool, x)


def test_explained_among_other_layers():
    """Each line is about its own layer, whatever the next one decides."""
    model = native.Sequential(nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2), nn.Conv2d(3, 2, 3))
    lines = torchsmith.explain(model, torch.randn(2, 3, 8, 8))
    assert [(line.op, line.implementation) for line in lines] == [("conv2d", "cpp"), ("", "torch"), ("conv2d", "cpp")]
    assert "stride" in lines[1].reason


def test_explained_with_its_input_given_by_name():
    lines = torchsmith.explain(nn.AvgPool2d(2), input=torch.randn(2, 3, 8, 8))
    assert [(line.kind, line.implementation) for line in lines] == [("AvgPool2d", "torch")]


def test_converted():
    model = native.Sequential(native.AvgPool2d(3, 1, 1), native.AvgPool2d(2))
    converted = torchsmith.convert(model)
    assert [type(m) for m in converted] == [nn.AvgPool2d, native.AvgPool2d]
    assert [line.reason for line in torchsmith.explain(converted) if line.verdict == "kept"] == [
        "average pool with stride 2"
    ]
    assert [type(m) for m in torchsmith.revert(converted)] == [native.AvgPool2d] * 2
