"""conv2d, + ReLU, + ReLU + max pool.   Formulas and shapes: csrc/contract/conv2d.h.

Three implicit GEMMs, a group a program's third index; no patch is ever written to memory:
  y [cells, K]    = patches of x [cells, taps]  w^T [taps, K]       taps = (c, kh, kw)
  dx[cells, C]    = patches of g [cells, taps]  w'  [taps, C]       taps = (k, kh, kw)
  dw[K, taps]     = g^T [K, cells]  patches of x [cells, taps];     db = sums of g^T's rows
Before a pool, a program computes its cells once for each place of the pool's window and keeps the largest: windows that do
not overlap cost nothing extra. The weights' gradient is cut along the cells into shares that are added in one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._shared import Config, add_product, cdiv, first, implements, launch, precision
from .maxpool2d import unpool

# Cells by channels. A course network has 10 to 32 channels: a block no wider than they are wastes none of its product.
# A patch's value has an address and a mask of its own: 64 x 32 of them are eight a thread of eight warps. 128 x 32, or four
# warps, would not fit the registers (up to 840 bytes a thread went to memory).
CELLS = tuple(Config(BM=64, BN=size, BK=32, warps=8, stages=3) for size in (16, 32, 64))
# Channels by taps, for the weights: both are few, the cells are many and come in shares.
TAPS = (Config(BM=16, BN=64, BK=64, warps=8, stages=3), Config(BM=64, BN=64, BK=32, warps=8, stages=3))
SHARE_CELLS = 1024  # of a share at least: fewer, and adding the shares costs as much as the product
BLOCKS = 256  # about two for each multiprocessor of a large device


def narrowest(configs, name: str, size: int):
    """In front the first configuration that spans ``size``, else the widest."""
    return first(next((c for c in configs if size <= c[name]), configs[-1]), configs)


@triton.jit
def _taps(k, KH: tl.constexpr, KW: tl.constexpr):
    """Flat tap -> channel, kh, kw."""
    return k // (KH * KW), k // KW % KH, k % KW


@triton.jit
def _cells(begin, i, H, W):
    """The flat cells begin + i -> n, h, w. One division of 64 bits, which takes a hundred instructions, for all of them."""
    n = begin // (H * W)
    at = (begin - n * (H * W)).to(tl.int32) + i
    return n + at // (H * W), at // W % H, at % W


@triton.jit
def _offset(n, h, w, sn, sh, sw):
    """Where [n, h, w] lies, in 64 bits: a stride may be longer than 2^31 / H."""
    return n * sn + h.to(tl.int64) * sh + w.to(tl.int64) * sw


@triton.jit
def _patch(x_ptr, xn, xc, xh, xw, n, top, left, there, k, taps, channel, H, W, DH, DW,
           KH: tl.constexpr, KW: tl.constexpr):  # fmt: skip
    """[cells, taps] of x: what the tap k of the window at (top, left) sees, 0 outside.

    Where a value lies is the cell's offset plus the tap's: one addition for each of cells x taps.
    """
    c, kh, kw = _taps(k, KH, KW)
    h, w = top[:, None] + (kh * DH)[None, :], left[:, None] + (kw * DW)[None, :]
    inside = there[:, None] & (k < taps)[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    at = _offset(n, top, left, xn, xh, xw)[:, None] + _offset(channel + c, kh * DH, kw * DW, xc, xh, xw)[None, :]
    return tl.load(x_ptr + at, inside, 0.0)


@triton.jit
def conv_forward_kernel(
    x_ptr, xn, xc, xh, xw,  # [N, C, H, W] and its strides
    w_ptr, wk, wc, wh, ww,  # [K, C / G, KH, KW]
    bias_ptr, bias_step,  # [K]
    y_ptr, yn, yk, yh, yw,  # [N, K, OH, OW], or pooled
    position_ptr,  # pooled: [N, K, results], dense
    cells, C, K, H, W, OH, OW, RH, RW, SH, SW, PT, PL, DH, DW,  # C, K of a group; convolution OH x OW, results RH x RW
    pool_sh, pool_sw, pool_ph, pool_pw,
    KH: tl.constexpr, KW: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, POOL: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * BM
    m = begin + tl.arange(0, BM)
    o = tl.program_id(1) * BN + tl.arange(0, BN)  # of the group's outputs
    group = tl.program_id(2).to(tl.int64)
    taps = C * KH * KW
    n, rh, rw = _cells(begin, tl.arange(0, BM), RH, RW)
    bias = tl.zeros((BN,), tl.float32)
    if BIAS:
        bias += tl.load(bias_ptr + (group * K + o) * bias_step, o < K, 0.0).to(tl.float32)
    best = tl.full((BM, BN), float("-inf"), tl.float32)
    position = tl.full((BM, BN), -1, tl.int32)
    for p in range(POOL_H * POOL_W):
        oh, ow = rh * pool_sh - pool_ph + p // POOL_W, rw * pool_sw - pool_pw + p % POOL_W
        there = (m < cells) & (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
        sum = tl.zeros((BM, BN), tl.float32)
        for k0 in range(0, taps, BK):
            k = k0 + tl.arange(0, BK)
            a = _patch(
                x_ptr, xn, xc, xh, xw, n, oh * SH - PT, ow * SW - PL, there, k, taps, group * C, H, W, DH, DW, KH, KW
            )
            c, kh, kw = _taps(k, KH, KW)
            of_tap = c * wc + kh * wh + kw * ww
            b = tl.load(
                w_ptr + of_tap[:, None] + ((group * K + o) * wk)[None, :], (k < taps)[:, None] & (o < K)[None, :], 0.0
            )
            sum = add_product(sum, a, b, PRECISION)
        sum += bias[None, :]
        # as max_pool2d: the first of equals, the last NaN, the first cell of a window of -inf
        wins = there[:, None] & ((sum > best) | (sum != sum) | (position < 0))
        best = tl.where(wins, sum, best)
        position = tl.where(wins, p, position)
    if RELU:
        best = tl.where(best < 0, 0.0, best)
    valid = (m < cells)[:, None] & (o < K)[None, :]
    channel = (group * K + o)[None, :]
    tl.store(y_ptr + _offset(n, rh, rw, yn, yh, yw)[:, None] + channel * yk, best, valid)
    if POOL:
        groups = tl.num_programs(2)
        at = ((n * groups * K)[:, None] + channel) * (RH * RW) + (rh * RW + rw)[:, None]
        tl.store(position_ptr + at, tl.maximum(position, 0), valid)


@triton.jit
def conv_input_kernel(
    g_ptr, gn, gk, gh, gw,  # [N, K, OH, OW] and its strides
    w_ptr, wk, wc, wh, ww,  # [K, C / G, KH, KW]
    dx_ptr, xn, xc, xh, xw,  # [N, C, H, W]
    cells, C, K, H, W, OH, OW, SH, SW, PT, PL, DH, DW,  # C, K of a group
    KH: tl.constexpr, KW: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * BM
    m = begin + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    group = tl.program_id(2).to(tl.int64)
    taps = K * KH * KW
    n, h, w = _cells(begin, tl.arange(0, BM), H, W)
    sum = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, taps, BK):
        k = k0 + tl.arange(0, BK)
        o, kh, kw = _taps(k, KH, KW)
        # oh SH = h + PT - kh DH
        top, left = (h + PT)[:, None] - (kh * DH)[None, :], (w + PL)[:, None] - (kw * DW)[None, :]
        oh, ow = top // SH, left // SW
        meets = (top >= 0) & (left >= 0) & (oh * SH == top) & (ow * SW == left) & (oh < OH) & (ow < OW)
        meets = meets & (m < cells)[:, None] & (k < taps)[None, :]
        channel = (group * K + o)[None, :]
        a = tl.load(g_ptr + channel * gk + _offset(n[:, None], oh, ow, gn, gh, gw), meets, 0.0)
        of_tap = (group * K + o) * wk + kh * wh + kw * ww
        b = tl.load(w_ptr + of_tap[:, None] + (c * wc)[None, :], (k < taps)[:, None] & (c < C)[None, :], 0.0)
        sum = add_product(sum, a, b, PRECISION)
    at = _offset(n, h, w, xn, xh, xw)[:, None] + ((group * C + c) * xc)[None, :]
    tl.store(dx_ptr + at, sum, (m < cells)[:, None] & (c < C)[None, :])


@triton.jit
def conv_weight_kernel(
    g_ptr, gn, gk, gh, gw,  # [N, K, OH, OW] and its strides
    x_ptr, xn, xc, xh, xw,  # [N, C, H, W]
    dw_ptr,  # [shares, G * K, taps] float32
    db_ptr,  # [shares, G * K] float32
    cells, share, groups, C, K, H, W, OH, OW, SH, SW, PT, PL, DH, DW,  # C, K of a group
    KH: tl.constexpr, KW: tl.constexpr, WEIGHT: tl.constexpr, SUMS: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * BM + tl.arange(0, BM)
    t = tl.program_id(1) * BN + tl.arange(0, BN)
    group, number = (tl.program_id(2) % groups).to(tl.int64), (tl.program_id(2) // groups).to(tl.int64)
    taps = C * KH * KW
    product = tl.zeros((BM, BN), tl.float32)
    sums = tl.zeros((BM,), tl.float32)
    for k0 in range(0, share, BK):
        i = k0 + tl.arange(0, BK)
        there = (number * share + i < cells) & (i < share)
        n, oh, ow = _cells(number * share, i, OH, OW)
        valid = (o < K)[:, None] & there[None, :]
        channel = (group * K + o)[:, None]
        a = tl.load(g_ptr + channel * gk + _offset(n, oh, ow, gn, gh, gw)[None, :], valid, 0.0)
        if WEIGHT:
            b = _patch(
                x_ptr, xn, xc, xh, xw, n, oh * SH - PT, ow * SW - PL, there, t, taps, group * C, H, W, DH, DW, KH, KW
            )
            product = add_product(product, a, b, PRECISION)
        if SUMS:
            sums += tl.sum(a.to(tl.float32), 1)
    row = (number * groups + group) * K + o
    if WEIGHT:
        tl.store(dw_ptr + row[:, None] * taps + t[None, :], product, (o < K)[:, None] & (t < taps)[None, :])
    if SUMS and tl.program_id(1) == 0:
        tl.store(db_ptr + row, sums, o < K)


@implements("conv2d_forward")
def forward(outputs, input, weight, bias, stride, padding, dilation, groups, relu, pool, allow_tf32=False):
    y, position = outputs
    C, K, size = weight.shape[1], weight.shape[0] // groups, _plane(input, weight, stride, padding, dilation)
    ph, pw, *rest = pool or (1, 1, 1, 1, 0, 0)
    cells = y.shape[0] * y.shape[2] * y.shape[3]
    launch(
        conv_forward_kernel, lambda c: (cdiv(cells, c["BM"]), cdiv(K, c["BN"]), groups), narrowest(CELLS, "BN", K),
        input, *input.stride(), weight, *weight.stride(), weight if bias is None else bias, 0 if bias is None else bias.stride(0),
        y, *y.stride(), position if pool else y, cells, C, K, *input.shape[2:], *size, *y.shape[2:], *stride, *padding[:2],
        *dilation, *rest,
        KH=weight.shape[2], KW=weight.shape[3], POOL_H=ph, POOL_W=pw, POOL=bool(pool), BIAS=bias is not None, RELU=relu,
        PRECISION=precision(allow_tf32),
    )  # fmt: skip


@implements("conv2d_backward")
def backward(outputs, grad, input, weight, output, position, stride, padding, dilation, groups, relu, pool,
             need_input, need_weight, need_bias, allow_tf32=False):  # fmt: skip
    dx, dw, db = outputs
    C, K, (N, _, H, W) = weight.shape[1], weight.shape[0] // groups, input.shape
    OH, OW = _plane(input, weight, stride, padding, dilation)
    # ReLU's mask once, as native does it: inside the products every value would be asked for at each tap, twice.
    g = torch.where(output <= 0, 0.0, grad) if relu else grad
    if pool:
        g = unpool(g, position, (N, weight.shape[0], OH, OW), pool)
    sizes = (C, K, H, W, OH, OW, *stride, *padding[:2], *dilation)
    same = {"KH": weight.shape[2], "KW": weight.shape[3], "PRECISION": precision(allow_tf32)}
    if need_input:
        launch(
            conv_input_kernel, lambda c: (cdiv(N * H * W, c["BM"]), cdiv(C, c["BN"]), groups), narrowest(CELLS, "BN", C),
            g, *g.stride(), weight, *weight.stride(), dx, *dx.stride(), N * H * W, *sizes, **same,
        )  # fmt: skip
    if need_weight or need_bias:
        configs, taps, cells = narrowest(TAPS, "BM", K), C * weight.shape[2] * weight.shape[3], N * OH * OW
        blocks = cdiv(K, configs[0]["BM"]) * cdiv(taps, configs[0]["BN"]) * groups
        shares = max(1, min(cdiv(BLOCKS, blocks), cdiv(cells, SHARE_CELLS)))
        of_weight = input.new_empty((shares, *weight.shape), dtype=torch.float32)
        of_bias = input.new_empty((shares, weight.shape[0]), dtype=torch.float32)
        launch(
            conv_weight_kernel,
            lambda c: (cdiv(K, c["BM"]), cdiv(taps, c["BN"]) if need_weight else 1, groups * shares), configs,
            g, *g.stride(), input, *input.stride(), of_weight, of_bias, cells, cdiv(cells, shares), groups, *sizes,
            WEIGHT=need_weight, SUMS=need_bias, **same,
        )  # fmt: skip
        if need_weight:
            dw.copy_(of_weight.sum(0))
        if need_bias:
            db.copy_(of_bias.sum(0))


def _plane(input, weight, stride, padding, dilation):
    """The convolution's height and width."""
    top, left, bottom, right = padding
    return [
        (size + before + after - d * (k - 1) - 1) // s + 1
        for size, k, s, d, before, after in zip(
            input.shape[2:], weight.shape[2:], stride, dilation, (top, left), (bottom, right), strict=True
        )
    ]
