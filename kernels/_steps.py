"""The kernels of a recurrent layer's steps: all in one launch, or one; what rnn and gru share.   Layout: csrc/contract/sequence.h.

The gates are computed where the products' sums lie, in registers; no gate goes to memory but what backward will read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._shared import Config, add_product

__all__ = [
    "CELL",
    "GATES",
    "STEPS",
    "cell_forward_kernel",
    "gates_backward_kernel",
    "steps_backward_kernel",
    "steps_forward_kernel",
]

# Hidden units of a program -> its configuration; more than 128, and a state and three gates of them no longer fit the
# registers. 16 sequences are the fewest that tensor cores take; few, so that a batch reaches many multiprocessors. A warp for
# eight units, the width of one mma: with half as many warps, addresses and gates of three products did not fit the registers.
STEPS = {size: (Config(BB=16, BH=size, warps=size // 8, stages=1),) for size in (16, 32, 64, 128)}
CELL = (Config(BB=16, BH=32, BK=32, warps=4, stages=2),)
GATES = (Config(BLOCK=256, warps=4, stages=2),)


@triton.jit
def _tanh(a):
    # 1 - 2 t / (1 + t) with t = exp(-2 |a|), whose roundings weigh more the nearer to 0; below 1, where that comes to
    # 4 units in the last place, the Chebyshev fit of (tanh(a) / a - 1) / a^2 in a^2 on 0..1, which is 2e-9 from it
    t = tl.exp(-2 * tl.abs(a))
    far = tl.where(a < 0, -1.0, 1.0) * (1 - 2 * t / (1 + t))
    s = a * a
    p = -0.0087013211 + s * (0.0032118537 + s * (-0.00092714753 + s * 0.00014382882))
    p = -0.3333333317 + s * (0.1333331198 + s * (-0.0539636224 + s * (0.0218307777 + s * p)))
    return tl.where(tl.abs(a) < 1, a + a * (s * p), far)


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
def _block(w_ptr, wj, wk, H, BH: tl.constexpr):
    """[BH, BH]: a gate's block of W_hh, w_ptr at its first row; with the strides exchanged, its transpose."""
    j = tl.arange(0, BH)
    return tl.load(w_ptr + j[:, None] * wj + j[None, :] * wk, (j[:, None] < H) & (j[None, :] < H), 0.0)


@triton.jit
def _gate(h, w, b_ptr, g, H, BIAS: tl.constexpr, PRECISION: tl.constexpr, BH: tl.constexpr):
    """[BB, BH]: the state times the transpose w of one gate's block of W_hh, + b_hh."""
    j = tl.arange(0, BH)
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
    w = _block(w_ptr, wk, wj, H, BH)
    if G == 3:
        wz, wn = _block(w_ptr + H * wj, wk, wj, H, BH), _block(w_ptr + 2 * H * wj, wk, wj, H, BH)
    for i in range(T):
        t = T - 1 - i if REVERSE else i
        first = tl.load(offsets_ptr + t)
        valid = there & (b[:, None] < tl.load(offsets_ptr + t + 1) - first)
        row = first + b
        x = xg_ptr + (row * G)[:, None] * H + j[None, :]
        q = _gate(h, w, b_ptr, 0, H, BIAS, PRECISION, BH)
        if G == 1:
            new = _elman(tl.load(x, valid, 0.0) + q, RELU)
        else:
            qz = _gate(h, wz, b_ptr, 1, H, BIAS, PRECISION, BH)
            qn = _gate(h, wn, b_ptr, 2, H, BIAS, PRECISION, BH)
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
    w = _block(w_ptr, wj, wk, H, BH)
    if G == 3:
        wz, wn = _block(w_ptr + H * wj, wj, wk, H, BH), _block(w_ptr + 2 * H * wj, wj, wk, H, BH)
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
        new = tl.dot(dr.to(w.dtype), w, direct, input_precision=PRECISION)
        if G == 3:
            new = tl.dot(dz.to(w.dtype), wz, new, input_precision=PRECISION)
            new = tl.dot(dq.to(w.dtype), wn, new, input_precision=PRECISION)
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
        sum = add_product(sum, a.to(w.dtype), w, PRECISION)
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
        xz = _input(
            x_ptr, xb, xi, w_ih_ptr, ij, ii, b_ih_ptr, 1, b, j, B, I, H, valid, INPUT, BIAS, PRECISION, BB, BH, BK
        )
        xn = _input(
            x_ptr, xb, xi, w_ih_ptr, ij, ii, b_ih_ptr, 2, b, j, B, I, H, valid, INPUT, BIAS, PRECISION, BB, BH, BK
        )
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
