"""The stack of recurrent layers in Triton: what rnn and gru share.   Contract and layout: csrc/contract/sequence.h.

A layer forward: one GEMM a direction for the inputs of all steps, then the steps. Up to a hidden size of 128 these are one
launch: a program has some sequences of one direction, their state stays in registers, and W_hh is read where it was read the
step before, from the caches or shared memory. Above, a launch a step, whose programs share the hidden units.
A layer backward: the steps the other way round leave the gradients at both products; GEMMs over all rows do the rest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._gemm import gemm
from ._shared import Config, cdiv, implements, launch, precision

__all__ = ["implement"]

ONE_LAUNCH = 128  # hidden units of a program; more, and a state and three gates of them no longer fit the registers
# 16 sequences are the fewest that tensor cores take; few, so that a batch reaches many multiprocessors.
STEPS = {size: (Config(BB=16, BH=size, warps=warps, stages=1),) for size, warps in ((16, 1), (32, 2), (64, 4), (128, 8))}
CELL = (Config(BB=16, BH=32, BK=32, warps=4, stages=2),)
GATES = (Config(BLOCK=256, warps=4, stages=2),)


@triton.jit
def _tanh(a):
    # 1 - 2 t / (1 + t) with t = exp(-2 |a|); near 0, where that cancels, eight terms of the series: the next is 1e-8 of the sum
    t = tl.exp(-2 * tl.abs(a))
    far = tl.where(a < 0, -1.0, 1.0) * (1 - 2 * t / (1 + t))
    s = a * a
    p = 21844 / 6081075 + s * (-929569 / 638512875)
    p = -17 / 315 + s * (62 / 2835 + s * (-1382 / 155925 + s * p))
    near = a + a * (s * (-1 / 3 + s * (2 / 15 + s * p)))
    return tl.where(tl.abs(a) < 0.5, near, far)


@triton.jit
def _elman(a, RELU: tl.constexpr):
    return tl.where(a < 0, 0.0, a) if RELU else _tanh(a)


@triton.jit
def _gru(xr, xz, xn, q, h):
    # xr, xz: both products; h' = (1 - z) n + z h
    r, z = tl.sigmoid(xr), tl.sigmoid(xz)
    n = _tanh(xn + r * q)
    return r, z, n, n + z * (h - n)


@triton.jit
def _keep(kept_ptr, row, j, H, r, z, n, q, valid):
    at = kept_ptr + (row * 4)[:, None] * H + j[None, :]
    tl.store(at, r, valid)
    tl.store(at + H, z, valid)
    tl.store(at + 2 * H, n, valid)
    tl.store(at + 3 * H, q, valid)


@triton.jit
def _gate(h, w_ptr, wj, wk, b_ptr, g, H, BIAS: tl.constexpr, PRECISION: tl.constexpr, BH: tl.constexpr):
    """[BB, BH]: the state times the transpose of one gate's block of W_hh, all of which is read, + b_hh."""
    j = tl.arange(0, BH)
    inside = (j[:, None] < H) & (j[None, :] < H)
    w = tl.load(w_ptr + (g * H + j)[None, :] * wj + j[:, None] * wk, inside, 0.0)
    q = tl.dot(h.to(w.dtype), w, input_precision=PRECISION)
    if BIAS:
        q += tl.load(b_ptr + g * H + j, j < H, 0.0).to(tl.float32)[None, :]
    return q


@triton.jit
def steps_forward_kernel(
    xg_ptr,  # [rows, G * H] float32, x W_ih^T + b_ih
    w_ptr, wj, wk,  # [G * H, H]
    b_ptr,  # [G * H]
    hx_ptr,  # [B, H]
    offsets_ptr,  # [T + 1], first rows of the steps
    y_ptr, y_pitch,  # [rows, H], rows y_pitch apart
    hn_ptr,  # [B, H]
    kept_ptr,  # [rows, 4, H] float32
    T, B, H,
    G: tl.constexpr, BIAS: tl.constexpr, SAVE: tl.constexpr, REVERSE: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    b, j = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB), tl.arange(0, BH)
    state = b[:, None] * H + j[None, :]
    there = (b[:, None] < B) & (j[None, :] < H)
    h = tl.load(hx_ptr + state, there, 0.0).to(tl.float32)
    for i in range(T):
        t = T - 1 - i if REVERSE else i
        first = tl.load(offsets_ptr + t)
        valid = there & (b[:, None] < tl.load(offsets_ptr + t + 1) - first)
        row = first + b
        x = xg_ptr + (row * G)[:, None] * H + j[None, :]
        q = _gate(h, w_ptr, wj, wk, b_ptr, 0, H, BIAS, PRECISION, BH)
        if G == 1:
            new = _elman(tl.load(x, valid, 0.0) + q, RELU)
        else:
            qz = _gate(h, w_ptr, wj, wk, b_ptr, 1, H, BIAS, PRECISION, BH)
            qn = _gate(h, w_ptr, wj, wk, b_ptr, 2, H, BIAS, PRECISION, BH)
            r, z, n, new = _gru(
                tl.load(x, valid, 0.0) + q, tl.load(x + H, valid, 0.0) + qz, tl.load(x + 2 * H, valid, 0.0), qn, h
            )
            if SAVE:
                _keep(kept_ptr, row, j, H, r, z, n, qn, valid)
        h = tl.where(valid, new, h)
        tl.store(y_ptr + row[:, None] * y_pitch + j[None, :], h, valid)
    tl.store(hn_ptr + state, h, there)


@triton.jit
def _backward_gates(g, h, y, kept_ptr, row, j, H, valid, G: tl.constexpr, RELU: tl.constexpr):
    """Gradients at W_i x (dr, dz, dn) and, the last, at W_hn h; what reaches h beside the product."""
    if G == 1:
        passes = tl.where(y <= 0, 0.0, g) if RELU else g * (1 - y * y)
        return passes, passes, passes, passes, tl.zeros_like(g)
    at = kept_ptr + (row * 4)[:, None] * H + j[None, :]
    r, z = tl.load(at, valid, 0.0), tl.load(at + H, valid, 0.0)
    n, q = tl.load(at + 2 * H, valid, 0.0), tl.load(at + 3 * H, valid, 0.0)
    dn = g * (1 - z) * (1 - n * n)
    return dn * q * r * (1 - r), g * (h - n) * z * (1 - z), dn, dn * r, g * z


@triton.jit
def _store_gates(dxg_ptr, dhg_ptr, row, j, H, dr, dz, dn, dq, valid, G: tl.constexpr):
    at = (row * G)[:, None] * H + j[None, :]
    tl.store(dxg_ptr + at, dr, valid)
    if G == 3:
        tl.store(dxg_ptr + at + H, dz, valid)
        tl.store(dxg_ptr + at + 2 * H, dn, valid)
        tl.store(dhg_ptr + at, dr, valid)
        tl.store(dhg_ptr + at + H, dz, valid)
        tl.store(dhg_ptr + at + 2 * H, dq, valid)


@triton.jit
def _back(d, w_ptr, wj, wk, g, H, PRECISION: tl.constexpr, BH: tl.constexpr):
    """[BB, BH]: a gate's gradient times its block of W_hh."""
    j = tl.arange(0, BH)
    inside = (j[:, None] < H) & (j[None, :] < H)
    w = tl.load(w_ptr + (g * H + j)[:, None] * wj + j[None, :] * wk, inside, 0.0)
    return tl.dot(d.to(w.dtype), w, input_precision=PRECISION)


@triton.jit
def steps_backward_kernel(
    gy_ptr, gy_pitch,  # [rows, H], rows gy_pitch apart
    ghn_ptr,  # [B, H]
    y_ptr, y_pitch,  # [rows, H]
    hx_ptr,  # [B, H]
    kept_ptr,  # [rows, 4, H] float32
    w_ptr, wj, wk,  # [G * H, H]
    offsets_ptr,  # [T + 1]
    dxg_ptr, dhg_ptr,  # [rows, G * H]; one and the same for rnn
    before_ptr,  # [rows, H]: the state before each step
    ghx_ptr,  # [B, H]
    T, B, H,
    G: tl.constexpr, GY: tl.constexpr, GHN: tl.constexpr, REVERSE: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    b, j = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB), tl.arange(0, BH)
    state = b[:, None] * H + j[None, :]
    there = (b[:, None] < B) & (j[None, :] < H)
    hx = tl.load(hx_ptr + state, there, 0.0).to(tl.float32)
    dh = tl.zeros((BB, BH), tl.float32)
    if GHN:
        dh += tl.load(ghn_ptr + state, there, 0.0).to(tl.float32)
    for i in range(T):
        t = i if REVERSE else T - 1 - i
        first = tl.load(offsets_ptr + t)
        valid = there & (b[:, None] < tl.load(offsets_ptr + t + 1) - first)
        row = first + b
        g = dh
        if GY:
            g += tl.load(gy_ptr + row[:, None] * gy_pitch + j[None, :], valid, 0.0).to(tl.float32)
        # The step before this one, of those sequences that it changed; they began with hx.
        earlier = t + 1 if REVERSE else t - 1
        exists = (earlier >= 0) & (earlier < T)
        start = tl.load(offsets_ptr + earlier, exists, 0)
        came = valid & (b[:, None] < tl.load(offsets_ptr + earlier + 1, exists, 0) - start)
        h = tl.load(y_ptr + (start + b)[:, None] * y_pitch + j[None, :], came, 0.0).to(tl.float32)
        h = tl.where(came, h, hx)
        y = tl.load(y_ptr + row[:, None] * y_pitch + j[None, :], valid, 0.0).to(tl.float32)
        dr, dz, dn, dq, direct = _backward_gates(g, h, y, kept_ptr, row, j, H, valid, G, RELU)
        _store_gates(dxg_ptr, dhg_ptr, row, j, H, dr, dz, dn, dq, valid, G)
        tl.store(before_ptr + row[:, None] * H + j[None, :], h, valid)
        new = direct + _back(dr, w_ptr, wj, wk, 0, H, PRECISION, BH)
        if G == 3:
            new += _back(dz, w_ptr, wj, wk, 1, H, PRECISION, BH)
            new += _back(dq, w_ptr, wj, wk, 2, H, PRECISION, BH)
        dh = tl.where(valid, new, dh)
    tl.store(ghx_ptr + state, dh, there)


@triton.jit
def _product(a_ptr, am, ak, w_ptr, wj, wk, b, j, B, columns, K,
             PRECISION: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """[BB, BH]: rows b of a times the transpose of rows j of w, over all K."""
    sum = tl.zeros((BB, BH), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        w = tl.load(w_ptr + j[None, :] * wj + k[:, None] * wk, (j[None, :] < columns) & (k[:, None] < K), 0.0)
        a = tl.load(a_ptr + b[:, None] * am + k[None, :] * ak, (b[:, None] < B) & (k[None, :] < K), 0.0)
        sum = tl.dot(a.to(w.dtype), w, sum, input_precision=PRECISION)
    return sum


@triton.jit
def cell_forward_kernel(
    x_ptr, xb, xi,  # [B, I]; without INPUT: [B, G * H] float32, x W_ih^T + b_ih
    w_ih_ptr, ij, ii,  # [G * H, I]
    b_ih_ptr,  # [G * H]
    h_ptr, hb, hj,  # [B, H]
    w_ptr, wj, wk,  # [G * H, H]
    b_ptr,  # [G * H]
    y_ptr, y_pitch,  # [B, H], rows y_pitch apart
    state_ptr,  # [B, H] float32: y once more
    kept_ptr,  # [B, 4, H] float32
    B, I, H,
    G: tl.constexpr, INPUT: tl.constexpr, BIAS: tl.constexpr, SAVE: tl.constexpr, STATE: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    b, j = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB), tl.program_id(1) * BH + tl.arange(0, BH)
    valid = (b[:, None] < B) & (j[None, :] < H)
    # A row past H is the next gate's, or no row: what it gives is not stored.
    q = _product(h_ptr, hb, hj, w_ptr, wj, wk, b, j, B, H, H, PRECISION, BB, BH, BK)
    if BIAS:
        q += tl.load(b_ptr + j, j < H, 0.0).to(tl.float32)[None, :]
    x = _input(x_ptr, xb, xi, w_ih_ptr, ij, ii, b_ih_ptr, 0, b, j, B, I, H, valid, INPUT, BIAS, PRECISION, BB, BH, BK)
    if G == 1:
        new = _elman(x + q, RELU)
    else:
        qz = _product(h_ptr, hb, hj, w_ptr + H * wj, wj, wk, b, j, B, H, H, PRECISION, BB, BH, BK)
        qn = _product(h_ptr, hb, hj, w_ptr + 2 * H * wj, wj, wk, b, j, B, H, H, PRECISION, BB, BH, BK)
        if BIAS:
            qz += tl.load(b_ptr + H + j, j < H, 0.0).to(tl.float32)[None, :]
            qn += tl.load(b_ptr + 2 * H + j, j < H, 0.0).to(tl.float32)[None, :]
        xz = _input(x_ptr, xb, xi, w_ih_ptr, ij, ii, b_ih_ptr, 1, b, j, B, I, H, valid, INPUT, BIAS, PRECISION, BB, BH, BK)
        xn = _input(x_ptr, xb, xi, w_ih_ptr, ij, ii, b_ih_ptr, 2, b, j, B, I, H, valid, INPUT, BIAS, PRECISION, BB, BH, BK)
        h = tl.load(h_ptr + b[:, None] * hb + j[None, :] * hj, valid, 0.0).to(tl.float32)
        r, z, n, new = _gru(x + q, xz + qz, xn, qn, h)
        if SAVE:
            _keep(kept_ptr, b, j, H, r, z, n, qn, valid)
    tl.store(y_ptr + b[:, None] * y_pitch + j[None, :], new, valid)
    if STATE:
        tl.store(state_ptr + b[:, None] * H + j[None, :], new, valid)


@triton.jit
def _input(x_ptr, xb, xi, w_ptr, ij, ii, b_ptr, g, b, j, B, I, H, valid, INPUT: tl.constexpr, BIAS: tl.constexpr,
           PRECISION: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    if INPUT:
        x = _product(x_ptr, xb, xi, w_ptr + g * H * ij, ij, ii, b, j, B, H, I, PRECISION, BB, BH, BK)
        if BIAS:
            x += tl.load(b_ptr + g * H + j, j < H, 0.0).to(tl.float32)[None, :]
    else:
        x = tl.load(x_ptr + b[:, None] * xb + (g * H + j)[None, :] * xi, valid, 0.0)
    return x


@triton.jit
def gates_backward_kernel(
    g_ptr, g_pitch,  # [B, H], rows g_pitch apart
    dh_ptr,  # [B, H] float32, added to g
    h_ptr, hb, hj,  # [B, H]
    y_ptr, y_pitch,  # [B, H]
    kept_ptr,  # [B, 4, H] float32
    dxg_ptr, dhg_ptr,  # [B, G * H]
    direct_ptr,  # [B, H] float32: what reaches h beside the product
    B, H,
    G: tl.constexpr, GY: tl.constexpr, DH: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) + tl.zeros((1,), tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = (b[:, None] < B) & (j[None, :] < H)
    g = tl.zeros((1, BLOCK), tl.float32)
    if GY:
        g += tl.load(g_ptr + b[:, None] * g_pitch + j[None, :], valid, 0.0).to(tl.float32)
    if DH:
        g += tl.load(dh_ptr + b[:, None] * H + j[None, :], valid, 0.0)
    h = tl.load(h_ptr + b[:, None] * hb + j[None, :] * hj, valid, 0.0).to(tl.float32)
    y = tl.load(y_ptr + b[:, None] * y_pitch + j[None, :], valid, 0.0).to(tl.float32)
    dr, dz, dn, dq, direct = _backward_gates(g, h, y, kept_ptr, b, j, H, valid, G, RELU)
    _store_gates(dxg_ptr, dhg_ptr, b, j, H, dr, dz, dn, dq, valid, G)
    tl.store(direct_ptr + b[:, None] * H + j[None, :], direct, valid)


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

    def forward(self, outputs, input, hx, weights, dropout, batch_sizes, bidirectional, bias, relu, save, allow_tf32=False):
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
                steps = self.steps_forward if p.H <= ONE_LAUNCH else self.each_step_forward
                steps(p, d, xg, w_hh, b_hh, hx[at].contiguous(), out[:, d], hn[at], keep, relu, allow_tf32)
            if not last:
                x = p.layer_input(hidden[layer], dropout, layer + 1, input.dtype)

    def steps_forward(self, p, d, xg, w_hh, b_hh, hx, y, hn, kept, relu, allow_tf32):
        launch(
            steps_forward_kernel, lambda c: (cdiv(p.B, c["BB"]),), STEPS[max(16, triton.next_power_of_2(p.H))],
            xg, w_hh, *w_hh.stride(), w_hh if b_hh is None else b_hh, hx, p.offsets(), y, y.stride(0), hn,
            xg if kept is None else kept, p.T, p.B, p.H,
            G=self.G, BIAS=b_hh is not None, SAVE=kept is not None, REVERSE=d == 1, RELU=relu, PRECISION=precision(allow_tf32),
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
            x = input.reshape(p.rows, input.shape[-1]) if first else p.layer_input(hidden[layer - 1], dropout, layer, input.dtype)
            dx = None
            for d in range(p.D):
                at = layer * p.D + d
                w_ih, w_hh, _, _ = p.weights(at)
                steps = self.steps_backward if p.H <= ONE_LAUNCH else self.each_step_backward
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
            steps_backward_kernel, lambda c: (cdiv(p.B, c["BB"]),), STEPS[max(16, triton.next_power_of_2(p.H))],
            y if gy is None else gy, 0 if gy is None else gy.stride(0), hx if ghn is None else ghn, y, y.stride(0), hx,
            dxg if kept is None else kept, w_hh, *w_hh.stride(), p.offsets(), dxg, dhg, before, ghx, p.T, p.B, p.H,
            G=self.G, GY=gy is not None, GHN=ghn is not None, REVERSE=d == 1, RELU=relu, PRECISION=precision(allow_tf32),
        )  # fmt: skip

    def each_step_backward(self, p, d, gy, ghn, y, hx, kept, w_hh, dxg, dhg, before, ghx, relu, allow_tf32):
        dh = hx.new_zeros((p.B, p.H), dtype=torch.float32) if ghn is None else ghn.float()
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
        self._offsets = None

    def offsets(self):
        if self._offsets is None:
            self._offsets = torch.tensor(self.first, device=self.hx.device)
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
