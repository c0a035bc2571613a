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
STEPS = {size: Config(BB=16, BH=size, warps=warps, stages=1) for size, warps in ((16, 1), (32, 2), (64, 4), (128, 8))}
CELL = Config(BB=16, BH=32, BK=32, warps=4, stages=2)
GATES = Config(BLOCK=256, warps=4, stages=2)


@triton.jit
def _tanh(a):
    # (1 - t) / (1 + t) with t = exp(-2 |a|); near 0, where 1 - t cancels, five terms of the series
    t = tl.exp(-2 * tl.abs(a))
    far = tl.where(a < 0, -1.0, 1.0) * (1 - t) / (1 + t)
    s = a * a
    near = a * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    return tl.where(tl.abs(a) < 0.3, near, far)


@triton.jit
def _elman(a, RELU: tl.constexpr):
    if RELU:
        y = tl.where(a < 0, 0.0, a)
    else:
        y = _tanh(a)
    return y


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
    else:
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
