"""conv2d, conv2d + ReLU, conv2d + ReLU + max pool.   Formulas: csrc/contract/conv2d.h, kernels: csrc/{cpu,cuda}/conv2d.*"""

from __future__ import annotations

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ..autograd import applier, caller, differentiable_gradients, inside, records, wants_graph
from ..dispatch import KNOWN, autocast, by_default, leave, native_wins, short, short_on_cuda, use_kernel
from ..dispatch import convolution_tf32 as allow_tf32
from ..spec import OpSpec, fake, kernel, like, register
from . import _conv2d_samples as cases
from ._checks import only_tensors, pair, same_device
from ._conv2d_rules import MANY_CHANNELS, copied_layout, rule, rule_on_cuda, rule_with_amx
from .maxpool2d import output_size, pooled, position_dtype

_forward = kernel("conv2d_forward")
_backward = kernel("conv2d_backward")
_INT_MAX = 2**31 - 1


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups: int = 1
) -> Tensor:
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


def conv2d_relu(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups: int = 1
) -> Tensor:
    """``relu(conv2d(...))`` in one pass; arguments, result and errors as :func:`conv2d`."""
    return _conv("conv2d_relu", input, weight, bias, stride, padding, dilation, groups, True, None)


def conv2d_relu_maxpool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    pool_kernel_size=2,
    pool_stride=None,
    pool_padding=0,
) -> Tensor:
    """``max_pool2d(relu(conv2d(...)), pool_kernel_size, pool_stride, pool_padding)`` in one pass.

    ReLU and max pool commute, so this is also ``relu(max_pool2d(conv2d(...)))``. What is saved for backward beside input
    and weight is the pooled result and one byte a cell of it. Arguments, result and errors as :func:`conv2d` and
    :func:`torch.nn.functional.max_pool2d`.
    """
    name = "conv2d_relu_maxpool2d"
    pool = _pool(pool_kernel_size, pool_stride, pool_padding)
    if pool is not None:
        return _conv(name, input, weight, bias, stride, padding, dilation, groups, True, pool)
    kernel_size = pair(name, "pool_kernel_size", pool_kernel_size)
    steps = kernel_size if pool_stride is None or pool_stride == [] else pair(name, "pool_stride", pool_stride)
    pads = pair(name, "pool_padding", pool_padding)
    return _conv(name, input, weight, bias, stride, padding, dilation, groups, True, [*kernel_size, *steps, *pads])


@lru_cache(maxsize=1024, typed=True)
def _geometry(stride, padding, dilation) -> tuple[list[int], list[int], list[int]] | None:
    """The geometry as the kernel takes it, for plain ints and pairs of ints; None sends the call the long way."""
    pairs = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    if not all(isinstance(v, tuple) and len(v) == 2 and all(isinstance(i, int) for i in v) for v in pairs):
        return None
    return list(pairs[0]), [*pairs[1], *pairs[1]], list(pairs[2])


@lru_cache(maxsize=1024, typed=True)
def _pool_of(kernel_size, stride, padding) -> list[int] | None:
    found = _geometry(kernel_size, padding, kernel_size if stride is None else stride)
    return None if found is None else [*found[0], *found[2], *found[1][:2]]


def _pool(*arguments) -> list[int] | None:
    if is_dynamo_compiling():  # it looks through the cache, and says so in a warning
        return None
    try:
        return _pool_of(*arguments)
    except TypeError:  # unhashable, a list
        return None


def _conv(name, input, weight, bias, stride, padding, dilation, groups, relu, pool):
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor):
        only_tensors(name, 2, input=input, weight=weight, bias=bias)
    slower = ""
    if name in KNOWN:
        pools = (tuple(pool[:2]), tuple(pool[2:4]), tuple(pool[4:])) if pool else ()
        slower = native_wins(name, (input, weight, bias), (stride, padding, dilation, groups, *pools))
    if not (slower or pool or input.is_contiguous()):
        slower = copied_layout(name, input, groups)
    if not (slower or pool) and (groups != 1 or weight.numel() >= MANY_CHANNELS) and by_default(name):
        slower = rule(input, weight, stride, padding, dilation, groups)
    slower = slower or rule_with_amx(name, input, weight, groups, pool)
    if input.dim() == 4 and not is_dynamo_compiling():
        try:
            found = _geometry(stride, padding, dilation)
            if found is not None:
                geometry = (*found, groups, relu, pool or [])
                if not slower:
                    y = _short(name, input, weight, bias, *geometry)
                    if y is None and not (slower := rule_on_cuda(name, input, weight, pool)):
                        y = _short_on_cuda(name, input, weight, bias, *geometry)
                    if y is not None:
                        return y
                if slower:
                    y = _by_native(input, weight, bias, *geometry)
                    leave(name, slower)
                    return y
        except (RuntimeError, TypeError):
            pass  # said in words, or computed by ATen, below
    only_tensors(name, 2, input=input, weight=weight, bias=bias)
    slower = slower or rule_on_cuda(name, input, weight, pool)
    return _checked(name, input, weight, bias, stride, padding, dilation, groups, relu, pool, slower)


def _checked(name, input, weight, bias, stride, padding, dilation, groups, relu, pool, slower):
    input, weight, bias = autocast(input, weight, bias)
    _check_dimensions(name, input, weight)
    stride, dilation = pair(name, "stride", stride), pair(name, "dilation", dilation)
    _check_ranges(name, stride, dilation, pair(name, "padding", padding) if not isinstance(padding, str) else (0, 0))
    _check_tensors(name, input, weight, bias, groups)
    padding = _padding(name, padding, weight, stride, dilation)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    size = _check_sizes(name, batched, weight, stride, padding, dilation)
    if pool is not None:
        output_size(name, (weight.shape[0], *size), pool[:2], pool[2:4], pool[4:], (1, 1), False)
    geometry = (list(stride), list(padding), list(dilation), groups, relu, pool or [])
    # Without channels ATen gives a result without channels, not the bias: its own answer is the one to match.
    if not use_kernel(name, input, slower if input.shape[-3] else "no channels"):
        y = _reference(batched, weight, bias, *geometry)
    elif records(input, weight, bias):
        y = _Conv2d.apply(batched, weight, bias, *geometry)
    else:
        y = _forward(batched, weight, bias, *geometry, allow_tf32(batched))[0]
    return y if input.dim() == 4 else y.squeeze(0)


def _convolution(input, weight, bias, stride, padding, dilation, groups):
    top, left, bottom, right = padding
    if top == bottom and left == right:
        return F.conv2d(input, weight, bias, stride, (top, left), dilation, groups)
    return F.conv2d(F.pad(input, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


def _reference(input, weight, bias, stride, padding, dilation, groups, relu, pool):
    y = _convolution(input, weight, bias, stride, padding, dilation, groups)
    y = F.relu(y) if relu else y
    return F.max_pool2d(y, pool[:2], pool[2:4], pool[4:]) if pool else y


def _by_native(input, weight, bias, stride, padding, dilation, groups, relu, pool):
    """What is left to native is the convolution. A pool of it is ours, which is several times as fast; ReLU comes after the
    pool, with which it commutes bit by bit (values, NaN, and gradients: what is not above 0 has none), and needs no copy."""
    y = _convolution(input, weight, bias, stride, padding, dilation, groups)
    if pool:
        y = pooled(y, pool[:2], pool[2:4], pool[4:])
    return y.relu_() if relu else y


def _check_dimensions(name, input, weight):
    if input.dim() not in (3, 4):
        raise RuntimeError(
            f"{name}: Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: "
            f"{list(input.shape)}"
        )
    if weight.dim() != 4:
        raise RuntimeError(
            f"{name}: Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight "
            f"{list(weight.shape)}, but got input of size {list(input.shape)}: weight needs 4 dimensions "
            "(K, C / groups, KH, KW)"
        )


def _check_ranges(name, stride, dilation, padding):
    """ATen's order: before what the tensors' sizes say of each other."""
    for what, values, least, wrong in (
        ("stride", stride, 1, "non-positive stride is not supported"),
        ("padding", padding, 0, "negative padding is not supported"),
        ("dilation", dilation, 1, "dilation should be greater than zero"),
    ):
        if min(values) < least:
            raise RuntimeError(f"{name}: {wrong}, got {what}={list(values)}")
        if max(values) > _INT_MAX:
            raise RuntimeError(f"{name}: {what}={list(values)} is too large: at most {_INT_MAX}")


def _check_tensors(name, input, weight, bias, groups):
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"{name}: argument 'groups' must be int, not {type(groups).__name__}")
    if groups <= 0:
        raise RuntimeError(f"{name}: non-positive groups is not supported, got groups={groups}")
    channels, outputs = input.shape[-3], weight.shape[0]
    if outputs < groups or outputs % groups:
        what = "at least" if outputs < groups else "divisible by"
        raise RuntimeError(
            f"{name}: Given groups={groups}, expected weight to be {what} {groups} at dimension 0, but got "
            f"weight of size {list(weight.shape)} instead"
        )
    if channels != weight.shape[1] * groups:
        raise RuntimeError(
            f"{name}: Given groups={groups}, weight of size {list(weight.shape)}, expected input"
            f"{list(input.shape)} to have {weight.shape[1] * groups} channels, but got {channels} channels instead"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(
            f"{name}: Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with "
            f"{outputs} elements, but got bias of size {list(bias.shape)} instead"
        )
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
            raise RuntimeError(
                f"{name}: padding='same' is not supported for strided convolutions, got stride={list(stride)}"
            )
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2
    height, width = pair(name, "padding", padding)
    return height, width, height, width


def _check_sizes(name, input, weight, stride, padding, dilation) -> tuple[int, int]:
    """The output's height and width."""
    height, width = input.shape[2:]
    if (height == 0 or width == 0) and input.shape[0] and input.shape[1]:
        raise RuntimeError(
            f"{name}: Only zero batch or zero channel inputs are supported, but got input shape: {list(input.shape)}"
        )
    if 0 in weight.shape[2:]:
        raise RuntimeError(f"{name}: weight has an empty window: weight of size {list(weight.shape)}")
    padded = height + padding[0] + padding[2], width + padding[1] + padding[3]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise RuntimeError(
            f"{name}: Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: "
            f"({reach[0]} x {reach[1]}). Kernel size can't be greater than actual input size"
        )
    return (padded[0] - reach[0]) // stride[0] + 1, (padded[1] - reach[1]) // stride[1] + 1


_inner_forward, _inner_backward = inside(_forward), inside(_backward)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, stride, padding, dilation, groups, relu, pool):
        geometry = (stride, padding, dilation, groups, relu, pool)
        y, position = _inner_forward(input, weight, bias, *geometry, allow_tf32(input))
        ctx.geometry = geometry
        ctx.save_for_backward(input, weight, bias, y if relu else None, position if pool else None)
        return y

    @staticmethod
    def backward(ctx, grad):
        input, weight, bias, y, position = ctx.saved_tensors
        need = ctx.needs_input_grad[:3]
        if wants_graph():
            found = differentiable_gradients(
                lambda *a: _reference(*a, *ctx.geometry), (input, weight, bias), (grad,), need
            )
            return *found, *(None,) * 6
        grads = _inner_backward(grad, input, weight, y, position, *ctx.geometry, *need, allow_tf32(grad))
        return *(g if n else None for g, n in zip(grads, need, strict=True)), *(None,) * 6


_short = short(3, caller(_forward), applier(_Conv2d))
_short_on_cuda = short_on_cuda(3, caller(_forward), applier(_Conv2d), allow_tf32)


def _is_channels_last(t: Tensor) -> bool:
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def _laid_out(t: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(t, memory_format=torch.channels_last) if channels_last else t


@fake("conv2d_forward")
def _(input, weight, bias, stride, padding, dilation, groups, relu, pool, allow_tf32=False):
    _check_ranges("conv2d", stride, dilation, padding)
    height, width = _check_sizes("conv2d", input, weight, stride, padding, dilation)
    if pool:
        height, width = output_size(
            "conv2d", (weight.shape[0], height, width), pool[:2], pool[2:4], pool[4:], (1, 1), False
        )
    shape = (input.shape[0], weight.shape[0], height, width)
    y = _laid_out(input.new_empty(shape), _is_channels_last(input) or _is_channels_last(weight))
    dtype = position_dtype(pool[:2]) if pool else torch.uint8
    return y, input.new_empty(shape if pool else (0,), dtype=dtype)


@fake("conv2d_backward")
def _(
    grad,
    input,
    weight,
    output,
    position,
    stride,
    padding,
    dilation,
    groups,
    relu,
    pool,
    need_input,
    need_weight,
    need_bias,
    allow_tf32=False,
):
    return (
        _laid_out(like(need_input, input), need_input and _is_channels_last(input)),
        _laid_out(like(need_weight, weight), need_weight and _is_channels_last(weight)),
        weight.new_empty((weight.shape[0] if need_bias else 0,)),
    )


for _name, _function, _relu, _pooled, _make, _errors, _bench in (
    ("conv2d", conv2d, False, False, cases.samples, cases.ERRORS, cases.BENCH),
    ("conv2d_relu", conv2d_relu, True, False, cases.samples, cases.ERRORS, cases.BENCH_RELU),
    (
        "conv2d_relu_maxpool2d",
        conv2d_relu_maxpool2d,
        True,
        True,
        cases.pool_samples,
        cases.ERRORS + cases.POOL_ERRORS,
        cases.BENCH_POOL,
    ),
):
    register(
        OpSpec(
            name=_name,
            row="conv2d",
            function=_function,
            reference=partial(cases.reference, relu=_relu, pooled=_pooled),
            kernels=("conv2d_forward", "conv2d_backward"),
            samples=_make,
            errors=_errors,
            bench=_bench,
            flops=cases.flops,
        )
    )
