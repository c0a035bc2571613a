"""Shapes at which linear's CUDA kernels take other ways than on the samples of its spec."""

import torch

from torchsmith.spec import Sample


def samples(dtype):
    def make(*shape):
        return torch.randn(shape, dtype=dtype)

    def case(name, rows, k, n):
        return Sample(name, (make(rows, k), make(n, k), make(n)))

    # Shares of k, of at least eight steps each, in each of the three products. Not longer than that takes: a longer sum in
    # one accumulator, as a GPU's GEMM has it, errs more than the blocked sums of native's CPU GEMM.
    long = 1040 // dtype.itemsize
    yield case("k in shares", 20, long, 9)
    yield case("rows in shares", long, 7, 6)
    yield case("columns in shares", 10, 9, long)
    yield case("large tiles, ragged", 129, 70, 135)
    yield case("large tiles, aligned", 128, 72, 136)
    yield case("tile + 1", 65, 33, 65)
    yield case("tile - 1", 63, 31, 63)
    yield case("three steps", 16, 96, 16)
    for offset in (1, 2, 4):  # rows that start on no boundary of 16 bytes
        yield Sample(f"columns from {offset}", (make(17, 48)[:, offset:], make(9, 48)[:, offset:], make(9)))
    x = make(70, 40)
    x[3, 5], x[66, 39] = float("nan"), float("inf")
    yield Sample("nan and inf, tiles", (x, make(66, 40), make(66)), differentiable=False)
