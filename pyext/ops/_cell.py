"""The cells of rnn and gru: one step, checked, recorded and left to native like every op."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..autograd import applier, differentiable_gradients, records, transforms, wants_graph
from ..dispatch import KNOWN, LONG, RECORDED, allow_tf32, direct, leave, native_wins, use_kernel
from . import _recurrent_func as func
from ._checks import only_tensors
from ._recurrent import GRAD, Recurrent, as_autocast, check_types

__all__ = ["cell"]


def cell(row: Recurrent, input: Tensor, hx: Tensor, w_ih, w_hh, b_ih, b_hh, relu: bool) -> Tensor:
    name, slower = row.cell_name, ""
    if name in KNOWN:
        slower = native_wins(name, (input, hx, w_ih, w_hh, b_ih, b_hh), row.nonlinearity(relu))
    way = LONG if is_compiling() else direct(name, input, hx, w_ih, w_hh, b_ih, b_hh)
    if way == LONG:
        only_tensors(name, 4, input=input, hx=hx, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
    if way:
        try:
            if slower:
                leave(name, slower)
                return row.native_cell(relu)(input, hx, w_ih, w_hh, b_ih, b_hh)
            if way == RECORDED:
                return _apply_cell(row, relu, input, hx, w_ih, w_hh, b_ih, b_hh)
            return row.cell_call(input, hx, w_ih, w_hh, b_ih, b_hh, relu, False)[0]
        except RuntimeError:
            pass  # said in words, or computed by ATen, below
    input, hx, w_ih, w_hh, b_ih, b_hh = tensors = as_autocast(row, input, hx, w_ih, w_hh, b_ih, b_hh)
    _check_cell(row, *tensors)
    if not use_kernel(name, input, "one bias of two" if (b_ih is None) != (b_hh is None) else slower):
        if transforms() - GRAD:  # native's cells have no batching rule
            return func.cell(row.gates, relu, *tensors)
        return row.native_cell(relu)(*tensors)
    if records(*tensors):
        return _Cell.apply(row, relu, *tensors)
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
    def forward(ctx, row, relu, *tensors):
        y, reserve = row.cell_forward(*tensors, relu, True)
        ctx.row, ctx.relu = row, relu
        ctx.save_for_backward(*tensors, y, reserve)
        return y

    @staticmethod
    def backward(ctx, grad):
        *tensors, y, reserve = ctx.saved_tensors
        need = ctx.needs_input_grad[2:]
        if wants_graph():
            return None, None, *differentiable_gradients(ctx.row.native_cell(ctx.relu), tensors, (grad,), need)
        grads = ctx.row.cell_backward(
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
        return None, None, *(g if n else None for g, n in zip(grads, need, strict=True))


_apply_cell = applier(_Cell)
