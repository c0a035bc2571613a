"""The cells of rnn and gru: one step, checked, recorded and left to native like every op."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import _native
from ..autograd import applier, caller, differentiable_gradients, records, transforms, wants_graph
from ..dispatch import (
    AMX,
    KNOWN,
    NATIVE_ON_CUDA,
    allow_tf32,
    by_default,
    leave,
    native_wins,
    short,
    short_on_cuda,
    unmeasured_on_cuda,
    use_kernel,
)
from . import _recurrent_func as func
from ._checks import only_tensors
from ._recurrent import GRAD, Recurrent, as_autocast, check_types

__all__ = ["cell_of"]

#: Multiply-adds from which native's cell is taken to be faster on a GPU: at 2^24 ours was 3 times as fast.
LARGE_ON_CUDA = 2**26
#: Elements of weights from which native's cell in float16 is ahead on a processor with AMX.
MANY_IN_HALF = 2**18


def cell_of(row: Recurrent) -> Callable[..., Tensor]:
    """The row's cell: a function of input, hx, w_ih, w_hh, b_ih, b_hh and whether the nonlinearity is ReLU."""
    name = row.cell_name
    kernel = caller(row.cell_forward), partial(_apply, row)
    ours, ours_on_cuda = short(6, *kernel), short_on_cuda(6, *kernel)
    native = [short(6, f, f) for f in map(row.native_cell, (False, True))]

    def cell(input: Tensor, hx: Tensor, w_ih, w_hh, b_ih, b_hh, relu: bool) -> Tensor:
        tensors, slower = (input, hx, w_ih, w_hh, b_ih, b_hh), ""
        if name in KNOWN:
            slower = native_wins(name, tensors, row.nonlinearity(relu))
        if AMX and not slower:
            slower = _rule_in_half(name, input, w_ih, w_hh)
        if not is_dynamo_compiling():
            y = native[relu](name, *tensors) if slower else ours(name, *tensors, relu, False)
            if y is None and not (slower or _rule_on_cuda(name, input, w_ih, w_hh)):
                y = ours_on_cuda(name, *tensors, relu, False)
            if y is not None:
                if slower:
                    leave(name, slower)
                return y
        only_tensors(name, 4, input=input, hx=hx, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
        slower = slower or _rule_on_cuda(name, input, w_ih, w_hh)
        return _checked(row, relu, slower, *tensors)

    return cell


def _rule_in_half(name: str, input: Tensor, w_ih: Tensor, w_hh: Tensor) -> str:
    """Each call of ours casts the weights: on an Emerald Rapids 0.6-1.0 as fast as native's from 256 hidden units on."""
    if getattr(input, "dtype", None) != torch.float16 or not (input.is_cpu and by_default(name)):
        return ""
    many = w_ih.numel() + w_hh.numel() >= MANY_IN_HALF and _native.isa_active().startswith("avx512")
    return "float16, of which ours casts all weights in each call" if many else ""


def _rule_on_cuda(name: str, input: Tensor, w_ih: Tensor, w_hh: Tensor) -> str:
    """Native's cell is several launches, ours is one, whose products are slower than cuBLAS's."""
    if unmeasured_on_cuda(name, input) and input.shape[0] * (w_ih.numel() + w_hh.numel()) >= LARGE_ON_CUDA:
        return NATIVE_ON_CUDA
    return ""


def _checked(row: Recurrent, relu: bool, slower: str, *tensors) -> Tensor:
    input, hx, w_ih, w_hh, b_ih, b_hh = tensors = as_autocast(row, *tensors)
    _check_cell(row, *tensors)
    if not use_kernel(row.cell_name, input, "one bias of two" if (b_ih is None) != (b_hh is None) else slower):
        if transforms() - GRAD:  # native's cells have no batching rule
            return func.cell(row.gates, relu, *tensors)
        return row.native_cell(relu)(*tensors)
    if records(*tensors):
        return _Cell.apply(row, *tensors, relu, True)
    return row.cell_forward(*tensors, relu, False)[0]


def _check_cell(row: Recurrent, input, hx, w_ih, w_hh, b_ih, b_hh) -> None:
    name = f"{row.name}_cell"
    if input.dim() != 2 or hx.dim() != 2:
        raise RuntimeError(
            f"{name}: input (B, I) and hx (B, H) are needed, got input {list(input.shape)}, hx {list(hx.shape)}"
        )
    if w_ih.dim() != 2 or w_hh.dim() != 2:
        raise RuntimeError(f"{name}: w_ih and w_hh need 2 dimensions, got {list(w_ih.shape)} and {list(w_hh.shape)}")
    (batch, features), hidden = input.shape, w_hh.shape[1]
    if features != w_ih.shape[1]:
        raise RuntimeError(f"{name}: input has inconsistent input_size: got {features} expected {w_ih.shape[1]}")
    if hx.shape[1] != hidden:
        raise RuntimeError(f"{name}: hidden0 has inconsistent hidden_size: got {hx.shape[1]}, expected {hidden}")
    if hx.shape[0] != batch:
        raise RuntimeError(f"{name}: Input batch size {batch} doesn't match hidden0 batch size {hx.shape[0]}")
    for what, t in (("weight_ih", w_ih), ("weight_hh", w_hh), ("bias_ih", b_ih), ("bias_hh", b_hh)):
        if t is not None and (t.shape[0] if t.dim() else 0) != row.gates * hidden:
            raise RuntimeError(
                f"{name}: {what} first dim must be {row.gates} * hidden_size = {row.gates * hidden}, but got "
                f"{list(t.shape)}: must match the existing size"
            )
    check_types(name, input, hx, w_ih, w_hh, b_ih, b_hh)


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row, *arguments):
        *tensors, relu, _ = arguments
        y, reserve = row.inner_cell_forward(*tensors, relu, True)
        ctx.row, ctx.relu = row, relu
        ctx.save_for_backward(*tensors, y, reserve)
        return y

    @staticmethod
    def backward(ctx, grad):
        *tensors, y, reserve = ctx.saved_tensors
        need = ctx.needs_input_grad[1:7]
        if wants_graph():
            native = ctx.row.native_cell(ctx.relu)
            return None, *differentiable_gradients(native, tensors, (grad,), need), None, None
        grads = ctx.row.inner_cell_backward(
            grad,
            *tensors[:4],
            y,
            reserve,
            tensors[4] is not None,
            ctx.relu,
            need[0],
            any(need[2:]),
            allow_tf32(grad),  # native's cells, too, are matrix products and no part of cudnn
        )
        return None, *(g if n else None for g, n in zip(grads, need, strict=True)), None, None


_apply = applier(_Cell)
