"""Bugs to plant in the Triton kernels; the tests are the row of that name under the interpreter."""

from . import Bug

BUGS = (
    Bug(
        "Triton: NaN stopped by ReLU",
        "kernels/_gemm.py",
        "tl.where(y <= 0, 0.0, a)",
        "tl.where(y > 0, a, 0.0)",
        "linear",
    ),
    Bug("Triton: last part of a sum lost", "kernels/_gemm.py", "range(0, K, BK)", "range(0, K - BK + 1, BK)", "linear"),
    Bug(
        "Triton: float32 summed in one chain",
        "kernels/_shared.py",
        ", max_num_imprecise_acc=a.shape[1]",
        "",
        "linear",
    ),
    Bug(
        "Triton: the caller's gradient of h_n written to",
        "kernels/_recurrent.py",
        "dh.copy_(ghn)  # which is the caller's",
        "dh = ghn.float()",
        "gru",
    ),
    Bug("Triton: the last of two equal cells wins", "kernels/maxpool2d.py", "(v > best)", "(v >= best)", "maxpool2d"),
    Bug("Triton: a window off the stride", "kernels/maxpool2d.py", "(oh * SH == top) & ", "", "maxpool2d"),
    Bug(
        "Triton: columns of padding lost", "kernels/conv2d.py", "ow * SW - PL, there, k", "ow * SW, there, k", "conv2d"
    ),
    Bug(
        "Triton: a share starts late",
        "kernels/conv2d.py",
        "_cells(number * share, i",
        "_cells(number * share + 1, i",
        "conv2d",
    ),
    Bug(
        "Triton: ReLU passes every gradient",
        "kernels/conv2d.py",
        "0.0, grad) if relu else grad",
        "grad, grad) if relu else grad",
        "conv2d",
    ),
    Bug(
        "Triton: cells of the first image alone",
        "kernels/conv2d.py",
        "return n + at // (H * W)",
        "return n + 0 * at",
        "conv2d",
    ),
    Bug("Triton: reverse runs forward", "kernels/_steps.py", "t = T - 1 - i if REVERSE else i", "t = i", "rnn"),
    Bug(
        "Triton: ended sequences go on",
        "kernels/_steps.py",
        "tl.where(valid, new, h)",
        "tl.where(there, new, h)",
        "gru",
    ),
    Bug(
        "Triton: reset and update gate swapped",
        "kernels/_steps.py",
        "r, z = tl.sigmoid(xr), tl.sigmoid(xz)",
        "z, r = tl.sigmoid(xr), tl.sigmoid(xz)",
        "gru",
    ),
    Bug(
        "Triton: another gate's weights stay on chip",
        "kernels/_steps.py",
        "wz, wn = _block(w_ptr + H * wj, wj, wk, H, BH)",
        "wz, wn = _block(w_ptr, wj, wk, H, BH)",
        "gru",
    ),
)
