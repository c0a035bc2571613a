// bfloat16 convolutions on the matrix unit (amx.h). Its tiles are read straight from the expanded image (conv_cells.h): of B a tile
// is 16 output cells of planes of pairs, which lie one plane apart; in the weight gradient, where sums run over cells, 16 channels
// of cells, whose planes are transposed for it.
//
// Planes, or cells, are shared out among tiles equally, so that no tile reads what is not its own: a zero times that could be NaN.
#pragma once

#include "conv_cells.h"
#include "conv_weights.h"

namespace ts::TS_ISA {

// Of a convolution's product: rows (output channels) and lanes along K (planes) of a tile, and tiles for all planes of a window
// cell. rows == 0: the unit is not for it.
struct UnitTiles {
  int rows = 0, lanes = 0;
  int64_t blocks = 0;
  int64_t weights(int64_t M) const { return ceil_div(M, rows) * rows * blocks * 16; }  // packed, for each window cell
};

// The largest number of lanes, at most a tile's and at least `least`, that divides all of them; else 0.
TS_INLINE int equal_lanes(int64_t all, int64_t least) {
  for (int64_t lanes = 16; lanes >= least; --lanes)
    if (all % lanes == 0) return static_cast<int>(lanes);
  return 0;
}

template <class T>
TS_INLINE UnitTiles unit_tiles([[maybe_unused]] int64_t M, [[maybe_unused]] int64_t planes) {
#if defined(TS_AMX)
  if (kPair<T> == 2 && isa_active() == Isa::avx512_amx)
    if (const int lanes = equal_lanes(planes, min_of<int64_t>(planes, kLeastLanes)); lanes >= kLeastPlanes)
      return {static_cast<int>(ceil_div(M, ceil_div(M, kTile))), lanes, planes / lanes};
#endif
  return {};
}

// Where the planes of each step's block begin: in the order of the weights.
TS_INLINE void tile_offsets(int64_t* at, const UnitTiles& unit, const Expansion& e) {
  for (int64_t kh = 0; kh < e.KH; ++kh)
    for (int64_t kw = 0; kw < e.KW; ++kw)
      for (int64_t b = 0; b < unit.blocks; ++b) *at++ = e.offset(b * unit.lanes, kh, kw);
}

#if defined(TS_AMX)
// Weights as lanes, w[m * m_pitch + plane * plane_pitch + kh * row_pitch + kw], as tiles: [M / rows][kh, kw][block][rows][16]; of
// two tiles of channels that are multiplied together, the second follows the first in each block.
TS_INLINE void pack_tiles(int32_t* to, const UnitTiles& unit, const int32_t* w, int64_t M, int64_t KH, int64_t KW, int64_t m_pitch,
                          int64_t plane_pitch, int64_t row_pitch) {
  const int64_t steps = KH * KW * unit.blocks, tile = int64_t{unit.rows} * kTile;
  for (int64_t i0 = 0; i0 < M; i0 += 2 * unit.rows, to += 2 * steps * tile) {
    const int64_t rows = min_of<int64_t>(2 * unit.rows, M - i0), pitch = rows > unit.rows ? 2 * tile : tile;
    if (rows % unit.rows) std::memset(to, 0, sizeof(int32_t) * steps * pitch);
    for (int64_t i = 0; i < rows; ++i) {
      const int32_t* from = w + (i0 + i) * m_pitch;
      for (int64_t kh = 0; kh < KH; ++kh)
        for (int64_t kw = 0; kw < KW; ++kw)
          for (int64_t b = 0; b < unit.blocks; ++b) {
            int32_t* const row = to + ((kh * KW + kw) * unit.blocks + b) * pitch + i * kTile;
            const int32_t* cell = from + b * unit.lanes * plane_pitch + kh * row_pitch + kw;
            for (int k = 0; k < unit.lanes; ++k) row[k] = cell[k * plane_pitch];
          }
    }
  }
}
// y[M, cells] = the product of weights (pack_tiles) and one expanded image of planes `pitch` apart.
template <class Y>
void unit_product(const UnitTiles& unit, const int32_t* e, int64_t pitch, const int64_t* offset, int64_t steps, int64_t M, int64_t cells,
                  const int32_t* packed, const bf16* bias, bool relu, Y* y) {
  parallel(ceil_div(cells, kPanel), kParallelWork / (M * steps * unit.lanes * kPanel / kUnitSpeed + 1) + 1, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kPanel * kPanel];
    const int64_t tile = int64_t{unit.rows} * kTile;
    begin_tiles(unit.rows, unit.lanes);
    for (int64_t j = begin * kPanel; j < min_of(cells, end * kPanel); j += kPanel)
      for (int64_t i = 0; i < M; i += 2 * unit.rows) {
        const int rows = static_cast<int>(min_of<int64_t>(2 * unit.rows, M - i)), columns = static_cast<int>(min_of<int64_t>(kPanel, cells - j));
        const bool two = rows > unit.rows;
        const int32_t* const a = packed + i * kTile * steps;
        const int64_t a_step = two ? 2 * tile : tile;
        multiply_tiles(two, columns > kTile, steps, {kTile, tile, pitch}, unit.rows,
                       [=](int64_t k, const int32_t*& at, const int32_t*& bt) { at = a + k * a_step, bt = e + offset[k] + j; }, sums);
        write_sums(sums, rows, columns, y + i * cells + j, cells, bias ? bias + i : nullptr, nullptr, false, relu);
      }
    end_tiles();
  });
}

// dw[channels][C][KH, KW] += the sum over a group of images, as pairs. Whether the unit is for it.
inline bool unit_weight_gradient(const Taps<bf16>& t, int64_t channels, int64_t C, const Expansion& e, float* dw) {
  const int lanes = equal_lanes(t.cells, kLeastLanes);
  if (isa_active() != Isa::avx512_amx || lanes == 0 || channels < 1 || C < kLeastChannels) return false;
  const int64_t area = e.KH * e.KW, tiles = ceil_div(channels, kTile), last = ceil_div(C, kTile), Cp = last * kTile;
  const int rows = static_cast<int>(ceil_div(channels, tiles));
  const int64_t image = e.KW * e.plane() * Cp, shares = t.cells / lanes;
  int32_t* const x = scratch<int32_t>(Slot::gates, t.images * image);  // [images][kw][cell][channel]
  for (int64_t n = 0; n < t.images; ++n)
    transpose_copy<int32_t>(x + n * image, Cp, t.e + n * t.e_image, e.KW * e.plane(), C, e.KW * e.plane());
  parallel(area, kParallelWork / (t.images * t.cells * channels * C / kUnitSpeed + 1) + 1, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kPanel * kPanel];
    begin_tiles(rows, lanes);
    for (int64_t tap = begin; tap < end; ++tap) {
      const int32_t* const from = x + e.offset(0, tap / e.KW, tap % e.KW) * Cp;
      for (int64_t k = 0; k < tiles; k += 2)
        for (int64_t c = 0; c < last; c += 2) {
          // The last tile of channels ends with the last one: what it shares with the tile before is not added again.
          const int64_t first = min_of(k * rows, channels - rows), second = min_of((k + 1) * rows, channels - rows);
          const bool two = k + 1 < tiles;
          const int32_t *a = t.g + first * t.cells, *b = from + c * kTile;
          int64_t share = 0;
          multiply_tiles(two, c + 1 < last, t.images * shares, {t.cells, (second - first) * t.cells, Cp}, rows,
                         [=](int64_t, const int32_t*& at, const int32_t*& bt) mutable {
                           at = a + share * lanes, bt = b + share * lanes * Cp;
                           if (++share == shares) share = 0, a += t.g_image, b += image;
                         }, sums);
          const int columns = static_cast<int>(min_of<int64_t>(kPanel, C - c * kTile));
          for (int half = 0; half < (two ? 2 : 1); ++half)
            for (int64_t r = (k + half) * rows - (half ? second : first); r < rows; ++r) {
              const float* sum = sums + (half * rows + r) * kPanel;
              float* to = dw + (((half ? second : first) + r) * C + c * kTile) * area + tap;
              for (int i = 0; i < columns; ++i) to[i * area] += sum[i];
            }
        }
    }
    end_tiles();
  });
  return true;
}
#endif

}  // namespace ts::TS_ISA
