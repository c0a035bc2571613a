// bfloat16 products on the matrix unit of Intel's server processors (AMX): tiles of 16 x 16 sums in float32, to each of which an
// instruction adds 32 products, in the time of a vector's 32 or so.
//
// Of A a tile is 16 rows of 16 lanes (a lane is a pair along K, bf16.h), of B 16 lanes along K of 16 columns: the latter is what
// panels of B consist of anyway (gemm_sources.h). A panel of A is 32 rows in blocks of 16 lanes, [k / 16][32][k % 16]: rows that
// lie a power of two apart would share a set of the L1 cache. The unit reads and writes denormals as zeros.
#pragma once

#include "gemm_tile.h"

#if defined(TS_AMX)
namespace ts::TS_ISA {

constexpr int kTile = 16, kPanel = 2 * kTile;  // rows, columns or lanes of one tile; of the two that a product takes together
constexpr int64_t kLeastRows = 9;  // of A: fewer leave most of a tile empty

// The unit's registers: 0 to 3 hold sums, 4 and 5 tiles of A, 6 and 7 of B. Compilers do not know what they hold, nor older
// ones that their instructions read memory.
#define TS_TILES __attribute__((target("amx-tile,amx-bf16"), noinline))
#define TS_FENCE asm volatile("" ::: "memory")

// Between these two the unit is in use. It is given back, because its registers are part of what a thread's switch saves.
TS_TILES inline void begin_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  TS_FENCE;
  _tile_loadconfig(&shape);
}
TS_TILES inline void end_tiles() { _tile_release(); }

// sums[16 M][32]: M tiles of a panel of A, times N tiles of a panel of B, over `tiles` tiles along K.
template <int M, int N>
TS_TILES void multiply_tiles(int64_t tiles, const int32_t* a, const int32_t* b, float* sums) {
  constexpr int64_t kLeft = kTile * sizeof(int32_t), kRow = kPanel * sizeof(int32_t);  // bytes of a row: of A; of B and the sums
  TS_FENCE;
  _tile_zero(0);
  if constexpr (N == 2) _tile_zero(1);
  if constexpr (M == 2) _tile_zero(2);
  if constexpr (M == 2 && N == 2) _tile_zero(3);
  for (int64_t k = 0; k < tiles; ++k, a += kTile * kPanel, b += kTile * kPanel) {
    _tile_loadd(6, b, kRow);
    _tile_loadd(4, a, kLeft);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (N == 2) {
      _tile_loadd(7, b + kTile, kRow);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (M == 2) {
      _tile_loadd(5, a + kTile * kTile, kLeft);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (N == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kRow);
  if constexpr (N == 2) _tile_stored(1, sums + kTile, kRow);
  if constexpr (M == 2) _tile_stored(2, sums + kTile * kPanel, kRow);
  if constexpr (M == 2 && N == 2) _tile_stored(3, sums + kTile * kPanel + kTile, kRow);
  TS_FENCE;
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

// The tile of C that `rows` rows of A and `columns` columns of a panel of B make, both at most kPanel.
template <class C>
void amx_tile(int64_t tiles, const int32_t* a, const int32_t* b, int rows, int columns, C* c, int64_t ldc,
              const bf16* row_bias, const bf16* column_bias, bool accumulate, bool relu_at_end) {
  constexpr int L = kLanes<float>;
  alignas(64) float sums[kPanel * kPanel];
  const auto multiply = rows > kTile ? columns > kTile ? multiply_tiles<2, 2> : multiply_tiles<2, 1>
                                     : columns > kTile ? multiply_tiles<1, 2> : multiply_tiles<1, 1>;
  multiply(tiles, a, b, sums);
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

}  // namespace ts::TS_ISA
#endif
