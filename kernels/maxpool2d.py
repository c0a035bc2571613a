"""max_pool2d.   Formula, ties, NaN and the saved position: csrc/contract/maxpool2d.h.

A thread has one result, and looks at its window's cells; backward a thread has one cell, and looks at the windows over it:
no atomics, one order of the sums.
"""

import triton
import triton.language as tl

from ._shared import Config, cdiv, implements, launch

# Memory-bound, a few registers a thread: small blocks fill every multiprocessor, four warps hide the loads.
CONFIGS = (Config(BLOCK=256, warps=4, stages=2),)


@triton.jit
def _split(begin, i, C, H, W, LAST: tl.constexpr):
    """The flat indices begin + i, in the order of memory -> n, c, h, w. A division of 64 bits takes a hundred instructions:
    there are two, one of them for all of the indices."""
    inner = C if LAST else H * W
    outer = begin // inner
    at = (begin - outer * inner).to(tl.int32) + i
    outer += at // inner
    at %= inner
    n = outer // (H * W if LAST else C)
    rest = (outer - n * (H * W if LAST else C)).to(tl.int32)
    c, cell = (at, rest) if LAST else (rest, at)
    return n, c, cell // W, cell % W


@triton.jit
def _offset(n, c, h, w, sn, sc, sh, sw):
    """Where [n, c, h, w] lies, in 64 bits: a stride may be longer than 2^31 / H."""
    return n * sn + c.to(tl.int64) * sc + h.to(tl.int64) * sh + w.to(tl.int64) * sw


@triton.jit
def pool_forward_kernel(
    x_ptr, xn, xc, xh, xw,  # [N, C, H, W] and its strides
    y_ptr, yn, yc, yh, yw,  # [N, C, OH, OW]
    position_ptr,  # as y
    count, C, H, W, OH, OW, SH, SW, PH, PW, DH, DW,
    KH: tl.constexpr, KW: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    begin, i = tl.program_id(0).to(tl.int64) * BLOCK, tl.arange(0, BLOCK)
    there = begin + i < count
    n, c, oh, ow = _split(begin, i, C, OH, OW, LAST)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    position = tl.full((BLOCK,), -1, tl.int32)
    for k in range(KH * KW):
        h, w = oh * SH - PH + k // KW * DH, ow * SW - PW + k % KW * DW
        inside = there & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        v = tl.load(x_ptr + _offset(n, c, h, w, xn, xc, xh, xw), inside, float("-inf")).to(tl.float32)
        # the first of equals; the last NaN; the first cell of a window of -inf
        wins = inside & ((v > best) | (v != v) | (position < 0))
        best = tl.where(wins, v, best)
        position = tl.where(wins, k, position)
    at = _offset(n, c, oh, ow, yn, yc, yh, yw)
    tl.store(y_ptr + at, best, there)
    tl.store(position_ptr + at, tl.maximum(position, 0), there)


@triton.jit
def pool_backward_kernel(
    g_ptr, gn, gc, gh, gw,  # [N, C, OH, OW] and its strides
    position_ptr, pn, pc, ph, pw,
    dx_ptr, xn, xc, xh, xw,  # [N, C, H, W]
    count, C, H, W, OH, OW, SH, SW, PH, PW, DH, DW,
    KH: tl.constexpr, KW: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    begin, i = tl.program_id(0).to(tl.int64) * BLOCK, tl.arange(0, BLOCK)
    there = begin + i < count
    n, c, h, w = _split(begin, i, C, H, W, LAST)
    sum = tl.zeros((BLOCK,), tl.float32)
    for k in range(KH * KW):
        # oh SH = h + PH - kh DH
        top, left = h + PH - k // KW * DH, w + PW - k % KW * DW
        oh, ow = top // SH, left // SW
        meets = there & (top >= 0) & (left >= 0) & (oh * SH == top) & (ow * SW == left) & (oh < OH) & (ow < OW)
        position = tl.load(position_ptr + _offset(n, c, oh, ow, pn, pc, ph, pw), meets, 0).to(tl.int32)
        won = meets & (position == k)
        sum += tl.load(g_ptr + _offset(n, c, oh, ow, gn, gc, gh, gw), won, 0.0).to(tl.float32)
    tl.store(dx_ptr + _offset(n, c, h, w, xn, xc, xh, xw), sum, there)


def _pool(kernel, tensors, cells, H, W, OH, OW, kernel_size, stride, padding, dilation):
    launch(
        kernel, lambda config: (cdiv(cells.numel(), config["BLOCK"]),), CONFIGS,
        *tensors, cells.numel(), cells.shape[1], H, W, OH, OW, *stride, *padding, *dilation,
        KH=kernel_size[0], KW=kernel_size[1],
        LAST=cells.stride(1) == 1 and not cells.is_contiguous(),
    )  # fmt: skip


@implements("maxpool2d_forward")
def forward(outputs, input, kernel_size, stride, padding, dilation, ceil_mode):
    y, position = outputs
    tensors = (input, *input.stride(), y, *y.stride(), position)
    _pool(pool_forward_kernel, tensors, y, *input.shape[2:], *y.shape[2:], kernel_size, stride, padding, dilation)


@implements("maxpool2d_backward")
def backward(dx, grad, position, input_size, kernel_size, stride, padding, dilation, ceil_mode):
    tensors = (grad, *grad.stride(), position, *position.stride(), dx, *dx.stride())
    _pool(pool_backward_kernel, tensors, dx, *dx.shape[2:], *grad.shape[2:], kernel_size, stride, padding, dilation)


def unpool(grad, position, size, pool):
    """The gradient of a max pool over planes of ``size`` [N, C, H, W], dense; ``pool``: window, stride, padding, pairs in a row."""
    dx = grad.new_empty(size)
    backward(dx, grad, position, size, pool[:2], pool[2:4], pool[4:], (1, 1), False)
    return dx
