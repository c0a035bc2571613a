// The register tile of a product: rows x vectors of sums that stay in registers over all steps of a block, and their epilogue.
//
// T is the type of the product: panels hold Lane<T> (bf16.h), `steps` counts lanes along K. C may be of T or of Wide<T>.
#pragma once

#include "bf16.h"

namespace ts::TS_ISA {

// Register tile: rows x 2 vectors. AVX-512 has 32 registers: 14 x 2 sums + 2 of B + 1 of A. Others have 16: 6 x 2 + 2 + 1.
// kUnroll steps at a time: beside 12 multiply-adds the loop itself counts (90 -> 95 GFLOP/s of 98), beside 28 a little.
// With AVX-512 steps are so short that the next lines of B are asked for in time, and C's rows, which may all fall into one
// set of a small L1, wait in L2: 3-9 % together, at sizes from 512 on, on Intel's Emerald Rapids.
#if defined(__AVX512F__)
constexpr int kRows = 14, kUnroll = 4, kStepsAhead = 8, kNearC = 2;
#else
constexpr int kRows = 6, kUnroll = 2, kStepsAhead = 0, kNearC = 3;
#endif
template <class T>
constexpr int kColumns = 2 * kLanes<Wide<T>>;
// Whether there is code for a matrix unit (amx.h), for whose tiles panels of pairs are filled up with zeros.
#if defined(__AVX512BF16__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define TS_AMX 1
template <class T>
constexpr bool kUnit = kPair<T> == 2;
#else
template <class T>
constexpr bool kUnit = false;
#endif
template <class T>
constexpr int64_t kStepsTogether = kPair<T> == 1 ? 1 : 16;
template <class T>
TS_INLINE int64_t panel_steps(int64_t depth) { return ceil_div(lanes_of<T>(depth), kStepsTogether<T>) * kStepsTogether<T>; }
template <class T>
TS_INLINE void fill_up([[maybe_unused]] Lane<T>* panel, [[maybe_unused]] int64_t depth) {
  if constexpr (kStepsTogether<T> > 1)
    for (int64_t k = lanes_of<T>(depth) * kColumns<T>; k < panel_steps<T>(depth) * kColumns<T>; k += kLanes<Lane<T>>)
      store<Lane<T>>(panel + k, Vec<Lane<T>>{});
}
// Rows of a tile that reads A as it lies: more than 6 pointers would not fit the integer registers.
constexpr int kDirectRows = 6;

constexpr int kAhead = 8;  // rows that are asked for before they are copied
constexpr int64_t kLine = 64;  // bytes of a cache line

template <class T>
struct Epilogue {
  const T* row_bias = nullptr;  // [M], added to every column
  const T* column_bias = nullptr;  // [N], added to every row
  bool relu = false;
  bool accumulate = false;  // add to what C holds
};

template <class T>
struct Block {  // of K: steps [k0, k0 + depth); whether it is the first and the last
  int64_t k0, depth;
  bool first, last;
};

// change(sum, i, v) for each sum of a register tile. So a condition is met once a tile: met once a row, they took as long as
// 20 steps of products (short sums, as in weight gradients of small batches, were 1.13 times slower for it).
template <class Sum, int R, int V, class F>
TS_INLINE void for_sums(Sum (&sum)[R][V], const F& change) {
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) change(sum[i][v], i, v);
}

// A panel of B: packed, or with `rows` rows of a matrix, `pitch` apart, that the first tile packs as it reads them.
template <class T>
struct PanelOf {
  Lane<T>* packed;
  const Lane<T>* rows = nullptr;
  int64_t pitch = kColumns<T>;
};

// One register tile: R rows, V vectors of columns (the last of which may be partly outside C), a number of steps.
// a: packed rows, or with `direct` rows of a matrix, `pitch` apart. b: packed, or with `packs` rows to pack.
template <class T, class C, int R, int V, bool direct, bool packs = false>
void tile(int64_t steps, const Lane<T>* a, int64_t pitch, const PanelOf<T>& panel, C* c, int64_t ldc, int columns, const T* row_bias,
          const T* column_bias, bool accumulate, bool relu_at_end) {
  using W = Wide<T>;
  constexpr int L = kLanes<W>;
  Vec<W> sum[R][V] = {};
  const Lane<T>* const b = packs ? panel.rows : panel.packed;
  const int64_t step = packs ? panel.pitch : kColumns<T>;
  const Lane<T>* row[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    row[i] = direct ? a + i * pitch : a + i;
    for (int64_t at = 0; at < V * L; at += kLine / static_cast<int64_t>(sizeof(C)))
      __builtin_prefetch(c + i * ldc + at, 1, kNearC);  // is there when the sums are
  }
  if ((reinterpret_cast<uintptr_t>(c) | ldc * sizeof(C)) % kLine)  // and the line that a row ends in, which is another one
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) __builtin_prefetch(c + i * ldc + V * L - 1, 1, kNearC);
  // The next tile's rows begin where no hardware foresees them: it sees these end. It goes on by itself from two lines on.
  if (direct && pitch > steps)
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      __builtin_prefetch(row[i] + R * pitch);
      __builtin_prefetch(row[i] + R * pitch + kLine / sizeof(Lane<T>));
    }
#pragma GCC unroll kUnroll
  for (int64_t k = 0; k < steps; ++k) {
    Vec<Lane<T>> bv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      bv[v] = load<Lane<T>>(b + k * step + v * L);
      if (packs) store<Lane<T>>(panel.packed + k * kColumns<T> + v * L, bv[v]);
      // Rows to pack may be pages apart, where no hardware foresees the next.
      if (packs || kStepsAhead > 0) __builtin_prefetch(b + (k + (packs ? kAhead : kStepsAhead)) * step + v * L);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) add_row<R>(i, sum[i], direct ? row[i] + k : a + k * R + i, bv);
  }
  const int rest = columns - (V - 1) * L;  // lanes of the last vector
  const auto lanes = [&](int v) __attribute__((always_inline)) { return v + 1 < V ? L : rest; };
  if (accumulate)
    for_sums(sum, [&](Vec<W>& y, int i, int v) __attribute__((always_inline)) { y += load_wide(c + i * ldc + v * L, lanes(v)); });
  if (column_bias) {
    Vec<W> bias[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) bias[v] = load_wide(column_bias + v * L, lanes(v));
    for_sums(sum, [&](Vec<W>& y, int, int v) __attribute__((always_inline)) { y += bias[v]; });
  }
  if (row_bias) for_sums(sum, [&](Vec<W>& y, int i, int) __attribute__((always_inline)) { y += splat<W>(widened(row_bias + i)); });
  if (relu_at_end) for_sums(sum, [](Vec<W>& y, int, int) __attribute__((always_inline)) { y = relu<W>(y); });
  const auto write = [&](int last) __attribute__((always_inline)) {
    for_sums(sum, [&](const Vec<W>& y, int i, int v) __attribute__((always_inline)) { store_wide(c + i * ldc + v * L, y, v + 1 < V ? L : last); });
  };
  if (rest == L) write(L);
  else write(rest);
}

template <class T, class C>
using Tile = void (*)(int64_t, const Lane<T>*, int64_t, const PanelOf<T>&, C*, int64_t, int, const T*, const T*, bool, bool);

template <class T, class C, bool direct, int R = direct ? kDirectRows : kRows>
TS_INLINE Tile<T, C> tile_for(int rows, int vectors) {
  if constexpr (R == 0) return nullptr;
  else if (rows != R) return tile_for<T, C, direct, R - 1>(rows, vectors);
  else return vectors == 1 ? tile<T, C, R, 1, direct> : tile<T, C, R, 2, direct>;
}

template <class T, class C, int R = kRows>
TS_INLINE Tile<T, C> packing_tile_for(int rows) {
  if constexpr (R == 0) return nullptr;
  else return rows == R ? tile<T, C, R, 2, false, true> : packing_tile_for<T, C, R - 1>(rows);
}

}  // namespace ts::TS_ISA
