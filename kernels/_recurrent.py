"""The stack of recurrent layers in Triton: what rnn and gru share.   Contract and layout: csrc/contract/sequence.h.

A layer forward: one GEMM a direction for the inputs of all steps, then the steps. Up to a hidden size of 128 (64 for three
gates of float32) these are one launch: a program has some sequences of one direction, whose state stays in registers, and
W_hh stays on chip from the first step to the last. Above, a launch a step, whose programs share the hidden units.
Memory: a sequence's state is in registers, W_hh in shared memory; global memory sees x W_ih^T once (written by the GEMM in
float32, read by the steps), y and, for backward, r, z, n, W_hn h + b_hn: 4 H values a row.
A layer backward: the steps the other way round leave the gradients at both products; GEMMs over all rows do the rest.
"""

from __future__ import annotations

import torch
import triton

from ._gemm import gemm
from ._shared import Config, cdiv, implements, launch, precision
from ._steps import (
    CELL,
    GATES,
    STEPS,
    cell_forward_kernel,
    gates_backward_kernel,
    steps_backward_kernel,
    steps_forward_kernel,
)

__all__ = ["implement"]

# Bytes: a block may have 163 KB of shared memory on the smallest device, and needs some of them for the product.
ON_CHIP = 128 * 1024


def one_launch(gates: int, w_hh: torch.Tensor) -> tuple[Config, ...]:
    """The configurations for all steps in one launch; none where a launch a step is taken.

    That is up to a hidden size of 128, as long as W_hh stays in shared memory from the first step to the last: all but three
    gates of more than 64 in float32, of which not even the addresses, were they read again each step, would fit the registers.
    """
    size = max(16, triton.next_power_of_2(w_hh.shape[1]))
    return STEPS[size] if size in STEPS and gates * size**2 * w_hh.element_size() <= ON_CHIP else ()


def implement(row: str, gates: int) -> None:
    """Registers the launchers of ``row``'s four native ops."""
    stack = Stack(gates)
    implements(f"{row}_cell_forward")(stack.cell_forward)
    implements(f"{row}_cell_backward")(stack.cell_backward)
    implements(f"{row}_forward")(stack.forward)
    implements(f"{row}_backward")(stack.backward)


class Stack:
    def __init__(self, gates: int):
        self.G = gates

    # ------------------------------------------------------------------------------------------------ one step

    def step(self, x, w_ih, b_ih, h, w_hh, b_hh, y, state, kept, relu, allow_tf32=False):
        """y = cell(x, h). ``w_ih`` None: x is its product already. ``state`` None, or y in float32 too."""
        B, H = h.shape
        launch(
            cell_forward_kernel, lambda c: (cdiv(B, c["BB"]), cdiv(H, c["BH"])), CELL,
            x, *x.stride(), w_hh if w_ih is None else w_ih, *(w_hh if w_ih is None else w_ih).stride(),
            h if b_ih is None else b_ih, h, *h.stride(), w_hh, *w_hh.stride(), h if b_hh is None else b_hh, y, y.stride(0),
            y if state is None else state, y if kept is None else kept, B, x.shape[1], H,
            G=self.G, INPUT=w_ih is not None, BIAS=b_hh is not None, SAVE=kept is not None, STATE=state is not None, RELU=relu,
            PRECISION=precision(allow_tf32),
        )  # fmt: skip

    def step_gates(self, g, dh, h, y, kept, dxg, dhg, direct, relu):
        B, H = h.shape
        launch(
            gates_backward_kernel, lambda c: (B, cdiv(H, c["BLOCK"])), GATES,
            y if g is None else g, y.stride(0) if g is None else g.stride(0), y if dh is None else dh, h, *h.stride(),
            y, y.stride(0), y if kept is None else kept, dxg, dhg, direct, B, H,
            G=self.G, GY=g is not None, DH=dh is not None, RELU=relu,
        )  # fmt: skip

    def cell_forward(self, outputs, input, hx, w_ih, w_hh, b_ih, b_hh, relu, save):
        y, kept = outputs
        b_ih, b_hh = (None if b is None else b.contiguous() for b in (b_ih, b_hh))
        self.step(input, w_ih, b_ih, hx, w_hh, b_hh, y, None, kept if kept.numel() else None, relu)

    def cell_backward(self, outputs, grad, input, hx, w_ih, w_hh, output, reserve, bias, relu, need_input, need_weights,
                      allow_tf32=False):  # fmt: skip
        gx, ghx, *gw = outputs
        (B, H), G = hx.shape, self.G
        dxg = hx.new_empty((B, G * H))
        dhg = torch.empty_like(dxg) if G > 1 else dxg
        direct = hx.new_empty((B, H), dtype=torch.float32)
        self.step_gates(grad.contiguous(), None, hx, output, reserve, dxg, dhg, direct, relu)
        gemm(dhg, w_hh, ghx, plus=direct, allow_tf32=allow_tf32)
        if need_input:
            gemm(dxg, w_ih, gx, allow_tf32=allow_tf32)
        if need_weights:
            self.weights(gw, bias, input, hx, dxg, dhg, allow_tf32)

    def weights(self, gw, bias, x, before, dxg, dhg, allow_tf32):
        gemm(dxg.t(), x, gw[0], sums=gw[2] if bias else None, allow_tf32=allow_tf32)
        gemm(dhg.t(), before, gw[1], sums=gw[3] if bias else None, allow_tf32=allow_tf32)

    # ------------------------------------------------------------------------------------------------ sequences

    def forward(
        self, outputs, input, hx, weights, dropout, batch_sizes, bidirectional, bias, relu, save, allow_tf32=False
    ):
        y, hn, reserve = outputs
        p = Sequences(input, hx, weights, batch_sizes, bidirectional, bias)
        hidden, kept = p.saved(reserve, self.G) if save else (p.scratch_hidden(), None)
        x = input.reshape(p.rows, input.shape[-1])
        for layer in range(p.L):
            last = layer + 1 == p.L
            out = (y if last else hidden[layer]).view(p.rows, p.D, p.H)
            for d in range(p.D):
                at = layer * p.D + d
                w_ih, w_hh, b_ih, b_hh = p.weights(at)
                xg = hx.new_empty((p.rows, self.G * p.H), dtype=torch.float32)
                gemm(x, w_ih.t(), xg, bias=b_ih, allow_tf32=allow_tf32)
                keep = None if kept is None else kept[at]
                steps = self.steps_forward if one_launch(self.G, w_hh) else self.each_step_forward
                steps(p, d, xg, w_hh, b_hh, hx[at].contiguous(), out[:, d], hn[at], keep, relu, allow_tf32)
            if not last:
                x = p.layer_input(hidden[layer], dropout, layer + 1, input.dtype)

    def steps_forward(self, p, d, xg, w_hh, b_hh, hx, y, hn, kept, relu, allow_tf32):
        launch(
            steps_forward_kernel, lambda c: (cdiv(p.B, c["BB"]),), one_launch(self.G, w_hh),
            xg, w_hh, *w_hh.stride(), w_hh if b_hh is None else b_hh, hx, p.offsets(), y, y.stride(0), hn,
            xg if kept is None else kept, p.T, p.B, p.H,
            G=self.G, BIAS=b_hh is not None, SAVE=kept is not None, REVERSE=d == 1, RELU=relu,
            PRECISION=precision(allow_tf32),
        )  # fmt: skip

    def each_step_forward(self, p, d, xg, w_hh, b_hh, hx, y, hn, kept, relu, allow_tf32):
        state = hx.float()
        for t in p.order(d):
            rows, new = slice(p.first[t], p.first[t + 1]), state.clone()  # sequences that are not live keep theirs
            size = p.first[t + 1] - p.first[t]
            self.step(xg[rows], None, None, state[:size], w_hh, b_hh, y[rows], new, None if kept is None else kept[rows], relu,
                      allow_tf32)  # fmt: skip
            state = new
        hn.copy_(state)

    def backward(self, outputs, grad_output, grad_hn, input, hx, weights, dropout, batch_sizes, output, reserve, bidirectional,
                 bias, relu, need_input, need_weights, allow_tf32=False):  # fmt: skip
        gx, ghx, gw = outputs
        p = Sequences(input, hx, weights, batch_sizes, bidirectional, bias)
        hidden, kept = p.saved(reserve, self.G)
        y, gy = (None if t is None else t.reshape(p.rows, p.D, p.H) for t in (output, grad_output))
        ghn = None if grad_hn is None else grad_hn.contiguous()
        dxg = hx.new_empty((p.rows, self.G * p.H))
        dhg = torch.empty_like(dxg) if self.G > 1 else dxg
        before = hx.new_empty((p.rows, p.H))
        for layer in range(p.L - 1, -1, -1):
            first = layer == 0
            x = (
                input.reshape(p.rows, input.shape[-1])
                if first
                else p.layer_input(hidden[layer - 1], dropout, layer, input.dtype)
            )
            dx = None
            for d in range(p.D):
                at = layer * p.D + d
                w_ih, w_hh, _, _ = p.weights(at)
                steps = self.steps_backward if one_launch(self.G, w_hh) else self.each_step_backward
                steps(p, d, None if gy is None else gy[:, d], None if ghn is None else ghn[at], y[:, d], hx[at].contiguous(),
                      None if kept is None else kept[at], w_hh, dxg, dhg, before, ghx[at], relu, allow_tf32)  # fmt: skip
                if need_weights:
                    each = p.each
                    self.weights(gw[at * each : (at + 1) * each], bias, x, before, dxg, dhg, allow_tf32)
                if first and not need_input:
                    continue
                last = first and d + 1 == p.D
                out = gx.view(x.shape) if last else hx.new_empty(x.shape, dtype=torch.float32)
                gemm(dxg, w_ih, out, plus=dx, allow_tf32=allow_tf32)
                dx = out
            if not first:
                gy = dx if dropout is None else dx * dropout[layer - 1].reshape(dx.shape)
                gy, y = gy.view(p.rows, p.D, p.H), hidden[layer - 1].view(p.rows, p.D, p.H)

    def steps_backward(self, p, d, gy, ghn, y, hx, kept, w_hh, dxg, dhg, before, ghx, relu, allow_tf32):
        launch(
            steps_backward_kernel, lambda c: (cdiv(p.B, c["BB"]),), one_launch(self.G, w_hh),
            y if gy is None else gy, 0 if gy is None else gy.stride(0), hx if ghn is None else ghn, y, y.stride(0), hx,
            dxg if kept is None else kept, w_hh, *w_hh.stride(), p.offsets(), dxg, dhg, before, ghx, p.T, p.B, p.H,
            G=self.G, GY=gy is not None, GHN=ghn is not None, REVERSE=d == 1, RELU=relu,
            PRECISION=precision(allow_tf32),
        )  # fmt: skip

    def each_step_backward(self, p, d, gy, ghn, y, hx, kept, w_hh, dxg, dhg, before, ghx, relu, allow_tf32):
        dh = hx.new_zeros((p.B, p.H), dtype=torch.float32)
        if ghn is not None:
            dh.copy_(ghn)  # which is the caller's
        direct = torch.empty_like(dh)
        order = p.order(d)[::-1]
        for t, earlier in zip(order, [*order[1:], None], strict=True):
            rows, size = slice(p.first[t], p.first[t + 1]), p.first[t + 1] - p.first[t]
            came = 0 if earlier is None else min(size, p.first[earlier + 1] - p.first[earlier])
            before[rows][came:].copy_(hx[came:size])
            if came:
                before[rows][:came].copy_(y[p.first[earlier] : p.first[earlier] + came])
            self.step_gates(None if gy is None else gy[rows], dh, before[rows], y[rows], None if kept is None else kept[rows],
                            dxg[rows], dhg[rows], direct, relu)  # fmt: skip
            gemm(dhg[rows], w_hh, dh[:size], plus=direct, allow_tf32=allow_tf32)
        ghx.copy_(dh)


class Sequences:
    """The arguments of a sequence op, in the terms of csrc/contract/sequence.h."""

    def __init__(self, input, hx, weights, batch_sizes, bidirectional, bias):
        self.D, self.B, self.H = (2 if bidirectional else 1), hx.shape[1], hx.shape[2]
        self.L, self.each, self._weights, self.hx = hx.shape[0] // self.D, (4 if bias else 2), weights, hx
        sizes = [self.B] * input.shape[0] if batch_sizes is None else batch_sizes.tolist()
        self.T, self.first = len(sizes), [0]
        for size in sizes:
            self.first.append(self.first[-1] + size)
        self.rows = self.first[-1]
        self.dense, self._offsets = batch_sizes is None, None

    def offsets(self):
        if self._offsets is None:
            # Made on the device where all sequences are as long: a copy from the host could not be captured in a CUDA graph.
            steps = torch.arange(self.T + 1, device=self.hx.device) * self.B
            self._offsets = steps if self.dense else torch.tensor(self.first, device=self.hx.device)
        return self._offsets

    def order(self, direction: int) -> list[int]:
        return list(range(self.T))[:: -1 if direction else 1]

    def weights(self, at: int):
        """w_ih, w_hh, b_ih, b_hh of a layer and direction; None where there is no bias."""
        w_ih, w_hh, *b = self._weights[at * self.each : (at + 1) * self.each]
        return w_ih, w_hh, *((t.contiguous() for t in b) if b else (None, None))

    def scratch_hidden(self):
        return self.hx.new_empty((self.L - 1, self.rows, self.D * self.H), dtype=torch.float32)

    def saved(self, reserve, gates: int):
        """hidden [L - 1, rows, D * H], kept [L * D, rows, 4 * H]: parts of what forward saves for backward."""
        count = (self.L - 1) * self.rows * self.D * self.H
        kept = reserve[count:].view(self.L * self.D, self.rows, 4 * self.H) if gates > 1 else None
        return reserve[:count].view(self.L - 1, self.rows, self.D * self.H), kept

    def layer_input(self, hidden, dropout, layer: int, dtype):
        return (hidden if dropout is None else hidden * dropout[layer - 1].reshape(hidden.shape)).to(dtype)
