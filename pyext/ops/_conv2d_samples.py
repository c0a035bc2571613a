"""Samples, error cases and benchmark shapes of the conv2d row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..spec import BenchCase, ErrorCase, Sample


def samples(dtype: torch.dtype, device: torch.device, pools: tuple[dict, ...] = ({},)) -> Iterator[Sample]:
    def make(*shape):
        return torch.randn(shape, dtype=dtype, device=device)

    # (input, weight, keywords): batch > 1, one image, rows wider than two vectors, channels at the register tile's edge.
    shapes = {
        "course 1": ((3, 1, 28, 28), (10, 1, 5, 5), {}),
        "course 2": ((2, 10, 12, 12), (20, 10, 5, 5), {}),
        "1x1": ((2, 10, 12, 12), (16, 10, 1, 1), {}),
        "same 5x5": ((2, 3, 9, 11), (5, 3, 5, 5), {"padding": 2}),
        "tile + 1": ((2, 3, 6, 36), (15, 3, 3, 3), {"padding": 1}),
        "deep": ((2, 30, 5, 6), (17, 30, 3, 3), {"padding": 1}),
        "narrow": ((2, 3, 9, 3), (4, 3, 2, 3), {}),
        "stride": ((2, 3, 11, 13), (4, 3, 3, 3), {"stride": (2, 3), "padding": (1, 2)}),
        "stride past the end": ((2, 2, 8, 8), (3, 2, 3, 3), {"stride": 4, "padding": 0}),
        "stride on 1x1": ((2, 4, 7, 7), (6, 4, 1, 1), {"stride": 2}),
        "dilation": ((2, 3, 12, 11), (4, 3, 3, 2), {"dilation": (2, 3), "padding": (3, 1)}),
        "stride and dilation": ((2, 2, 14, 13), (3, 2, 3, 3), {"stride": (3, 2), "dilation": (1, 2), "padding": 2}),
        "stride, a window cell wide": ((2, 3, 9, 8), (4, 3, 1, 3), {"stride": (3, 2), "padding": (0, 2)}),
        "stride 2 over two vectors": ((1, 3, 9, 70), (5, 3, 3, 3), {"stride": 2, "padding": 1}),
        "stride 4, dilation 2": (
            (2, 2, 13, 15),
            (3, 2, 3, 3),
            {"stride": (4, 2), "dilation": (2, 4), "padding": (2, 4)},
        ),
        "stride beyond the image": ((2, 2, 3, 2), (3, 2, 2, 2), {"stride": 5}),
        "stride and groups": ((2, 4, 8, 9), (6, 2, 5, 5), {"stride": 2, "groups": 2, "padding": 2}),
        "window mostly in the padding": ((2, 3, 4, 20), (3, 3, 5, 3), {"padding": (4, 1)}),
        "groups": ((2, 6, 9, 8), (9, 2, 3, 3), {"groups": 3, "padding": 1}),
        "depthwise": ((2, 7, 9, 8), (7, 1, 3, 3), {"groups": 7, "padding": 1}),
        "depthwise x2, stride": ((2, 5, 9, 8), (10, 1, 3, 3), {"groups": 5, "stride": 2, "padding": 1}),
        "depthwise x2": ((2, 4, 9, 18), (8, 1, 3, 3), {"groups": 4, "padding": 1}),
        "depthwise 5x5, one column": ((2, 3, 9, 5), (3, 1, 5, 5), {"groups": 3}),
        "depthwise 5x5, five vectors": ((1, 2, 6, 69), (2, 1, 5, 5), {"groups": 2, "padding": (2, 1)}),
        "depthwise 3x3, two vectors": ((2, 2, 11, 22), (4, 1, 3, 3), {"groups": 2}),
        "depthwise x2 7x7, rows keep their length": ((2, 2, 9, 10), (4, 1, 7, 7), {"groups": 2, "padding": (2, 3)}),
        "depthwise 5x3, rows keep their length, dilation": (
            (2, 3, 5, 4),
            (3, 1, 5, 3),
            {"groups": 3, "padding": (4, 2), "dilation": 2},
        ),
        "depthwise 1x1, stride": ((2, 3, 7, 8), (3, 1, 1, 1), {"groups": 3, "stride": 2}),
        "depthwise, stride and dilation": (
            (2, 3, 15, 37),
            (3, 1, 3, 4),
            {"groups": 3, "stride": (3, 2), "dilation": (2, 3), "padding": (3, 4)},
        ),
        "depthwise, stride past the end": ((2, 2, 8, 9), (2, 1, 2, 2), {"groups": 2, "stride": (3, 5)}),
        "depthwise, same, even window": ((2, 3, 6, 34), (3, 1, 4, 2), {"groups": 3, "padding": "same"}),
        "depthwise, padding beyond the window": ((2, 2, 4, 5), (2, 1, 2, 2), {"groups": 2, "padding": 3}),
        "same, even window": ((2, 3, 9, 8), (4, 3, 4, 2), {"padding": "same"}),
        "same, dilated": ((2, 3, 9, 8), (4, 3, 3, 4), {"padding": "same", "dilation": (2, 3)}),
        "valid": ((2, 3, 9, 8), (4, 3, 3, 3), {"padding": "valid"}),
        "padding beyond the window": ((2, 2, 5, 5), (3, 2, 2, 2), {"padding": 3}),
    }
    for pool in pools:
        for name, (x, w, keywords) in shapes.items():
            yield Sample(f"{name} {pool or ''}".strip(), (make(*x), make(*w), make(w[0])), {**keywords, **pool})
    pool = pools[0]
    x, w, b = make(3, 4, 9, 8), make(5, 4, 3, 3), make(5)
    yield Sample("no bias", (x, w), pool)
    yield Sample("unbatched", (x[0], w, b), pool)
    yield Sample("no images", (x[:0], w, b), pool)
    yield Sample("channels_last", (x.contiguous(memory_format=torch.channels_last), w, b), pool)
    yield Sample("channels_last weight", (x, w.contiguous(memory_format=torch.channels_last), b), pool)
    yield Sample(
        "transposed", (make(3, 4, 8, 9).transpose(2, 3), make(4, 5, 3, 3).transpose(0, 1), make(10)[::2]), pool
    )
    yield Sample(
        "offset views", (make(5, 6, 12, 11)[1:4, 2:, 2:11, 1:9], make(7, 6, 3, 3)[1:6, 1:5], make(7)[1:6]), pool
    )
    yield Sample(
        "stride 0", (make(1, 1, 9, 8).expand(3, 4, 9, 8), make(1, 4, 1, 1).expand(5, 4, 3, 3), make(1).expand(5)), pool
    )
    yield from _depthwise_last(make, pool)
    special = make(2, 2, 8, 8)
    special[0, 0, 0, 0], special[0, 1, 3, 3], special[1, 0, 7, 7] = float("nan"), float("inf"), -float("inf")
    yield Sample("nan and inf", (special, make(3, 2, 3, 3), make(3)), pool, differentiable=False)
    ties = torch.tensor([0.0, -1.0, 1.0], dtype=dtype, device=device)
    yield Sample(
        "relu at zero, ties",
        (torch.zeros(2, 2, 8, 8, dtype=dtype, device=device), make(3, 2, 3, 3), ties),
        pool,
        differentiable=False,
    )
    if not pool:
        yield Sample("no channels", (make(2, 0, 5, 5), make(3, 0, 3, 3), make(3)), differentiable=False)


def _depthwise_last(make, pool: dict) -> Iterator[Sample]:
    # Channels below, at and beyond a vector of each instruction set, and four vectors and some.
    for channels, size, window, keywords in (
        (3, (9, 8), (3, 3), {"padding": 1}),
        (4, (8, 11), (3, 3), {"padding": 1, "stride": 2}),
        (10, (9, 12), (5, 5), {"padding": 2}),
        (16, (6, 13), (3, 3), {"padding": 1}),
        (17, (11, 14), (3, 4), {"stride": (3, 2), "dilation": (2, 3), "padding": (3, 4)}),
        (67, (6, 7), (3, 3), {"padding": 1, "stride": 2}),
        (6, (8, 9), (1, 1), {"stride": 2}),
        (5, (6, 8), (2, 2), {"padding": 3}),
    ):
        x = make(2, channels, *size).contiguous(memory_format=torch.channels_last)
        name = f"channels_last, depthwise {channels} {pool or ''}".strip()
        arguments = (x, make(channels, 1, *window), make(channels))
        yield Sample(name, arguments, {"groups": channels, **keywords, **pool})
    x = make(2, 4, 8, 9).contiguous(memory_format=torch.channels_last)
    yield Sample("channels_last, depthwise x2", (x, make(8, 1, 3, 3)), {"groups": 4, "padding": 1, **pool})
    x, w = make(2, 5, 8, 9).contiguous(memory_format=torch.channels_last), make(5, 1, 3, 3)
    x[0, 0, 0, 0], x[0, 2, 3, 8], x[1, 4, 7, 7] = float("nan"), float("inf"), -float("inf")
    for layout, special in (("channels_last", x), ("planes", x.contiguous())):
        name = f"nan and inf, depthwise, {layout}"
        yield Sample(name, (special, w), {"groups": 5, "padding": 1, **pool}, differentiable=False)


_POOLS = ({}, {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1})


def pool_samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    too_small_to_pool = ("narrow", "no channels", "stride beyond the image", "depthwise 5x5, one column")
    yield from (s for s in samples(dtype, device, _POOLS) if not s.name.startswith(too_small_to_pool))
    many = torch.randn(2, 12, 8, 8, dtype=dtype, device=device)
    many[0, 3, 2, 2], many[1, 11, 7, 0] = float("nan"), float("inf")
    weight = torch.randn(3, 12, 3, 3, dtype=dtype, device=device)
    yield Sample("nan and inf, many channels", (many, weight), differentiable=False)
    yield Sample(
        "window over 256 cells",
        (torch.randn(1, 1, 20, 20, dtype=dtype, device=device), torch.randn(2, 1, 3, 3, dtype=dtype, device=device)),
        {"pool_kernel_size": 17},
    )


def reference(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    relu=False,
    pooled=False,
    pool_kernel_size=2,
    pool_stride=None,
    pool_padding=0,
):
    """The three ops in ATen's; the pool before the ReLU, as the course has it: the same values, and cheaper for native."""
    y = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    y = F.max_pool2d(y, pool_kernel_size, pool_stride, pool_padding) if pooled else y
    return F.relu(y) if relu else y


def _error(
    name,
    pattern,
    x=(2, 3, 8, 8),
    w=(4, 3, 3, 3),
    b=None,
    w_dtype=torch.float32,
    b_dtype=torch.float32,
    error=RuntimeError,
    **keywords,
):
    def make():
        bias = None if b is None else torch.zeros(b, dtype=b_dtype)
        return Sample("", (torch.zeros(x), torch.zeros(w, dtype=w_dtype), bias), keywords)

    return ErrorCase(name, make, error, pattern)


ERRORS = (
    _error(
        "input 2d",
        r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d, but got input of size: \[8, 8\]",
        x=(8, 8),
    ),
    _error("channels", r"expected input\[2, 5, 8, 8\] to have 3 channels, but got 5 channels instead", x=(2, 5, 8, 8)),
    _error("bias", r"expected bias to be 1-dimensional with 4 elements, but got bias of size \[5\] instead", b=(5,)),
    _error("stride 0", "non-positive stride is not supported", stride=0),
    _error("stride negative", "non-positive stride is not supported", stride=(1, -1)),
    _error("stride of three", "expected stride to be a single integer value or a list of 2 values", stride=(1, 1, 1)),
    _error("stride float", "must be", error=TypeError, stride=1.5),
    _error("padding negative", "negative padding is not supported", padding=-1),
    _error("padding string", "Invalid padding string: 'some'", padding="some"),
    _error("same with stride", "padding='same' is not supported for strided convolutions", padding="same", stride=2),
    _error("dilation 0", "dilation should be greater than zero", dilation=0),
    _error("groups 0", "non-positive groups is not supported", groups=0),
    _error("groups", "Given groups=2, weight of size", groups=2),
    _error(
        "groups and outputs",
        "expected weight to be divisible by 3 at dimension 0",
        x=(2, 6, 8, 8),
        w=(4, 2, 3, 3),
        groups=3,
    ),
    _error("window", r"Calculated padded input size per channel: \(2 x 2\). Kernel size: \(3 x 3\)", x=(2, 3, 2, 2)),
    _error("dtype", "and weight type .* should be the same", w_dtype=torch.float64),
    _error("bias dtype", "and bias type .* should be the same", b=(4,), b_dtype=torch.float64),
    _error("empty image", "Only zero batch or zero channel inputs are supported", x=(2, 3, 0, 8), padding=2),
    _error("huge dilation", "Kernel size can't be greater than actual input size|too large", dilation=2**40),
)
POOL_ERRORS = (
    _error("pool stride 0", "stride should not be zero", pool_stride=0),
    _error("pool padding", "pad should be at most half of effective kernel size", pool_padding=2),
    _error("pool too large", "Output size is too small", pool_kernel_size=9),
)


def _case(n, c, size, k, window, *, frozen=(), **keywords) -> BenchCase:
    def make(dtype, device):
        gen = torch.Generator(device).manual_seed(0)

        def new(*shape):
            return torch.randn(shape, dtype=dtype, device=device, generator=gen)

        return Sample("", (new(n, c, size, size), new(k, c, window, window) / (c * window**2) ** 0.5, new(k)), keywords)

    padding = f" p{keywords['padding']}" if "padding" in keywords else ""
    return BenchCase(f"{c}->{k} k{window}{padding} {size}x{size} b{n}", make, frozen)


BENCH = (
    _case(64, 10, 12, 16, 1),
    _case(64, 88, 4, 16, 1),
    _case(64, 16, 12, 24, 5, padding=2),
    _case(64, 24, 12, 24, 3, padding=1),
    _case(64, 88, 12, 20, 5),
    _case(8, 64, 56, 64, 3, padding=1),
)
BENCH_RELU = (_case(64, 16, 12, 16, 3, padding=1), _case(64, 32, 4, 32, 3, padding=1))
BENCH_POOL = (_case(64, 1, 28, 10, 5, frozen=(0,)), _case(64, 10, 12, 20, 5))


def flops(sample: Sample) -> int:
    input, weight = sample.args[:2]
    keywords = {k: v for k, v in sample.kwargs.items() if not k.startswith("pool")}
    cells = F.conv2d(input.to("meta"), weight.to("meta"), None, **keywords)[..., :, :].numel() // weight.shape[0]
    return 2 * cells * weight.numel()
