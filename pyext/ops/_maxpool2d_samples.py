"""Samples, error cases and benchmark shapes of max_pool2d."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..spec import BenchCase, ErrorCase, Sample

__all__ = ["BENCH", "ERRORS", "samples"]


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def make(
        *shape,
    ):  # distinct values a step apart: no ties where not meant, and gradcheck's small steps change no winner
        count = torch.Size(shape).numel()
        spread = 0.25 if dtype in (torch.float32, torch.float64) else 1.0
        return (torch.randperm(count, device=device).reshape(shape) - count // 2).to(dtype) * spread

    for name, shape, args in [
        ("2", (2, 3, 8, 10), (2,)),
        ("2 wide", (2, 2, 4, 70), (2,)),
        ("2 odd", (2, 3, 9, 7), (2,)),
        ("3 stride 2", (2, 3, 11, 12), (3, 2)),
        ("3 stride 2 pad 1", (2, 3, 10, 9), (3, 2, 1)),
        ("3 stride 1 pad 1", (2, 3, 7, 37), (3, 1, 1)),
        ("(2, 3)", (2, 3, 8, 11), ((2, 3), (1, 2), (1, 0))),
        ("dilation", (2, 3, 13, 12), (3, (2, 1), 1, (2, 3))),
        ("dilation, stride 2", (1, 2, 11, 13), (3, 2, 1, 2)),
        ("one cell", (2, 3, 5, 5), (1,)),
        ("whole plane", (2, 3, 5, 6), ((5, 6),)),
        ("stride past window", (2, 3, 11, 11), (2, 4)),
        ("window of 289", (1, 2, 20, 19), (17, 1)),
    ]:
        yield Sample(name, (make(*shape), *args))
    for name, shape, args in [
        ("ceil", (2, 3, 9, 7), (2,)),
        ("ceil drops a window", (2, 2, 6, 6), (3, 4, 1)),
        ("ceil pad", (2, 3, 10, 11), (3, 2, 1)),
        ("ceil stride 3", (2, 1, 8, 8), (2, 3, 1)),
    ]:
        yield Sample(name, (make(*shape), *args), {"ceil_mode": True})
    yield Sample("unbatched", (make(3, 8, 8), 2))
    yield Sample("no images", (make(0, 3, 8, 8), 2))
    yield from _channels_last_samples(make)
    yield Sample("transposed", (make(2, 3, 8, 10).transpose(2, 3), 3, 2))
    yield Sample("offset view", (make(3, 4, 12, 12)[1:, 1:, 2:11, 1:9], 2))
    yield Sample("stride 0", (make(1, 1, 1, 8).expand(2, 3, 6, 8), 2), differentiable=False)
    yield Sample("ties", (torch.zeros(2, 2, 6, 7, dtype=dtype, device=device), 3, 2, 1), differentiable=False)
    special = make(2, 2, 6, 6)
    special[0, 0, 0, 0], special[0, 0, 1, 1], special[0, 1, 2, 3], special[1] = (
        float("nan"),
        float("nan"),
        float("inf"),
        -float("inf"),
    )
    yield Sample("nan and inf", (special, 2), differentiable=False)
    yield Sample("nan and inf, padded", (special, 3, 2, 1), differentiable=False)
    anywhere = make(1, 36, 6, 6)  # one in each plane, at every place in turn
    anywhere.view(36, 36).fill_diagonal_(float("nan"))
    yield Sample("nan anywhere", (anywhere, 2), differentiable=False)
    yield Sample("nan anywhere, padded", (anywhere, 3, 2, 1), differentiable=False)
    last = special.contiguous(memory_format=torch.channels_last)
    yield Sample("nan and inf, channels_last", (last, 3, 2, 1), differentiable=False)
    zeros = torch.zeros(2, 5, 6, 7, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    yield Sample("ties, channels_last", (zeros, 3, 1, 1), {"return_indices": True}, differentiable=False)
    yield Sample("indices", (make(2, 3, 9, 8), 3, 2, 1), {"return_indices": True})
    yield Sample("indices of nan and ties", (special, 3, 2, 1, 1, True), {"return_indices": True}, differentiable=False)


def _channels_last_samples(make) -> Iterator[Sample]:
    # Channels below, at and beyond a vector of each instruction set, and four vectors and some.
    for name, shape, args, keywords in [
        ("2", (2, 3, 8, 8), (2,), {}),
        ("2, columns beyond the windows", (2, 10, 7, 13), (2,), {}),
        ("one channel", (2, 1, 6, 7), (2,), {}),
        ("3 stride 2 pad 1, 4", (2, 4, 9, 12), (3, 2, 1), {}),
        ("3 stride 1 pad 1, 16", (1, 16, 6, 11), (3, 1, 1), {}),
        ("3 stride 2 pad 1, 17", (2, 17, 7, 9), (3, 2, 1), {}),
        ("3 stride 2 pad 1, 67", (1, 67, 5, 6), (3, 2, 1), {}),
        ("dilation", (2, 3, 13, 12), (3, (2, 1), 1, (2, 3)), {}),
        ("ceil pad, indices", (2, 6, 10, 11), (3, 2, 1), {"ceil_mode": True, "return_indices": True}),
        ("stride past window", (2, 5, 11, 11), (2, (3, 4)), {}),
        ("window of 81", (1, 5, 12, 11), (9, 1), {}),
        ("window of 289", (1, 2, 20, 19), (17, 1), {}),
        ("one output", (2, 3, 5, 6), ((5, 6),), {}),
    ]:
        x = make(*shape).contiguous(memory_format=torch.channels_last)
        yield Sample(f"channels_last, {name}", (x, *args), keywords)


def _error(name, pattern, shape=(2, 3, 8, 8), error=RuntimeError, kernel_size=2, **keywords):
    return ErrorCase(name, lambda: Sample("", (torch.zeros(shape), kernel_size), keywords), error, pattern)


ERRORS = (
    _error("input 2d", r"non-empty 3D or 4D \(batch mode\) tensor expected for input", (8, 8)),
    _error("kernel 0", "stride should not be zero", kernel_size=0),
    _error("kernel negative", "pad should be at most half", kernel_size=-2),
    _error("kernel of three", "kernel_size must either be a single int, or a tuple of two ints", kernel_size=(2, 2, 2)),
    _error("kernel float", "'kernel_size' .*must be .*ints, not float", error=TypeError, kernel_size=2.5),
    _error("kernel huge", "value cannot be converted to type int without overflow", kernel_size=2**40),
    _error("stride 0", "stride should not be zero", stride=0),
    _error("stride negative", "stride should be greater than zero", stride=-1),
    _error(
        "padding",
        "pad should be at most half of effective kernel size, but got pad=2, kernel_size=2 and dilation=1",
        padding=2,
    ),
    _error("padding negative", "pad must be non-negative, but got pad: -1", padding=-1),
    _error("dilation 0", "dilation should be greater than zero", dilation=0),
    _error(
        "too small",
        r"Given input size: \(3x1x1\). Calculated output size: \(3x0x0\). Output size is too small",
        (2, 3, 1, 1),
        kernel_size=3,
    ),
    _error("no channels", "tensor with optional 0 dim batch size for input", (2, 0, 8, 8)),
)


def _case(n, c, size, *args) -> BenchCase:
    def make(dtype, device):
        return Sample("", (torch.randn(n, c, size, size, dtype=dtype, device=device), *args))

    return BenchCase(f"k{args[0]} {n}x{c}x{size}x{size}", make)


BENCH = (_case(64, 10, 24, 2), _case(64, 88, 24, 2), _case(64, 20, 8, 2), _case(8, 64, 112, 3, 2, 1))
