"""What the recurrent ops return, without values: for tracing."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..spec import fake, like

if TYPE_CHECKING:
    from ._recurrent import Recurrent

__all__ = ["register_fakes"]


def register_fakes(row: Recurrent) -> None:
    """Registers them for the ops of a row and of its cell."""

    def compute(t: Tensor) -> torch.dtype:
        return torch.float64 if t.dtype == torch.float64 else torch.float32

    @fake(f"{row.name}_cell_forward")
    def _(input, hx, w_ih, w_hh, b_ih, b_hh, relu, save):
        count = hx.shape[0] * 4 * hx.shape[1] if save and row.saves_gates else 0
        return hx.new_empty(hx.shape), hx.new_empty((count,), dtype=compute(hx))

    @fake(f"{row.name}_cell_backward")
    def _(grad, input, hx, w_ih, w_hh, output, reserve, bias, relu, need_input, need_weights, allow_tf32=False):
        biases = [w_ih.new_empty((w_ih.shape[0] if need_weights and bias else 0,)) for _ in range(2)]
        return (
            like(need_input, input),
            hx.new_empty(hx.shape),
            like(need_weights, w_ih),
            like(need_weights, w_hh),
            *biases,
        )

    @fake(f"{row.name}_forward")
    def _(input, hx, weights, dropout, batch_sizes, bidirectional, bias, relu, save, allow_tf32=False, index=None):
        directions, hidden = (2 if bidirectional else 1), hx.shape[2]
        lead = input.shape[:-1] if index is None else index.shape
        rows = prod(lead)  # not Size.numel(), which would fix a size that is to stay open
        count = (hx.shape[0] // directions - 1) * rows * directions * hidden
        if row.saves_gates:
            count = count + hx.shape[0] * rows * 4 * hidden
        return (
            input.new_empty((*lead, directions * hidden)),
            hx.new_empty(hx.shape),
            hx.new_empty((count if save else 0,), dtype=compute(hx)),
        )

    @fake(f"{row.name}_backward")
    def _(
        grad_output,
        grad_hn,
        input,
        hx,
        weights,
        dropout,
        batch_sizes,
        output,
        reserve,
        bidirectional,
        bias,
        relu,
        need_input,
        need_weights,
        allow_tf32=False,
        index=None,
    ):
        return (
            like(need_input, input),
            hx.new_empty(hx.shape),
            [w.new_empty(w.shape) for w in weights] if need_weights else [],
        )
