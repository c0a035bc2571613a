// The three products of a weight W [N, I] that lies row by row, for any number of rows: what linear layers and cells consist of.
// A few rows are multiplied straight from W (few_rows.h), others by GEMMs. X, Y, G are T, or Wide<T> between steps and layers.
#pragma once

#include "few_rows.h"
#include "gemm.h"

namespace ts::TS_ISA {

// C [M, N] of a left factor that lies row by row without gaps.
template <class T, class A, class Right, class C>
void left_rows_gemm(int64_t M, int64_t N, int64_t K, const A* a, const Right& right, C* c, const Epilogue<T>& epilogue) {
  if constexpr (kPair<T> == 1)  // bf16's pairs may be cut by the end of a row
    if (N <= kDirectColumns) return gemm<T>(M, N, K, LeftDirect<T>{a, K}, right, c, N, epilogue);
  gemm<T>(M, N, K, LeftStrided<A>{a, K, 1}, right, c, N, epilogue);
}

// Straight from W: of bf16 only where all are, in linear layers, and the matrix unit is not for so many rows.
template <class T, class... Each>
constexpr bool kStraight = (std::is_same_v<T, Each> && ...);
template <class T>
TS_INLINE bool straight(int64_t rows, int64_t I) {
  return (are_few(rows, I) || are_few_in_halves<T>(rows, I)) && !tiling_of<T>(rows, false).unit;
}

// y [rows, N] = x [rows, I] W^T + bias, then ReLU.
template <class T, class X, class Y>
void project(int64_t rows, int64_t I, int64_t N, const X* x, const T* w, const T* bias, bool relu, Y* y) {
  if constexpr (kStraight<T, X, Y>)
    if (straight<T>(rows, I)) return few_rows<T>({rows, I, N}, x, w, bias, relu, y);
  // Lanes run along N and W is packed, or y^T = W x^T: lanes along the rows, x packed, W read as it lies, y transposed at the end.
  // In multiply-adds an element costs 5 to be packed and 12 to be transposed; lanes beyond the matrix are multiplied too. (The
  // matrix unit multiplies whole tiles either way.)
  using W = Wide<T>;
  const auto padded = [](int64_t n) { return ceil_div(n, kLanes<W>) * kLanes<W>; };
  const bool unit = tiling_of<T>(rows, false).unit && tiling_of<T>(N, false).unit;
  const int64_t sideways = (unit ? 0 : padded(rows) * N * I) + 12 * rows * N + 5 * rows * I;
  if (sideways < (unit ? 0 : padded(N) * rows * I) + 5 * N * I) {
    W *const yt = scratch<W>(Slot::transposed, rows * N), *wide;
    if constexpr (std::is_same_v<Y, W>) wide = y;
    else wide = scratch<W>(Slot::wide, rows * N);
    const RightStrided<X> xt{x, 1, I};
    const Epilogue<T> epilogue{.row_bias = bias, .relu = relu};
    if constexpr (kPair<T> == 1) gemm<T>(N, rows, I, LeftDirect<T>{w, I}, xt, yt, rows, epilogue);
    else gemm<T>(N, rows, I, LeftStrided<T>{w, I, 1}, xt, yt, rows, epilogue);  // W's pairs may be cut by the end of a row
    transpose_copy<W>(wide, N, yt, rows, N, rows);
    if constexpr (!std::is_same_v<Y, W>) copy_as(y, wide, rows * N);
    return;
  }
  left_rows_gemm<T>(rows, N, I, x, RightStrided<T>{w, 1, I}, y, {.column_bias = bias, .relu = relu});
}

// gx [rows, I] (+)= g [rows, N] W.
template <class T, class G, class X>
void project_back(int64_t rows, int64_t I, int64_t N, const G* g, const T* w, X* gx, bool accumulate) {
  if constexpr (kStraight<T, G, X>)
    if (straight<T>(rows, I) && rows <= kFewRowsBack) return few_rows_dx<T>({rows, I, N}, g, w, gx, accumulate);
  left_rows_gemm<T>(rows, I, N, g, RightStrided<T>{w, I, 1}, gx, {.accumulate = accumulate});
}

// gw [N, I] = g^T x.
template <class T, class G, class X>
void weight_gradient(int64_t rows, int64_t I, int64_t N, const G* g, const X* x, T* gw) {
  if constexpr (kStraight<T, G, X>)
    if (are_few(rows, I, kFewRowsOfGradients)) return few_rows_dw<T>({rows, I, N}, g, x, gw);
  gemm<T>(N, I, rows, LeftStrided<G>{g, 1, N}, RightStrided<X>{x, I, 1}, gw, I, {});
}

}  // namespace ts::TS_ISA
