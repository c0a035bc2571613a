"""Shapes at which the CPU kernels take other ways than on the samples of their specs, against the float64 reference."""

import pytest
import torch
from test_contract import ISAS, check_against_reference, check_threads, isa  # noqa: F401 (a fixture)

import torchsmith
from torchsmith import explain
from torchsmith.contract import Call
from torchsmith.ops._recurrent_samples import weights_for
from torchsmith.spec import Sample, all_specs

SPECS = {spec.name: spec for spec in all_specs()}
POOL = {"pool_kernel_size": 2}


def conv(x, w, **keywords):
    def make(dtype):
        return Sample(
            "", (torch.randn(x, dtype=dtype), torch.randn(w, dtype=dtype), torch.randn(w[0], dtype=dtype)), keywords
        )

    return make


def linear(rows, features, outputs):
    def make(dtype):
        return Sample(
            "", tuple(torch.randn(s, dtype=dtype) for s in ((rows, features), (outputs, features), (outputs,)))
        )

    return make


# 99 channels and more are 8 panels of every instruction set: their kernels copy the cells that the panels share.
CONVOLUTIONS = {
    "lines, weights in place, several blocks": conv((1, 101, 7, 9), (103, 101, 3, 3), padding=1),
    "lines, weights packed": conv((2, 9, 15, 13), (101, 9, 3, 3), padding=1),
    "lines of the gradient": conv((2, 101, 15, 13), (9, 101, 3, 3), padding=1),
    "lines, even window": conv((2, 10, 9, 8), (100, 10, 4, 2), padding="same"),
    "lines, dilation": conv((1, 101, 9, 8), (99, 101, 3, 3), padding=2, dilation=2),
    "lines, one column": conv((2, 10, 21, 1), (101, 10, 3, 3), padding=1),
    "lines, window beyond the image": conv((1, 10, 3, 3), (101, 10, 5, 5), padding=2),
    "expanded": conv((2, 101, 12, 10), (100, 101, 2, 3)),
    "expanded, more taps than lines have": conv((1, 3, 10, 10), (101, 3, 9, 9), padding=4),
    "stride": conv((2, 101, 9, 8), (101, 101, 3, 3), stride=2, padding=1),
    "stride, 1x1": conv((2, 101, 9, 8), (101, 101, 1, 1), stride=2),
    "groups": conv((2, 202, 6, 5), (202, 101, 3, 3), groups=2, padding=1),
    "1x1": conv((2, 101, 7, 7), (102, 101, 1, 1)),
    "1x1, several groups of panels": conv((1, 300, 23, 24), (256, 300, 1, 1)),
    "weight gradient, chunks of an image": conv((2, 6, 30, 27), (21, 6, 3, 3)),
    "weight gradient, images in a chunk": conv((19, 8, 5, 5), (16, 8, 3, 3), padding=1),
    "weight gradient, channels over a vector": conv((3, 6, 9, 9), (17, 6, 3, 3), groups=1),
    "weight gradient, pairs of cells": conv((19, 7, 6, 6), (16, 7, 3, 3)),
    "weight gradient, pairs, lanes without a channel": conv((3, 6, 6, 7), (13, 6, 3, 3), padding=1),
    "weight gradient, pairs, chunks made even": conv((2, 6, 37, 24), (24, 6, 3, 3)),
    "weight gradient, pairs behind a whole panel": conv((3, 7, 6, 6), (52, 7, 3, 3)),
    "weight gradient, several groups in a share": conv((35, 3, 34, 34), (4, 3, 3, 3)),
    "1x1, the data gradient as a linear layer's": conv((3, 70, 5, 6), (75, 70, 1, 1)),
    "1x1, the same in two groups of images": conv((1030, 65, 1, 1), (66, 65, 1, 1)),
    "bands of rows, the last with fewer": conv((1, 12, 71, 63), (5, 12, 3, 3)),
    "bands of both gradients": conv((2, 10, 64, 70), (6, 10, 5, 5), padding=2),
    "bands, stride and dilation": conv((1, 9, 131, 127), (6, 9, 3, 3), stride=2, padding=1, dilation=2),
    "bands, groups": conv((1, 16, 64, 65), (20, 8, 3, 3), groups=2, padding=1),
    "bands, cells copied": conv((1, 14, 50, 50), (101, 14, 3, 3)),
    "bands, channels in blocks": conv((1, 300, 24, 40), (6, 300, 3, 3)),
    "bands, pairs of cells": conv((1, 16, 66, 64), (16, 16, 3, 3), padding=1),
}
# Pooled gradients, by the cells that have one.
POOLED = {
    "channels in blocks": conv((3, 18, 9, 10), (101, 18, 5, 5)),
    "several groups of images in a share": conv((9, 17, 24, 23), (7, 17, 3, 3), padding=1),
    "window rows in parts": conv((9, 17, 12, 11), (6, 17, 7, 7), padding=2),
    "taps one by one": conv((3, 18, 14, 15), (6, 18, 3, 2), padding=1, dilation=2),
    "stride": conv((3, 17, 17, 18), (6, 17, 5, 3), stride=2, padding=1),
    "few in a row": conv((7, 17, 9, 4), (2, 17, 3, 3)),
}
# What a matrix unit has a way of its own for: tiles of 16 rows, columns and lanes, two by two, in bfloat16.
TILES = {
    "conv2d": {
        "three tiles of channels, the last with fewer": conv((3, 10, 8, 9), (35, 10, 3, 3), padding=1),
        "three channels of a wide window": conv((2, 3, 14, 14), (17, 3, 7, 7), stride=2, padding=3),
        "lines in blocks": conv((3, 33, 6, 6), (33, 33, 1, 3)),
        "lines that no tile divides": conv((2, 34, 6, 6), (20, 34, 1, 1)),
        "cells that no tile divides": conv((2, 6, 25, 25), (9, 6, 3, 3)),
        "groups": conv((3, 12, 7, 8), (42, 4, 3, 3), groups=3, padding=1),
        "stride and dilation": conv((2, 5, 13, 11), (18, 5, 3, 2), stride=(2, 3), padding=2, dilation=2),
        "odd images": conv((5, 7, 8, 8), (10, 7, 5, 5)),
        "bands of rows": conv((1, 24, 71, 63), (40, 24, 3, 3), padding=1),
    },
    "linear": {
        "five rows": linear(5, 70, 33),
        "in place, and a rest": linear(77, 64, 50),
        "three tiles": linear(33, 95, 47),
        "two blocks": linear(40, 2100, 37),
        "wide": linear(34, 32, 530),
        "both ways": linear(500, 66, 40),
    },
}
LINEARS = {
    "six rows of x": linear(6, 1100, 9),
    "seven rows of x": linear(7, 70, 10),
    "nine rows of x": linear(9, 150, 33),
    "eight rows of x, columns for two threads": linear(8, 200, 501),
    "few columns of both gradients": linear(9, 70, 10),
    "ten rows of x in halves of five": linear(10, 300, 37),
    "twelve rows of x in halves, columns for two threads": linear(12, 260, 501),
    "seventeen rows of x in halves that share one": linear(17, 256, 19),
    "six rows of x, with AVX2 in halves": linear(6, 270, 21),
    "rows in several shares, of two threads too": linear(500, 33, 65),
    "rows in one share, two blocks": linear(130, 300, 66),
    "panels of W in groups, two blocks": linear(20, 301, 300),
}


def batch_first(op, features, hidden, layers, directions):
    """The gradient at the output lies as the input's will, and is copied to where that goes: more than a direct call copies."""

    def make(dtype):
        def new(*shape):
            return torch.randn(shape, dtype=dtype)

        weights = weights_for(new, {"rnn": 1, "gru": 3}[op], features, hidden, layers, directions)
        keywords = {"batch_first": True, "bidirectional": directions == 2}
        return Sample("", (new(40, 18, features), new(layers * directions, 40, hidden), weights), keywords)

    return make


def cell(gates, rows, features, hidden):
    def make(dtype):
        def new(*shape):
            return torch.randn(shape, dtype=dtype)

        return Sample("", (new(rows, features), new(rows, hidden), *weights_for(new, gates, features, hidden)))

    return make


def embedding(gates, steps, batch, table, hidden):
    def make(dtype):
        def new(*shape):
            return torch.randn(shape, dtype=dtype)

        keywords = {"embedding": new(table, 5), "bidirectional": True}
        weights = weights_for(new, gates, 5, hidden, 1, 2)
        return Sample("", (torch.randint(table, (steps, batch)), new(2, batch, hidden), weights), keywords)

    return make


RECURRENT = {
    "rnn_cell, seven rows": ("rnn_cell", cell(1, 7, 130, 140)),
    "gru_cell, four rows for two threads": ("gru_cell", cell(3, 4, 260, 250)),
    "gru_cell, eight rows of few columns": ("gru_cell", cell(3, 8, 40, 50)),
    "rnn, sums of an embedding by two threads": ("rnn", embedding(1, 40, 64, 9, 210)),
    "gru, sums of an embedding by two threads": ("gru", embedding(3, 40, 64, 70, 70)),
}
SEQUENCES = {
    f"{op}-L{layers}-D{directions}": (op, batch_first(op, 6, 6 // directions, layers, directions))
    for op in ("rnn", "gru")
    for layers in (1, 2)
    for directions in (1, 2)
}
WAYS = [pytest.param("conv2d", make, id=f"conv2d-{name}") for name, make in CONVOLUTIONS.items()]
WAYS += [pytest.param("linear", make, id=f"linear-{name}") for name, make in LINEARS.items()]
WAYS += [pytest.param(op, make, id=name) for name, (op, make) in (RECURRENT | SEQUENCES).items()]


# In pairs (bfloat16) a product's panels are packed in a way of their own.
DTYPES = [torch.float32, torch.float64]
VALUES = [pytest.param(*way.values, dtype, id=f"{way.id}-{dtype}") for way in WAYS for dtype in DTYPES]
VALUES += [
    pytest.param(op, make, torch.bfloat16, id=f"{op}-{name}-torch.bfloat16")
    for op, ways in {**TILES, "linear": LINEARS | TILES["linear"], "gru": {"B7": embedding(3, 5, 7, 40, 36)}}.items()
    for name, make in ways.items()
]


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("op, make, dtype", VALUES)
def test_values_and_gradients(op, make, dtype, isa):  # noqa: F811
    torch.manual_seed(0)
    # A few sums of hundreds of steps, of which native's error may be 1e-6 or ten times that.
    check_against_reference(SPECS[op], make(dtype), runs=6 if SPECS[op].row in ("rnn", "gru") else None)


@pytest.mark.parametrize(
    "name",
    [
        "lines, weights in place, several blocks",
        "expanded",
        "weight gradient, chunks of an image",
        "bands of rows, the last with fewer",
        "bands, channels in blocks",
        "1x1, the data gradient as a linear layer's",
    ],
)
@pytest.mark.parametrize("op, keywords", [("conv2d_relu", {}), ("conv2d_relu_maxpool2d", POOL)])
def test_fused(op, keywords, name):
    torch.manual_seed(0)
    sample = CONVOLUTIONS[name](torch.float32)
    check_against_reference(SPECS[op], Sample("", sample.args, {**sample.kwargs, **keywords}))


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pooled(isa, name, dtype):  # noqa: F811
    torch.manual_seed(0)
    sample = POOLED[name](dtype)
    check_against_reference(SPECS["conv2d_relu_maxpool2d"], Sample("", sample.args, {**sample.kwargs, **POOL}))


@pytest.mark.parametrize("op, name", [(op, name) for op, ways in TILES.items() for name in ways])
def test_threads_do_not_change_a_bit_of_tiles(op, name):
    torch.manual_seed(0)
    check_threads(SPECS[op], Call(TILES[op][name](torch.bfloat16)))


def test_threads_share_few_rows_of_a_batch():
    """Seven rows are worth the tiles of a matrix unit, the four and three of two threads alone would not be."""
    torch.manual_seed(0)
    check_threads(SPECS["gru"], Call(embedding(3, 40, 7, 300, 260)(torch.bfloat16)))


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("size, window", [((3, 10, 6, 8), (20, 10, 3, 3)), ((2, 3, 10, 11), (5, 3, 4, 5))])
def test_nan_and_inf_reach_no_other_gradient(size, window, isa):  # noqa: F811
    """Tiles of the weight's gradient end with an image's cells: a zero times what lies beyond could be NaN."""
    torch.manual_seed(0)
    x, w = torch.randn(size, dtype=torch.bfloat16), torch.randn(window, dtype=torch.bfloat16).requires_grad_()
    x[0, 1, 0, 0], x[1, 0, -1, -1] = float("inf"), float("nan")  # met by one window cell each
    with torchsmith.backend("cpp"):
        (gradient,) = torch.autograd.grad(torchsmith.conv2d(x, w).float().sum(), w)
    expected = torch.zeros(window, dtype=torch.bool)
    expected[:, 1, 0, 0] = expected[:, 0, -1, -1] = True
    assert torch.equal(~gradient.isfinite(), expected)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("padding", [0, 1])
def test_nan_and_inf_stay_in_their_windows(padding, isa):  # noqa: F811
    """Copied cells leave out by masks what lies beside an image: there the neighbours' cells are, or nothing at all."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 9, 8)
    x[0, 0, 0, 0], x[0, 4, 8, 7], x[1, 2, 4, 0], x[1, 3, 5, 7] = float("nan"), float("inf"), -float("inf"), float("nan")
    check_against_reference(
        SPECS["conv2d"], Sample("", (x, torch.randn(101, 5, 3, 3)), {"padding": padding}, differentiable=False)
    )


@pytest.mark.parametrize("op, make", WAYS)
def test_threads_do_not_change_a_bit(op, make):
    torch.manual_seed(0)
    check_threads(SPECS[op], Call(make(torch.float32)))


def test_rows_masked_by_two_threads():
    """A ReLU's gradient is masked by several threads from 2 x 200,000 values on."""
    torch.manual_seed(0)
    call = Call(linear(6400, 3, 65)(torch.float32))
    check_threads(SPECS["linear_relu"], call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_positions_of_every_row_length(dtype, isa):  # noqa: F811
    """Positions are narrowed, and rows end, in pieces of 8, 4, 2 and 1; windows of 2x2, apart and overlapping."""
    torch.manual_seed(0)
    for columns in range(1, 20):
        x = torch.randn(2, 3, 6, 2 * columns + 1, dtype=dtype)
        for window in ((2, 2), ((1, 2), (2, 2)), ((2, 1), 1)):
            check_against_reference(SPECS["max_pool2d"], Sample("", (x, *window)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ["conv2d", "conv2d_relu"])
@pytest.mark.parametrize("size, window, groups", [((5, 4, 9, 8), 3, 1), ((3, 6, 4, 4), 1, 2), ((4, 4, 7, 8), 3, 4)])
@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_gradients_that_are_slices_of_channels(op, size, window, groups, dtype, isa):  # noqa: F811
    """What torch.cat's backward hands out: read as it lies or copied, to the same bits."""
    x = torch.randn(size, dtype=dtype, requires_grad=True)
    w = torch.randn(8, size[1] // groups, window, window, dtype=dtype, requires_grad=True)
    b = torch.randn(8, dtype=dtype, requires_grad=True)
    y = getattr(torchsmith, op)(x, w, b, padding=window // 2, groups=groups)
    g = torch.randn(size[0], 11, *size[2:], dtype=dtype)[:, 2:10]
    sliced = torch.autograd.grad(y, (x, w, b), g, retain_graph=True)
    dense = torch.autograd.grad(y, (x, w, b), g.contiguous())
    assert all(torch.equal(*pair) for pair in zip(sliced, dense, strict=True))
    assert explain().implementation == "cpp"
