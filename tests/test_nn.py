"""Modules: the constructors, attributes, initialisation, state_dict and results of torch.nn's, one for one."""

import copy
import io

import pytest
import torch
from torch import nn as native
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from torchsmith import native_nn, nn
from torchsmith.dispatch import explain

PLAIN = [
    ("Conv2d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2, "bias": False}, (2, 4, 9, 8)),
    ("Conv2d", (3, 5, 3), {"padding": "same", "dilation": 2}, (2, 3, 9, 8)),
    ("Conv2d", (3, 5, 3), {"padding": 1, "padding_mode": "circular"}, (2, 3, 9, 8)),
    ("Conv2d", (3, 5, 3), {"padding": (1, 2), "padding_mode": "reflect"}, (3, 9, 8)),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}, (2, 3, 9, 8)),
    ("MaxPool2d", (2,), {"return_indices": True}, (3, 9, 8)),
    ("AvgPool2d", (3,), {"stride": 1, "padding": 1}, (4, 40, 9, 8)),
    ("AvgPool2d", ((2, 5),), {"stride": (1, 1), "padding": (0, 2), "divisor_override": 7}, (50, 25, 9)),
    ("Linear", (5, 7), {}, (2, 3, 5)),
    ("Linear", (5, 7), {"bias": False}, (5,)),
    ("RNNCell", (4, 6), {"nonlinearity": "relu"}, (3, 4)),
    ("RNNCell", (4, 6), {"bias": False}, (4,)),
    ("GRUCell", (4, 6), {}, (3, 4)),
    ("RNN", (4, 6), {"num_layers": 2, "nonlinearity": "relu", "bidirectional": True}, (5, 3, 4)),
    ("RNN", (4, 6), {"batch_first": True, "bias": False}, (3, 5, 4)),
    ("GRU", (4, 6), {"num_layers": 2, "bidirectional": True, "dropout": 0.5}, (5, 3, 4)),
    ("GRU", (4, 6), {"batch_first": True}, (5, 4)),
]
FUSED = [
    ("Conv2dReLU", (3, 5, 3), {"padding": 1}, (2, 3, 9, 8)),
    (
        "Conv2dReLUMaxPool2d",
        (3, 5, 3),
        {"padding": 1, "pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
        (2, 3, 9, 8),
    ),
    ("LinearReLU", (5, 7), {}, (2, 3, 5)),
]


def twins(name, args, kwargs, other):
    made = []
    for module in (nn, other):
        torch.manual_seed(3)
        made.append(getattr(module, name)(*args, **kwargs))
    return made


def leaves(value):
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def both(ours, theirs, *inputs):
    results = []
    for module in (ours, theirs):
        torch.manual_seed(5)  # dropout
        results.append(leaves(module(*inputs)))
    return results


@pytest.mark.parametrize("name, args, kwargs, shape", PLAIN + FUSED)
def test_twins(name, args, kwargs, shape):
    ours, theirs = twins(name, args, kwargs, native_nn)
    base = getattr(native, name, native.Conv2d if name.startswith("Conv") else native.Linear)
    # Of RNN and GRU only the base: torch.compile refuses instances of torch.nn's own.
    assert isinstance(ours, native.RNNBase if name in ("RNN", "GRU") else base)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), "the same seed gives the same initialisation"
    x = torch.randn(shape)
    for a, b in zip(*both(ours, theirs, x), strict=True):
        torch.testing.assert_close(a, b)
    assert explain().implementation == "cpp"
    if not list(ours.parameters()):
        return
    for module in (ours, theirs):
        torch.manual_seed(5)
        sum(t.sum() for t in leaves(module(x))).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, args, kwargs, shape", PLAIN + FUSED)
def test_copies_and_saved_states(name, args, kwargs, shape):
    ours, theirs = twins(name, args, kwargs, native_nn)
    assert repr(copy.deepcopy(ours)) == repr(ours)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("cell", ["RNN", "GRU"])
def test_packed(cell):
    ours, theirs = twins(cell, (4, 6), {"num_layers": 2, "bidirectional": True}, native)
    packed = pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([2, 5, 3]), enforce_sorted=False)
    hx = torch.randn(4, 3, 6)
    (y, h), (expected_y, expected_h) = ours(packed, hx), theirs(packed, hx)
    assert isinstance(y, PackedSequence)
    torch.testing.assert_close(y.data, expected_y.data)
    torch.testing.assert_close(h, expected_h)
    for a, b in zip(y[1:], expected_y[1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "name, args, inputs",
    [
        ("RNNCell", (3, 5), (torch.zeros(2, 2, 3),)),
        ("GRUCell", (3, 5), (torch.zeros(2, 3), torch.zeros(2, 4))),
        ("GRU", (3, 5), (torch.zeros(3),)),
        ("GRU", (3, 5), (torch.zeros(4, 2, 3).double(),)),
        ("RNN", (3, 5), (torch.zeros(4, 2, 3), torch.zeros(1, 5))),
        ("Linear", (3, 5), (torch.zeros(2, 4),)),
        ("Conv2d", (3, 5, 3), (torch.zeros(2, 4, 8, 8),)),
        ("MaxPool2d", (3,), (torch.zeros(2, 4, 1, 1),)),
        ("AvgPool2d", (3, 1), (torch.zeros(90, 90, 2, 2),)),
        ("AvgPool2d", (3, 1, 2), (torch.zeros(90, 90, 4, 4),)),
        ("AvgPool2d", (3, 1), (torch.zeros(200, 200),)),
    ],
)
def test_errors_are_of_torch_types(name, args, inputs):
    ours, theirs = twins(name, args, {}, native)
    with pytest.raises(Exception) as expected:
        theirs(*inputs)
    with pytest.raises(type(expected.value)):
        ours(*inputs)
