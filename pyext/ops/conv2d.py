"""conv2d, conv2d + ReLU, conv2d + ReLU + max pool.   Formulas: csrc/contract/conv2d.h, kernels: csrc/cpu/conv2d.cpp."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autograd import differentiable_gradients, records, wants_graph
from ..dispatch import autocast, use_kernel
from ..spec import BenchCase, ErrorCase, OpSpec, Sample, fake, kernel, like, register
from ._checks import pair, same_device, same_dtype
from .maxpool2d import output_size, position_dtype

_forward = kernel("conv2d_forward")
_backward = kernel("conv2d_backward")
_INT_MAX = 2**31 - 1


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1,
           groups: int = 1) -> Tensor:
    """2-d cross-correlation, as :func:`torch.nn.functional.conv2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, any strides; channels_last in gives channels_last out.
        weight: ``(K, C / groups, KH, KW)``.
        bias: ``(K)`` or None.
        stride, dilation: cells, int or pair.
        padding: cells on each side, int or pair, or ``"valid"`` or ``"same"`` (stride 1).
        groups: divides C and K; ``groups = C`` is depthwise.

    Returns:
        ``(N, K, OH, OW)`` or ``(K, OH, OW)``, of the arguments' dtype.

    Raises:
        RuntimeError: shapes do not fit, dtypes or devices differ, or a parameter is out of range.
    """
    return _conv("conv2d", input, weight, bias, stride, padding, dilation, groups, False, None)


def conv2d_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1,
                groups: int = 1) -> Tensor:
    """``relu(conv2d(...))`` in one pass; arguments, result and errors as :func:`conv2d`."""
    return _conv("conv2d_relu", input, weight, bias, stride, padding, dilation, groups, True, None)


def conv2d_relu_maxpool2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1,
                          groups: int = 1, pool_kernel_size=2, pool_stride=None, pool_padding=0) -> Tensor:
    """``max_pool2d(relu(conv2d(...)), pool_kernel_size, pool_stride, pool_padding)`` in one pass.

    ReLU and max pool commute, so this is also ``relu(max_pool2d(conv2d(...)))``. What is saved for backward beside input
    and weight is the pooled result and one byte a cell of it. Arguments, result and errors as :func:`conv2d` and
    :func:`torch.nn.functional.max_pool2d`.
    """
    name = "conv2d_relu_maxpool2d"
    kernel_size = pair(name, "pool_kernel_size", pool_kernel_size)
    steps = kernel_size if pool_stride is None or pool_stride == [] else pair(name, "pool_stride", pool_stride)
    pads = pair(name, "pool_padding", pool_padding)
    return _conv(name, input, weight, bias, stride, padding, dilation, groups, True, [*kernel_size, *steps, *pads])


def _conv(name, input, weight, bias, stride, padding, dilation, groups, relu, pool):
    input, weight, bias = autocast(input, weight, bias)
    _check_tensors(name, input, weight, bias, groups)
    stride, dilation = pair(name, "stride", stride), pair(name, "dilation", dilation)
    padding = _padding(name, padding, weight, stride, dilation)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    size = _check_sizes(name, batched, weight, stride, padding, dilation)
    if pool is not None:
        output_size(name, (weight.shape[0], *size), pool[:2], pool[2:4], pool[4:], (1, 1), False)
    geometry = (list(stride), list(padding), list(dilation), groups, relu, pool or [])
    # Without channels ATen gives a result without channels, not the bias: its own answer is the one to match.
    if input.shape[-3] == 0 or not use_kernel(name, input):
        y = _reference(batched, weight, bias, *geometry)
    elif records(input, weight, bias):
        y = _Conv2d.apply(batched, weight, bias, *geometry)
    else:
        y = _forward(batched, weight, bias, *geometry)[0]
    return y if input.dim() == 4 else y.squeeze(0)


def _reference(input, weight, bias, stride, padding, dilation, groups, relu, pool):
    top, left, bottom, right = padding
    if top == bottom and left == right:
        y = F.conv2d(input, weight, bias, stride, (top, left), dilation, groups)
    else:
        y = F.conv2d(F.pad(input, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)
    y = F.relu(y) if relu else y
    return F.max_pool2d(y, pool[:2], pool[2:4], pool[4:]) if pool else y


def _check_tensors(name, input, weight, bias, groups):
    if input.dim() not in (3, 4):
        raise RuntimeError(f"{name}: Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: "
                           f"{list(input.shape)}")
    if weight.dim() != 4:
        raise RuntimeError(f"{name}: weight needs 4 dimensions (K, C / groups, KH, KW), but got weight of size {list(weight.shape)}")
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"{name}: argument 'groups' must be int, not {type(groups).__name__}")
    if groups <= 0:
        raise RuntimeError(f"{name}: non-positive groups is not supported, got groups={groups}")
    channels, outputs = input.shape[-3], weight.shape[0]
    if outputs < groups or outputs % groups:
        what = "at least" if outputs < groups else "divisible by"
        raise RuntimeError(f"{name}: Given groups={groups}, expected weight to be {what} {groups} at dimension 0, but got "
                           f"weight of size {list(weight.shape)} instead")
    if channels != weight.shape[1] * groups:
        raise RuntimeError(f"{name}: Given groups={groups}, weight of size {list(weight.shape)}, expected input"
                           f"{list(input.shape)} to have {weight.shape[1] * groups} channels, but got {channels} channels instead")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(f"{name}: Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with "
                           f"{outputs} elements, but got bias of size {list(bias.shape)} instead")
    for other, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.dtype != input.dtype:
            raise RuntimeError(f"{name}: Input type ({input.dtype}) and {other} type ({t.dtype}) should be the same")
    same_device(name, input=input, weight=weight, bias=bias)


def _padding(name, padding, weight, stride, dilation) -> tuple[int, int, int, int]:
    """Top, left, bottom, right. "same" puts the odd cell at the bottom right, as ATen does."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise RuntimeError(f"{name}: Invalid padding string: {padding!r}; needs 'same', 'valid', an int or a pair")
        if padding == "valid":
            return 0, 0, 0, 0
        if stride != (1, 1):
            raise RuntimeError(f"{name}: padding='same' is not supported for strided convolutions, got stride={list(stride)}")
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2
    height, width = pair(name, "padding", padding)
    return height, width, height, width


def _check_sizes(name, input, weight, stride, padding, dilation) -> tuple[int, int]:
    """The output's height and width."""
    for what, values, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if min(values) < least:
            raise RuntimeError(f"{name}: {'negative' if least == 0 else 'non-positive'} {what} is not supported, got "
                               f"{what}={list(values)}")
        if max(values) > _INT_MAX:
            raise RuntimeError(f"{name}: {what}={list(values)} is too large: at most {_INT_MAX}")
    height, width = input.shape[2:]
    if (height == 0 or width == 0) and input.shape[0] and input.shape[1]:
        raise RuntimeError(f"{name}: Only zero batch or zero channel inputs are supported, but got input shape: {list(input.shape)}")
    if 0 in weight.shape[2:]:
        raise RuntimeError(f"{name}: weight has an empty window: weight of size {list(weight.shape)}")
    padded = height + padding[0] + padding[2], width + padding[1] + padding[3]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise RuntimeError(f"{name}: Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: "
                           f"({reach[0]} x {reach[1]}). Kernel size can't be greater than actual input size")
    return (padded[0] - reach[0]) // stride[0] + 1, (padded[1] - reach[1]) // stride[1] + 1


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, stride, padding, dilation, groups, relu, pool):
        geometry = (stride, padding, dilation, groups, relu, pool)
        y, position = _forward(input, weight, bias, *geometry)
        ctx.geometry = geometry
        ctx.save_for_backward(input, weight, bias, y if relu else None, position if pool else None)
        return y

    @staticmethod
    def backward(ctx, grad):
        input, weight, bias, y, position = ctx.saved_tensors
        need = ctx.needs_input_grad[:3]
        if wants_graph():
            found = differentiable_gradients(lambda *a: _reference(*a, *ctx.geometry), (input, weight, bias), (grad,), need)
            return *found, *(None,) * 6
        grads = _backward(grad, input, weight, y, position, *ctx.geometry, *need)
        return *(g if n else None for g, n in zip(grads, need, strict=True)), *(None,) * 6


def _is_channels_last(t: Tensor) -> bool:
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def _laid_out(t: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(t, memory_format=torch.channels_last) if channels_last else t


@fake("conv2d_forward")
def _(input, weight, bias, stride, padding, dilation, groups, relu, pool):
    height, width = _check_sizes("conv2d", input, weight, stride, padding, dilation)
    if pool:
        height, width = output_size("conv2d", (weight.shape[0], height, width), pool[:2], pool[2:4], pool[4:], (1, 1), False)
    shape = (input.shape[0], weight.shape[0], height, width)
    y = _laid_out(input.new_empty(shape), _is_channels_last(input) or _is_channels_last(weight))
    dtype = position_dtype(pool[:2]) if pool else torch.uint8
    return y, input.new_empty(shape if pool else (0,), dtype=dtype)


@fake("conv2d_backward")
def _(grad, input, weight, output, position, stride, padding, dilation, groups, relu, pool, need_input, need_weight, need_bias):
    return (_laid_out(like(need_input, input), need_input and _is_channels_last(input)),
            _laid_out(like(need_weight, weight), need_weight and _is_channels_last(weight)),
            like(need_bias, weight[:, 0, 0, 0]))


def _samples(dtype: torch.dtype, device: torch.device, pools: tuple[dict, ...] = ({},)) -> Iterator[Sample]:
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
        "groups": ((2, 6, 9, 8), (9, 2, 3, 3), {"groups": 3, "padding": 1}),
        "depthwise": ((2, 7, 9, 8), (7, 1, 3, 3), {"groups": 7, "padding": 1}),
        "depthwise x2, stride": ((2, 5, 9, 8), (10, 1, 3, 3), {"groups": 5, "stride": 2, "padding": 1}),
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
    yield Sample("transposed", (make(3, 4, 8, 9).transpose(2, 3), make(4, 5, 3, 3).transpose(0, 1), make(10)[::2]), pool)
    yield Sample("offset views", (make(5, 6, 12, 11)[1:4, 2:, 2:11, 1:9], make(7, 6, 3, 3)[1:6, 1:5], make(7)[1:6]), pool)
    yield Sample("stride 0", (make(1, 1, 1, 8).expand(3, 4, 9, 8), make(1, 4, 1, 1).expand(5, 4, 3, 3), make(1).expand(5)), pool)
    special = make(2, 2, 8, 8)
    special[0, 0, 0, 0], special[0, 1, 3, 3], special[1, 0, 7, 7] = float("nan"), float("inf"), -float("inf")
    yield Sample("nan and inf", (special, make(3, 2, 3, 3), make(3)), pool, differentiable=False)
    ties = torch.tensor([0.0, -1.0, 1.0], dtype=dtype, device=device)
    yield Sample("relu at zero, ties", (torch.zeros(2, 2, 8, 8, dtype=dtype, device=device), make(3, 2, 3, 3), ties), pool,
                 differentiable=False)
    if not pool:
        yield Sample("no channels", (make(2, 0, 5, 5), make(3, 0, 3, 3), make(3)), differentiable=True)


_POOLS = ({}, {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1})


def _pool_samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    too_small_to_pool = ("narrow", "no channels")
    yield from (s for s in _samples(dtype, device, _POOLS) if not s.name.startswith(too_small_to_pool))
    yield Sample("window over 256 cells", (torch.randn(2, 1, 20, 20, dtype=dtype, device=device),
                                           torch.randn(2, 1, 3, 3, dtype=dtype, device=device)), {"pool_kernel_size": 17})


def _reference_call(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, relu=False,
                    pool_kernel_size=None, pool_stride=None, pool_padding=0):
    y = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    y = F.relu(y) if relu else y
    return y if pool_kernel_size is None else F.max_pool2d(y, pool_kernel_size, pool_stride, pool_padding)


def _error(name, pattern, x=(2, 3, 8, 8), w=(4, 3, 3, 3), b=None, w_dtype=torch.float32, b_dtype=torch.float32,
           error=RuntimeError, **keywords):
    def make():
        bias = None if b is None else torch.zeros(b, dtype=b_dtype)
        return Sample("", (torch.zeros(x), torch.zeros(w, dtype=w_dtype), bias), keywords)

    return ErrorCase(name, make, error, pattern)


_ERRORS = (
    _error("input 2d", r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d, but got input of size: \[8, 8\]", x=(8, 8)),
    _error("channels", r"expected input\[2, 5, 8, 8\] to have 3 channels, but got 5 channels instead", x=(2, 5, 8, 8)),
    _error("bias", r"expected bias to be 1-dimensional with 4 elements, but got bias of size \[5\] instead", b=(5,)),
    _error("stride 0", "non-positive stride is not supported", stride=0),
    _error("stride negative", "non-positive stride is not supported", stride=(1, -1)),
    _error("stride of three", "expected stride to be a single integer value or a list of 2 values", stride=(1, 1, 1)),
    _error("stride float", "must be", error=TypeError, stride=1.5),
    _error("padding negative", "negative padding is not supported", padding=-1),
    _error("padding string", "Invalid padding string: 'some'", padding="some"),
    _error("same with stride", "padding='same' is not supported for strided convolutions", padding="same", stride=2),
    _error("dilation 0", "non-positive dilation is not supported", dilation=0),
    _error("groups 0", "non-positive groups is not supported", groups=0),
    _error("groups", "Given groups=2, weight of size", groups=2),
    _error("groups and outputs", "expected weight to be divisible by 3 at dimension 0", x=(2, 6, 8, 8), w=(4, 2, 3, 3), groups=3),
    _error("window", r"Calculated padded input size per channel: \(2 x 2\). Kernel size: \(3 x 3\)", x=(2, 3, 2, 2)),
    _error("dtype", "and weight type .* should be the same", w_dtype=torch.float64),
    _error("bias dtype", "and bias type .* should be the same", b=(4,), b_dtype=torch.float64),
    _error("empty image", "Only zero batch or zero channel inputs are supported", x=(2, 3, 0, 8), padding=2),
    _error("huge dilation", "Kernel size can't be greater than actual input size|too large", dilation=2**40),
)
_POOL_ERRORS = (
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


_BENCH = (_case(64, 10, 12, 16, 1), _case(64, 88, 4, 16, 1), _case(64, 16, 12, 24, 5, padding=2),
          _case(64, 24, 12, 24, 3, padding=1), _case(64, 88, 12, 20, 5), _case(8, 64, 56, 64, 3, padding=1))
_BENCH_RELU = (_case(64, 16, 12, 16, 3, padding=1), _case(64, 32, 4, 32, 3, padding=1))
_BENCH_POOL = (_case(64, 1, 28, 10, 5, frozen=(0,)), _case(64, 10, 12, 20, 5))


def _flops(sample: Sample) -> int:
    input, weight = sample.args[:2]
    keywords = {k: v for k, v in sample.kwargs.items() if not k.startswith("pool")}
    cells = F.conv2d(input.to("meta"), weight.to("meta"), None, **keywords)[..., :, :].numel() // weight.shape[0]
    return 2 * cells * weight.numel()


for _name, _function, _relu, _make, _errors, _bench in (
    ("conv2d", conv2d, False, _samples, _ERRORS, _BENCH),
    ("conv2d_relu", conv2d_relu, True, _samples, _ERRORS, _BENCH_RELU),
    ("conv2d_relu_maxpool2d", conv2d_relu_maxpool2d, True, _pool_samples, _ERRORS + _POOL_ERRORS, _BENCH_POOL),
):
    def _plain(*args, _relu=_relu, _pooled=_name.endswith("pool2d"), **keywords):
        if _pooled:
            keywords = {"pool_kernel_size": 2, **keywords}
        return _reference_call(*args, relu=_relu, **keywords)

    register(OpSpec(name=_name, row="conv2d", function=_function, reference=_plain,
                    kernels=("conv2d_forward", "conv2d_backward"), samples=_make, errors=_errors, bench=_bench, flops=_flops))
