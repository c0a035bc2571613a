"""Bugs to plant in matrix products and in the vectors that every CPU kernel uses."""

from . import PAIRS, VALUES, Bug

BUGS = (
    Bug(
        "bias of the first vector for the second",
        "csrc/cpu/gemm.h",
        "load_wide(column_bias + v * L, lanes(v))",
        "load_wide(column_bias, lanes(v))",
        VALUES + "linear",
    ),
    Bug(
        "bias of y^T along the wrong side",
        "csrc/cpu/linear.cpp",
        "{.row_bias = p.bias, .relu = relu}",
        "{.column_bias = p.bias, .relu = relu}",
        VALUES + "linear",
    ),
    Bug(
        "a row of x too few in the weight gradient of few rows",
        "csrc/cpu/linear.cpp",
        "for (int m = 1; m < M; ++m) sum += gn[m]",
        "for (int m = 2; m < M; ++m) sum += gn[m]",
        VALUES + "linear",
    ),
    Bug(
        "the last K block overwrites",
        "csrc/cpu/gemm.h",
        "e.accumulate || !block.first",
        "e.accumulate",
        VALUES + "linear",
    ),
    Bug(
        "a row of W for its neighbour",
        "csrc/cpu/gemm.h",
        "direct ? row[i][k]",
        "direct ? row[i / 2][k]",
        VALUES + "linear",
    ),
    Bug(
        "W read as it lies, from its first column in each block",
        "csrc/cpu/gemm.h",
        "left.a + i0 * left.pitch + block.k0",
        "left.a + i0 * left.pitch",
        VALUES + "linear",
    ),
    Bug(
        "rows of a group of panels over its first ones",
        "csrc/cpu/gemm.h",
        "steps + k / kPair<T> * W, block.k0",
        "steps, block.k0",
        VALUES + "linear",
    ),
    Bug(
        "rows beyond the first share of A lost",
        "csrc/cpu/gemm.h",
        "i0 < i_end; i0 += tall",
        "i0 < i_begin + tall && i0 < i_end; i0 += tall",
        VALUES + "linear",
    ),
    Bug(
        "relu passes a gradient at 0",
        "csrc/cpu/simd.h",
        "return y <= Vec<T>{} ? Vec<T>{} : g;",
        "return y < Vec<T>{} ? Vec<T>{} : g;",
        VALUES + "linear_relu",
    ),
    Bug(
        "relu stops a gradient at NaN",
        "csrc/cpu/simd.h",
        "return y <= Vec<T>{} ? Vec<T>{} : g;",
        "return y > Vec<T>{} ? g : Vec<T>{};",
        VALUES + "linear_relu",
    ),
    Bug(
        "odd element of a sum in pairs lost",
        "csrc/cpu/bf16.h",
        "return (elements + kPair<T> - 1) / kPair<T>;",
        "return elements / kPair<T>;",
        PAIRS + "linear",
    ),
    Bug(
        "upper half of a vector of pairs lost",
        "csrc/cpu/bf16.h",
        "high = n > L ? load_some<float>(p + L, n - L) : Vec<float>{};",
        "high{};",
        PAIRS + "gru",
    ),
    Bug(
        "a second row of x left out of dw",
        "csrc/cpu/linear.cpp",
        "for (int m = 1; m < M; ++m) sum += gn[m] * load_wide(x + m * width + k, lanes);",
        "for (int m = 2; m < M; ++m) sum += gn[m] * load_wide(x + m * width + k, lanes);",
        VALUES + "linear",
    ),
    Bug(
        "mask of the wrong row",
        "csrc/cpu/linear.cpp",
        "*const y = p.y + begin * p.d.N;",
        "*const y = p.y;",
        "masked_by_two_threads",
    ),
)
