// Products of a few rows with a matrix W [N, K] that lies row by row: those of linear layers and cells at small batches.
//
// Straight from W, since packing W for a GEMM would read and write it once more than the product itself reads it. W passes
// line after line, some rows at a time; those behind them are asked for meanwhile, since no hardware knows that they follow
// (with one row of x, which leaves little to compute, the processor runs ahead by itself).
#pragma once

#include "bf16.h"

namespace ts::TS_ISA {

// Rows of x at a time, at most: their sums and factors stay in registers.
constexpr int64_t kFewRows = kVectorBytes == 64 ? 9 : 4;
// In data gradients the sums pass through memory, and in a GEMM stay in registers: from 6 rows on that takes 0.75-0.9 of the time.
constexpr int64_t kFewRowsBack = kVectorBytes == 64 ? 5 : 4;
// A weight gradient is written row by row, and in a GEMM's tiles in 14 streams with few steps between two writes.
constexpr int64_t kFewRowsOfGradients = kVectorBytes == 64 ? 12 : 4;
// More than four only with long rows: of short ones the sums of lanes take as long as packing.
TS_INLINE bool are_few(int64_t M, int64_t K, int64_t most = kFewRows) { return M > 0 && (M <= 4 || (M <= most && K >= 128)); }
// And more, up to twice kFewRows, where all of x stays in the L1 cache: then W's rows are there for the second half of x.
template <class T>
TS_INLINE bool are_few_in_halves(int64_t M, int64_t K) {
  return kLanes<Wide<T>> > 4 && M > 0 && M <= kFewRows + kLanes<Wide<T>> / 2 && K >= 256 && M * K <= static_cast<int64_t>((40 << 10) / sizeof(T));
}
// Rows of W at a time: more than four are read more slowly; sums or factors are at most 16, or 8 of 16 registers.
template <int M>
constexpr int kRowsOfW = M <= (kVectorBytes == 64 ? 4 : 2) ? 4 : 2;

// The sum of each vector's lanes, many at once: one by one they go through memory.
template <class T, int S>
TS_INLINE void sum_each(const Vec<T> (&v)[S], T (&sums)[S]) {
  constexpr int L = kLanes<T>;
  for (int first = 0; first < S; first += L) {
    Vec<T> block[L];
    for (int i = 0; i < L; ++i) block[i] = first + i < S ? v[first + i] : Vec<T>{};
    store_some<T>(sums + first, sum_each<T>(block), min_of(L, S - first));
  }
}

struct FewRows {
  int64_t M, K, N;
};

// y[m][n] = sum over k of x[m][k] w[n][k] + bias[n] for `rows` rows of W from n on: dot products, R of them at a time.
template <class T, int M, int R, int rows>
TS_INLINE void dot_rows(const FewRows& d, const T* x, const T* from, const T* bias, bool relu_at_end, T* y, int64_t n) {
  using W = Wide<T>;
  constexpr int L = kPair<T> * kLanes<W>;
  const int64_t K = d.K;
  Vec<W> sum[M * rows];
  for (int first = 0; first < rows; first += R) {
    const T* const w = from + (n + first) * K;
    Vec<W> part[M][R] = {};
    const auto step = [&](int64_t k, int elements) __attribute__((always_inline)) {
      Vec<Lane<T>> factor[M];
      for (int m = 0; m < M; ++m) factor[m] = load_lanes(x + m * K + k, elements);
      for (int r = 0; r < R; ++r) {
        const Vec<Lane<T>> row = load_lanes(w + r * K + k, elements);
        if (M > 1) __builtin_prefetch(w + (r + R) * K + k);
        for (int m = 0; m < M; ++m) part[m][r] = multiply_add(part[m][r], factor[m], row);
      }
    };
    int64_t k = 0;
#pragma GCC unroll 2
    for (; k + L <= K; k += L) step(k, L);
    if (k < K) step(k, static_cast<int>(K - k));
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) sum[m * rows + first + r] = part[m][r];
  }
  W sums[M * rows];
  sum_each<W>(sum, sums);
  for (int m = 0; m < M; ++m)
    for_vectors<W>(rows, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      Vec<W> out = load_some<W>(sums + m * rows + i, lanes);
      if (bias) out += load_wide(bias + n + i, lanes);
      store_wide(y + m * d.N + n + i, relu_at_end ? relu<W>(out) : out, lanes);
    });
}

// Rows of x beyond kFewRows in halves, the second of which ends with x and may compute a row again.
template <class T, int M = kFewRows>
void few_rows(const FewRows& d, const T* x, const T* w, const T* bias, bool relu, T* y) {
  if constexpr (M > 1)
    if (ceil_div(d.M, ceil_div(d.M, kFewRows)) < M) return few_rows<T, M - 1>(d, x, w, bias, relu, y);
  constexpr int R = M == 1 && kVectorBytes == 32 ? 8 : kRowsOfW<M>, lanes = kLanes<Wide<T>> / M;
  constexpr int most = lanes > R ? lanes / R * R : R;  // whose sums are a vector, about
  parallel(ceil_div(d.N, most), kParallelWork / (most * M * d.K + 1) + 1, [&](int64_t begin, int64_t end) {
    int64_t n = begin * most;
    const int64_t stop = min_of(d.N, end * most);
    const auto dot = [&]<int at_once, int rows>() {
      for (int64_t m = 0; m < d.M; m += M) {
        const int64_t first = min_of(m, d.M - M);
        dot_rows<T, M, at_once, rows>(d, x + first * d.K, w, bias, relu, y + first * d.N, n);
      }
    };
    for (; n + most <= stop; n += most) dot.template operator()<R, most>();
    for (; n + R <= stop; n += R) dot.template operator()<R, R>();
    for (; n < stop; ++n) dot.template operator()<1, 1>();
  });
}

// dx[m][k] (+)= sum over n of g[m][n] w[n][k]. Adds to sums[m][k - begin] those of R rows of W from n on, columns [begin, end).
template <class T, int M, int R>
TS_INLINE void few_rows_dx_add(const FewRows& d, const T* g, const T* from, Wide<T>* sums, int64_t pitch, int64_t n, int64_t begin,
                               int64_t end) {
  using W = Wide<T>;
  const int64_t K = d.K, N = d.N;
  Vec<W> factor[M][R];
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) factor[m][r] = splat<W>(widened(g + m * N + n + r));
  const T* const w = from + n * K + begin;
  for_vectors<W>(end - begin, [&](int64_t k, int lanes) {
    Vec<W> row[R];
    for (int r = 0; r < R; ++r) {
      row[r] = load_wide(w + r * K + k, lanes);
      __builtin_prefetch(w + (r + R) * K + k);
    }
    for (int m = 0; m < M; ++m) {
      Vec<W> sum = load<W>(sums + m * pitch + k);
      for (int r = 0; r < R; ++r) sum += factor[m][r] * row[r];
      store<W>(sums + m * pitch + k, sum);
    }
  });
}

template <class T, int M = kFewRowsBack>
void few_rows_dx(const FewRows& d, const T* g, const T* w, T* dx, bool accumulate) {
  if constexpr (M > 1)
    if (d.M < M) return few_rows_dx<T, M - 1>(d, g, w, dx, accumulate);
  using W = Wide<T>;
  constexpr int R = kRowsOfW<M>;
  constexpr int64_t kShare = 4 * kLanes<W>, kNear = 4096 / M / kShare * kShare;  // columns whose sums stay in the L1 cache
  parallel(ceil_div(d.K, kShare), kParallelWork / (kShare * M * d.N + 1) + 1, [&](int64_t begin, int64_t end) {
    // A thread's own: in dx the next line is another thread's, and cores that fetch lines in pairs would take it from each other.
    W* const sums = scratch<W>(Slot::wide, M * kNear);
    const int64_t last = min_of(d.K, end * kShare);
    for (int64_t k = begin * kShare; k < last; k += kNear) {
      const int64_t stop = min_of(last, k + kNear), rows = d.N;
      std::memset(sums, 0, sizeof(W) * M * kNear);
      int64_t n = 0;
      for (; n + R <= rows; n += R) few_rows_dx_add<T, M, R>(d, g, w, sums, kNear, n, k, stop);
      for (; n < rows; ++n) few_rows_dx_add<T, M, 1>(d, g, w, sums, kNear, n, k, stop);
      for (int m = 0; m < M; ++m) add_as(dx + m * d.K + k, sums + m * kNear, stop - k, accumulate);
    }
  });
}

// dw[n][k] = sum over m of g[m][n] x[m][k], written once.
template <class T, int M = kFewRowsOfGradients>
void few_rows_dw(const FewRows& d, const T* g, const T* from, T* dw) {
  if constexpr (M > 1)
    if (d.M < M) return few_rows_dw<T, M - 1>(d, g, from, dw);
  using W = Wide<T>;
  parallel(d.N, kParallelWork / (M * d.K + 1) + 1, [&](int64_t begin, int64_t end) {
    const T* const x = from;  // not read again after each store, which might be to them
    const int64_t width = d.K, N = d.N;
    for (int64_t n = begin; n < end; ++n) {
      Vec<W> gn[M];
      for (int m = 0; m < M; ++m) gn[m] = splat<W>(widened(g + m * N + n));
      T* const to = dw + n * width;
      for_vectors<W>(width, [&](int64_t k, int lanes) {
        Vec<W> sum = gn[0] * load_wide(x + k, lanes);
        for (int m = 1; m < M; ++m) sum += gn[m] * load_wide(x + m * width + k, lanes);
        store_wide(to + k, sum, lanes);
      });
    }
  });
}

}  // namespace ts::TS_ISA
