"""max_pool2d.   Formula, ties and NaN: csrc/contract/maxpool2d.h, kernels: csrc/{cpu,cuda}/maxpool2d.*"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ..autograd import applier, caller, inside, records, wants_graph
from ..dispatch import (
    KNOWN,
    NATIVE_ON_CUDA,
    by_default,
    leave,
    native_wins,
    short,
    short_on_cuda,
    unmeasured_on_cuda,
    use_kernel,
)
from ..spec import OpSpec, fake, kernel, register
from . import _maxpool2d_samples as cases
from ._checks import only_tensors

_forward = kernel("maxpool2d_forward")
_backward = kernel("maxpool2d_backward")

#: Values of an input up to which, where nothing was measured, a pool is left to native, with autograd and without: our
#: autograd node in Python costs some 10 us more than native's in C++, and a call of ours half a microsecond more.
FEW, VERY_FEW = 2**13, 2**9


def max_pool2d(
    input: Tensor,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows, as :func:`torch.nn.functional.max_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, any strides; channels_last in gives channels_last out.
        kernel_size, stride, padding, dilation: cells, int or pair; stride defaults to kernel_size, padding is at most
            half the (dilated) window.
        ceil_mode: round the output size up.
        return_indices: also return, for each window, the int64 index of its maximum in the flat input plane.

    Returns:
        ``(N, C, OH, OW)`` or ``(C, OH, OW)``; with ``return_indices`` a pair.

    Raises:
        RuntimeError: shapes or parameters are out of range. TypeError: a parameter is not int or ints.
    """
    if not isinstance(input, Tensor):
        only_tensors("max_pool2d", 1, input=input)
    slower = ""
    if "max_pool2d" in KNOWN and not return_indices:
        others = (kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
        slower = native_wins("max_pool2d", (input,), others)
    if not slower and input.numel() <= FEW and by_default("max_pool2d"):
        slower = _rule(input)
    if input.dim() == 4 and not return_indices and not is_dynamo_compiling():
        try:
            geometry = _geometry(kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode)
            if geometry is not None:
                if not slower:
                    y = _short("max_pool2d", input, *geometry)
                    if y is None and unmeasured_on_cuda("max_pool2d", input):
                        slower = NATIVE_ON_CUDA
                    elif y is None:
                        y = _short_on_cuda("max_pool2d", input, *geometry)
                    if y is not None:
                        return y
                if slower:
                    leave("max_pool2d", slower)
                    return torch.max_pool2d(input, *geometry)
        except (RuntimeError, TypeError):
            pass  # said in words, or computed by ATen, below
    return _checked(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, slower)


def _rule(input: Tensor) -> str:
    """Why a pool of few values is native's where nothing was measured."""
    if not input.is_cpu:
        return ""
    if records(input):
        return "few values: native's autograd node costs less than the kernel saves"
    return "few values: native's call costs less than the kernel saves" if input.numel() <= VERY_FEW else ""


def pooled(y: Tensor, kernel_size: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """A pool inside of another op's call, by the kernel where it takes the tensor and has enough to do."""
    geometry = kernel_size, stride, padding, [1, 1], False
    if y.numel() > (FEW if records(y) else VERY_FEW) and not is_dynamo_compiling():
        z = _short("max_pool2d", y, *geometry)
        if z is not None:
            return z
    return torch.max_pool2d(y, *geometry)


@lru_cache(maxsize=1024, typed=True)
def _geometry(kernel_size, stride, padding, dilation, ceil_mode) -> tuple | None:
    """The geometry as the kernel takes it, for plain ints and pairs of ints; None sends the call the long way."""
    pairs = [[v, v] if isinstance(v, int) else v for v in (kernel_size, stride, padding, dilation)]
    if not all(len(v) == 2 and all(isinstance(i, int) for i in v) for v in pairs):
        return None
    return *(list(v) for v in pairs), bool(ceil_mode)


def _checked(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, slower):
    name = "max_pool2d"
    kernel_size, padding, dilation = (
        _pair(what, value)
        for what, value in (("kernel_size", kernel_size), ("padding", padding), ("dilation", dilation))
    )
    stride = (
        kernel_size if stride is None or (isinstance(stride, (list, tuple)) and not stride) else _pair("stride", stride)
    )
    if input.dim() not in (3, 4):
        raise RuntimeError(
            f"{name}: non-empty 3D or 4D (batch mode) tensor expected for input, got {list(input.shape)}"
        )
    check_window(name, kernel_size, stride, padding, dilation)
    if 0 in input.shape[-3:]:
        raise RuntimeError(
            f"{name}: Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:"
            f"{list(input.shape)}"
        )
    output_size(name, input.shape[-3:], kernel_size, stride, padding, dilation, ceil_mode)
    geometry = (kernel_size, stride, padding, dilation, bool(ceil_mode))
    if not use_kernel(name, input, slower or (NATIVE_ON_CUDA if unmeasured_on_cuda(name, input) else "")):
        return F.max_pool2d(input, *geometry, return_indices=return_indices)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    arguments = (batched, *(list(g) for g in geometry[:4]), geometry[4])
    if not records(input):
        y, position = _forward(*arguments)
    elif return_indices:
        y, position = _MaxPool2d.apply(*arguments, True)
    else:
        y = _MaxPool2d.apply(*arguments)
    if not return_indices:
        return y if input.dim() == 4 else y.squeeze(0)
    indices = _indices(position, input.shape[-1], *geometry[:4])
    return (y, indices) if input.dim() == 4 else (y.squeeze(0), indices.squeeze(0))


def _pair(what: str, value) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(values, (tuple, list, torch.Size)) or not all(isinstance(v, (int, torch.SymInt)) for v in values):
        raise TypeError(
            f"max_pool2d: argument '{what}' must be int or tuple of ints, not {type(value).__name__} ({value!r})"
        )
    if len(values) not in (1, 2):
        raise RuntimeError(f"max_pool2d: {what} must either be a single int, or a tuple of two ints, got {value!r}")
    return values[0], values[-1]


def check_window(name: str, kernel_size, stride, padding, dilation) -> None:
    """Checks what needs no plane, and which ATen, too, checks first."""
    if min(kernel_size) <= 0:
        raise RuntimeError(
            f"{name}: stride should not be zero and kernel_size should be greater than zero, got "
            f"kernel_size={list(kernel_size)}, pad should be at most half of it"
        )
    if min(stride) <= 0:
        what = "stride should not be zero" if 0 in stride else "stride should be greater than zero"
        raise RuntimeError(f"{name}: {what}, but got dH: {stride[0]} dW: {stride[1]}")
    if min(padding) < 0:
        raise RuntimeError(f"{name}: pad must be non-negative, but got pad: {min(padding)}")
    if min(dilation) <= 0:
        raise RuntimeError(
            f"{name}: dilation should be greater than zero, but got dilationH: {dilation[0]} dilationW: {dilation[1]}"
        )
    if max(*kernel_size, *stride, *dilation) > 2**31 - 1:
        raise RuntimeError(
            f"{name}: value cannot be converted to type int without overflow, got kernel_size="
            f"{list(kernel_size)}, stride={list(stride)}, dilation={list(dilation)}"
        )
    for k, p, d in zip(kernel_size, padding, dilation, strict=True):
        if p > (d * (k - 1) + 1) // 2:
            raise RuntimeError(
                f"{name}: pad should be at most half of effective kernel size, but got pad={p}, "
                f"kernel_size={k} and dilation={d}"
            )


def output_size(
    name: str, plane: Sequence[int], kernel_size, stride, padding, dilation, ceil_mode: bool
) -> tuple[int, int]:
    """Checks the parameters against a ``(C, H, W)`` plane; returns the output's height and width."""
    check_window(name, kernel_size, stride, padding, dilation)
    out = []
    for size, k, s, p, d in zip(plane[1:], kernel_size, stride, padding, dilation, strict=True):
        n = (size + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (n - 1) * s >= size + p:
            n -= 1
        out.append(n)
    if min(out) < 1:
        raise RuntimeError(
            f"{name}: Given input size: ({'x'.join(map(str, plane))}). Calculated output size: "
            f"({plane[0]}x{out[0]}x{out[1]}). Output size is too small"
        )
    return out[0], out[1]


def position_dtype(kernel_size: Sequence[int]) -> torch.dtype:
    """The dtype in which the kernels save a position in the window."""
    return torch.uint8 if kernel_size[0] * kernel_size[1] <= 256 else torch.int32


def _indices(position: Tensor, width: int, kernel_size, stride, padding, dilation) -> Tensor:
    """Positions in the window -> indices in the flat ``(H, W)`` plane."""
    at = position.to(torch.int64)
    rows = torch.arange(at.shape[-2], device=at.device).unsqueeze(-1) * stride[0] - padding[0]
    columns = torch.arange(at.shape[-1], device=at.device) * stride[1] - padding[1]
    kh = at.div(kernel_size[1], rounding_mode="floor")
    return (rows + kh * dilation[0]) * width + columns + (at - kh * kernel_size[1]) * dilation[1]


_inner_forward, _inner_backward = inside(_forward), inside(_backward)


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, kernel_size, stride, padding, dilation, ceil_mode, positions=False):
        y, position = _inner_forward(input, kernel_size, stride, padding, dilation, ceil_mode)
        ctx.geometry = (kernel_size, stride, padding, dilation, ceil_mode)
        ctx.input_size = input.shape
        ctx.save_for_backward(position)
        if not positions:  # a result that nobody asks for costs microseconds in torch
            return y
        ctx.mark_non_differentiable(position)
        ctx.set_materialize_grads(False)
        return y, position

    @staticmethod
    def backward(ctx, grad, _=None):
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        if grad is None:
            return None, *nothing
        (position,) = ctx.saved_tensors
        if wants_graph():  # linear in grad: each window's gradient goes to its cell
            n, c, h, w = ctx.input_size
            indices = _indices(position, w, *ctx.geometry[:4]).reshape(n, c, -1)
            # Its shape by hand: a batch of gradients (is_grads_batched) knows no flatten.
            dx = grad.new_zeros(n, c, h * w).scatter_add(2, indices, grad.reshape(n, c, -1)).view(n, c, h, w)
        else:
            dx = _inner_backward(grad, position, ctx.input_size, *ctx.geometry)
        return dx, *nothing


_short = short(1, caller(_forward), applier(_MaxPool2d))
_short_on_cuda = short_on_cuda(1, caller(_forward), applier(_MaxPool2d))


def _like_layout(y: Tensor, other: Tensor) -> Tensor:
    last = other.is_contiguous(memory_format=torch.channels_last) and not other.is_contiguous()
    return torch.empty_like(y, memory_format=torch.channels_last) if last else y


@fake("maxpool2d_forward")
def _(input, kernel_size, stride, padding, dilation, ceil_mode):
    height, width = output_size("max_pool2d", input.shape[1:], kernel_size, stride, padding, dilation, ceil_mode)
    shape = (*input.shape[:2], height, width)
    position = input.new_empty(shape, dtype=position_dtype(kernel_size))
    return _like_layout(input.new_empty(shape), input), _like_layout(position, input)


@fake("maxpool2d_backward")
def _(grad, position, input_size, kernel_size, stride, padding, dilation, ceil_mode):
    return _like_layout(grad.new_empty(input_size), position)


register(
    OpSpec(
        name="max_pool2d",
        row="maxpool2d",
        function=max_pool2d,
        reference=F.max_pool2d,
        kernels=("maxpool2d_forward", "maxpool2d_backward"),
        samples=cases.samples,
        errors=cases.ERRORS,
        bench=cases.BENCH,
        flops=lambda sample: 0,  # it compares; its measure is bytes
    )
)
