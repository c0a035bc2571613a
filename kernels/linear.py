"""linear, linear + ReLU:  y = x W^T + b,  y = max(x W^T + b, 0).   Shapes: csrc/contract/linear.h.

Backward, with g masked by ReLU's result while it is loaded:  dx = g W,  dW = g^T x,  db = sums of g, in dW's launch.
"""

from math import prod

from ._gemm import gemm
from ._shared import implements


@implements("linear_forward")
def forward(y, input, weight, bias, relu, allow_tf32=False):
    rows, (N, K) = prod(input.shape[:-1]), weight.shape
    gemm(input.reshape(rows, K), weight.t(), y.view(rows, N), bias=bias, relu=relu, allow_tf32=allow_tf32)


@implements("linear_backward")
def backward(outputs, grad, input, weight, output, relu, need_input, need_weight, need_bias, allow_tf32=False):
    dx, dw, db = outputs
    rows, (N, K) = prod(input.shape[:-1]), weight.shape
    g, y = grad.reshape(rows, N), output.reshape(rows, N) if relu else None
    if need_input:
        gemm(g, weight, dx.view(rows, K), mask=y, allow_tf32=allow_tf32)
    if need_weight or need_bias:
        gemm(
            g.t(), input.reshape(rows, K), dw if need_weight else None, mask=None if y is None else y.t(),
            sums=db if need_bias else None, allow_tf32=allow_tf32,
        )  # fmt: skip
