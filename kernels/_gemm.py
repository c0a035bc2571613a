"""C = A B, row and column operations fused: the product of linear, and of what the recurrent layers do over all steps."""

from __future__ import annotations

import triton
import triton.language as tl

from ._shared import Config, add_product, cdiv, first, launch, precision

__all__ = ["CONFIGS", "choose", "gemm", "gemm_kernel"]

# A block of 128 x 64 reads its operands less often than the others; of 128 x 128, the sums and the addresses of elements with
# any strides did not fit the registers. 64 x 64 gives twice as many blocks, which a small product needs to reach every
# multiprocessor. 16 x 128 wastes little on a handful of rows.
CONFIGS = (
    Config(BM=128, BN=64, BK=32, warps=8, stages=3),
    Config(BM=64, BN=64, BK=32, warps=4, stages=3),
    Config(BM=16, BN=128, BK=32, warps=4, stages=3),
)
ENOUGH_BLOCKS = 128  # about one for each multiprocessor of a large device


def choose(M: int, N: int) -> Config:
    """The largest block that still leaves enough of them."""
    large, middle, flat = CONFIGS
    if flat["BM"] >= M:
        return flat
    return large if cdiv(M, large["BM"]) * cdiv(N, large["BN"]) >= ENOUGH_BLOCKS else middle


@triton.jit
def gemm_kernel(
    a_ptr,  # [M, K], strides am, ak
    mask_ptr,  # [M, K], strides ym, yk: a counts where !(mask <= 0)
    b_ptr,  # [K, N], strides bk, bn
    bias_ptr,  # [N]
    plus_ptr,  # [M, N] float32, dense
    c_ptr,  # [M, N], dense
    sums_ptr,  # [M]: of a's rows
    M, N, K,
    am, ak, ym, yk, bk, bn, bias_step,
    MASK: tl.constexpr, BIAS: tl.constexpr, PLUS: tl.constexpr, RELU: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    product = tl.zeros((BM, BN), tl.float32)
    sums = tl.zeros((BM,), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK).to(tl.int64)
        inside = (m[:, None] < M) & (k[None, :] < K)
        a = tl.load(a_ptr + m[:, None] * am + k[None, :] * ak, inside, 0.0)
        if MASK:
            y = tl.load(mask_ptr + m[:, None] * ym + k[None, :] * yk, inside, 0.0)
            a = tl.where(y <= 0, 0.0, a).to(a.dtype)  # a NaN passes the gradient on
        b = tl.load(b_ptr + k[:, None] * bk + n[None, :] * bn, (k[:, None] < K) & (n[None, :] < N), 0.0)
        product = add_product(product, a, b, PRECISION)
        if SUMS:
            sums += tl.sum(a.to(tl.float32), 1)
    if BIAS:
        product += tl.load(bias_ptr + n * bias_step, n < N, 0.0).to(tl.float32)[None, :]
    at = m[:, None] * N + n[None, :]
    valid = (m[:, None] < M) & (n[None, :] < N)
    if PLUS:
        product += tl.load(plus_ptr + at, valid, 0.0)
    if RELU:
        product = tl.where(product < 0, 0.0, product)  # NaN and -0 stay
    if STORE:
        tl.store(c_ptr + at, product, valid)
    if SUMS and tl.program_id(1) == 0:
        tl.store(sums_ptr + m, sums, m < M)


def gemm(a, b, c, *, bias=None, mask=None, plus=None, sums=None, relu=False, allow_tf32=False):
    """``c = relu(a @ b + bias + plus)`` and ``sums = a.sum(1)`` for ``a`` [M, K] masked by ``mask`` (ReLU's result), ``b`` [K, N].

    ``c`` None: the sums alone. Strides of ``a``, ``b``, ``mask`` and ``bias`` are as they come; ``c`` and ``plus`` are dense.
    """
    (M, K), N = a.shape, b.shape[1]
    masked = a if mask is None else mask
    result = c if c is not None else sums
    columns = N if c is not None else 0  # the sums need one block of columns, whatever else there is
    launch(
        gemm_kernel,
        lambda config: (cdiv(M, config["BM"]), max(cdiv(columns, config["BN"]), sums is not None)),
        first(choose(M, N), CONFIGS),
        a, masked, b, b if bias is None else bias, b if plus is None else plus, result, a if sums is None else sums,
        M, N, K, *a.stride(), *masked.stride(), *b.stride(), 0 if bias is None else bias.stride(0),
        MASK=mask is not None, BIAS=bias is not None, PLUS=plus is not None, RELU=relu, STORE=c is not None,
        SUMS=sums is not None, PRECISION=precision(allow_tf32),
    )  # fmt: skip
