// bfloat16 products on the matrix unit of Intel's server processors (AMX): tiles of 16 x 16 sums in float32, to each of which one
// instruction adds 32 products. On an Emerald Rapids 1024^3 takes a tenth of the time of vdpbf16ps.
//
// Of A a tile is 16 rows of 16 lanes (a lane is a pair along K, bf16.h), of B 16 lanes along K of 16 columns: the latter is what
// panels of B consist of anyway (gemm_sources.h). A panel of A is 32 rows in blocks of 16 lanes, [k / 16][32][k % 16]: rows that
// lie a power of two apart would share a set of the L1 cache. The unit reads and writes denormals as zeros.
#pragma once

#include "gemm_tile.h"

namespace ts::TS_ISA {

constexpr int kTile = 16, kPanel = 2 * kTile;  // rows, columns or lanes of one tile; of the two that a product takes together
constexpr int64_t kUnitSpeed = 8;         // multiply-adds in the time of one on vectors
constexpr int64_t kLeastRows = 5;         // of A: fewer leave most of a tile empty
constexpr int64_t kColumnsInPlace = 512;  // of C, up to which a copy of A does not pay

// The largest number of lanes for a tile, at most 16 and at least 4 or all of them, that divides them all; else 0.
TS_INLINE int equal_lanes(int64_t all) {
  for (int64_t lanes = min_of<int64_t>(kTile, all); lanes > 1 && (lanes >= 4 || lanes == all); --lanes)
    if (all % lanes == 0) return static_cast<int>(lanes);
  return 0;
}

#if defined(TS_AMX)
// The unit's registers: 0 to 3 hold sums, 4 and 5 tiles of A, 6 and 7 of B. Compilers do not know what they hold, nor older
// ones that their instructions read memory.
#define TS_TILES __attribute__((target("amx-tile,amx-bf16"), noinline))
#define TS_FENCE asm volatile("" ::: "memory")

// Between these two the unit is in use, with tiles of `rows` rows of sums and `lanes` lanes along K. It is given back, because its
// registers are part of what a thread's switch saves.
TS_TILES inline void begin_tiles(int rows = kTile, int lanes = kTile) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } shape;
  for (int i = 0; i < 8; ++i) {
    const bool left = i == 4 || i == 5, right = i > 5;
    shape.rows[i] = static_cast<uint8_t>(right ? lanes : rows);
    shape.row_bytes[i] = static_cast<uint16_t>(4 * (left ? lanes : kTile));
  }
  TS_FENCE;
  _tile_loadconfig(&shape);
}
TS_TILES inline void end_tiles() { _tile_release(); }

// Where the factors of M x N tiles of sums lie: tile t of A from a + t * a_next on, its rows a_row lanes apart; tile t of B from
// b + 16 t on, its rows b_row apart. f(step, a, b) sets both for each step along K.
struct TilePlaces {
  int64_t a_row, a_next, b_row;
};

// sums[M rows][32] of M x N tiles, over all steps.
template <int M, int N, class Step>
TS_TILES void multiply_tiles(int64_t steps, const TilePlaces& places, int rows, Step step, float* sums) {
  constexpr int64_t kRow = kPanel * sizeof(float);
  const int64_t a_row = places.a_row * sizeof(int32_t), b_row = places.b_row * sizeof(int32_t);
  TS_FENCE;
  _tile_zero(0);
  if constexpr (N == 2) _tile_zero(1);
  if constexpr (M == 2) _tile_zero(2);
  if constexpr (M == 2 && N == 2) _tile_zero(3);
  for (int64_t k = 0; k < steps; ++k) {
    const int32_t *a, *b;
    step(k, a, b);
    _tile_loadd(6, b, b_row);
    _tile_loadd(4, a, a_row);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (N == 2) {
      _tile_loadd(7, b + kTile, b_row);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (M == 2) {
      _tile_loadd(5, a + places.a_next, a_row);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (N == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kRow);
  if constexpr (N == 2) _tile_stored(1, sums + kTile, kRow);
  if constexpr (M == 2) _tile_stored(2, sums + rows * kPanel, kRow);
  if constexpr (M == 2 && N == 2) _tile_stored(3, sums + rows * kPanel + kTile, kRow);
  TS_FENCE;
}
template <class Step>
TS_INLINE void multiply_tiles(bool two_rows, bool two_columns, int64_t steps, const TilePlaces& places, int rows, Step step, float* sums) {
  if (two_rows) two_columns ? multiply_tiles<2, 2>(steps, places, rows, step, sums) : multiply_tiles<2, 1>(steps, places, rows, step, sums);
  else two_columns ? multiply_tiles<1, 2>(steps, places, rows, step, sums) : multiply_tiles<1, 1>(steps, places, rows, step, sums);
}

#undef TS_TILES
#undef TS_FENCE

// 32 sums of a row of C, the last of which may be outside.
TS_INLINE void store_row(float* to, Vec<float> low, Vec<float> high, int columns) {
  constexpr int L = kLanes<float>;
  if (columns == kPanel) return store<float>(to, low), store<float>(to + L, high);
  store_n<float>(to, low, min_of(columns, L));
  if (columns > L) store_n<float>(to + L, high, columns - L);
}
TS_INLINE void store_row(bf16* to, Vec<float> low, Vec<float> high, int columns) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  if (columns == kPanel) std::memcpy(to, &both, sizeof both);
  else _mm512_mask_storeu_epi16(to, (__mmask32)((1u << columns) - 1), both);
}

// Writes sums of `rows` rows and `columns` columns to C, after its epilogue.
template <class C>
void write_sums(const float* sums, int rows, int columns, C* c, int64_t ldc, const bf16* row_bias, const bf16* column_bias, bool accumulate,
                bool relu_at_end) {
  constexpr int L = kLanes<float>;
  const int low = min_of(columns, L), high = columns - low;
  const auto each_row = [&](const auto& change) __attribute__((always_inline)) {
    for (int i = 0; i < rows; ++i, c += ldc) {
      Vec<float> y[2] = {load<float>(sums + i * kPanel), load<float>(sums + i * kPanel + L)};
      change(y, i);
      store_row(c, y[0], y[1], columns);
    }
  };
  if (!(row_bias || column_bias || accumulate || relu_at_end)) return each_row([](Vec<float> (&)[2], int) {});
  Vec<float> bias[2] = {};
  if (column_bias) bias[0] = load_wide(column_bias, low), bias[1] = load_wide(column_bias + L, high);
  each_row([&](Vec<float> (&y)[2], int i) __attribute__((always_inline)) {
    if (accumulate) y[0] += load_wide(c, low), y[1] += load_wide(c + L, high);
    const Vec<float> whole_row = splat<float>(row_bias ? widened(row_bias + i) : 0.f);
    for (int v = 0; v < 2; ++v) {
      y[v] += bias[v] + whole_row;
      if (relu_at_end) y[v] = relu<float>(y[v]);
    }
  });
}

#endif  // TS_AMX

}  // namespace ts::TS_ISA
