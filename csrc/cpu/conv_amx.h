// bfloat16 convolutions on the matrix unit (amx.h). Its tiles are read straight from the expanded image (conv_cells.h): of B a tile
// is 16 output cells of up to 16 planes of pairs. Those that a window row meets, (channel, kw), lie one plane apart; `lines` are
// all of them. In the weight gradient, where sums run over cells, columns are lines and the image is transposed for it.
//
// Lines, or cells, are shared out among tiles equally, so that no tile reads what is not its own: a zero times that could be NaN.
#pragma once

#include "conv_cells.h"
#include "conv_weights.h"

namespace ts::TS_ISA {

// The tiles of a convolution's product: rows (output channels) and lanes along K (lines) of one, and tiles for all lines of a
// window row. rows == 0: the unit is not for it.
struct UnitTiles {
  int rows = 0, lanes = 0;
  int64_t blocks = 0;
};

template <class T>
TS_INLINE UnitTiles unit_tiles(int64_t M, int64_t lines) {
  if (kUnit<T> && isa_active() == Isa::avx512_amx && M > 0)
    if (const int lanes = equal_lanes(lines)) return {static_cast<int>(ceil_div(M, ceil_div(M, kTile))), lanes, lines / lanes};
  return {};
}
// Lanes that the packed weights of M channels take, of KH window rows. 0 on vectors.
TS_INLINE int64_t unit_weights(const UnitTiles& unit, int64_t M, int64_t KH) {
  return unit.rows ? ceil_div(M, unit.rows) * unit.rows * unit.blocks * kTile * KH : 0;
}

// Where each step's lines begin: in the order of the weights.
TS_INLINE void unit_offsets(int64_t* at, const UnitTiles& unit, const Expansion& e) {
  for (int64_t kh = 0; kh < e.KH; ++kh)
    for (int64_t b = 0; b < unit.blocks; ++b) *at++ = e.offset(0, kh, 0) + b * unit.lanes * e.plane();
}

#if defined(TS_AMX)
// Weights as lanes [M, KH, lines] packed as tiles: of two tiles of channels, which are multiplied together, [KH][block][2][rows][16].
TS_INLINE void pack_tiles(int32_t* to, const UnitTiles& unit, const int32_t* w, int64_t M, int64_t KH) {
  const int64_t steps = KH * unit.blocks, lines = unit.blocks * unit.lanes;
  for (int64_t i0 = 0; i0 < M; i0 += 2 * unit.rows) {
    const int64_t rows = min_of<int64_t>(2 * unit.rows, M - i0), step = (rows > unit.rows ? 2 : 1) * unit.rows * kTile;
    if (rows % unit.rows) std::memset(to, 0, sizeof(int32_t) * steps * step);
    for (int64_t i = 0; i < rows; ++i, w += KH * lines)
      for (int64_t k = 0; k < steps; ++k) store<int32_t>(to + k * step + i * kTile, load_n<int32_t>(w + k * unit.lanes, unit.lanes));
    to += steps * step;
  }
}

// Weights [M, C, KH, KW] as such tiles.
inline void pack_unit_weights(int32_t* to, const UnitTiles& unit, const bf16* w, int64_t M, int64_t C, int64_t KH, int64_t KW) {
  const bf16* rows = w;
  if (KH > 1) {  // [M, KH, C, KW]
    bf16* next = scratch<bf16>(Slot::batch, M * C * KH * KW);
    rows = next;
    for (int64_t m = 0; m < M; ++m)
      for (int64_t kh = 0; kh < KH; ++kh)
        for (int64_t c = 0; c < C; ++c)
          for (int64_t kw = 0; kw < KW; ++kw) *next++ = w[((m * C + c) * KH + kh) * KW + kw];
  }
  pack_tiles(to, unit, lane_planes<bf16>(rows, M * KH, C, KW, Slot::planes), M, KH);
}
// Weights [C, M] of a 1 x 1 window, which may be many for few cells: turned as pairs of rows.
inline void pack_turned_weights(int32_t* to, const UnitTiles& unit, const bf16* w, int64_t M, int64_t C) {
  const int64_t pairs = lanes_of<bf16>(C);
  int32_t* const turned = scratch<int32_t>(Slot::planes, M * pairs);
  transpose_rows<int32_t>(turned, pairs, pairs, M, [&](int64_t q, int64_t m, int n) {
    const bf16* low = w + 2 * q * M + m;
    return zip_pairs(low, 2 * q + 1 < C ? low + M : nullptr, n);
  });
  pack_tiles(to, unit, turned, M, 1);
}

// y[M, cells] = the product of weights (pack_tiles) and one expanded image, whose planes lie `plane` apart; y's `pitch`.
template <class Y>
void unit_product(const UnitTiles& unit, const int32_t* e, int64_t plane, const int64_t* offset, int64_t KH, int64_t M, int64_t cells,
                  const int32_t* packed, const bf16* bias, bool relu, Y* y, int64_t pitch) {
  const int64_t steps = KH * unit.blocks, tile = int64_t{unit.rows} * kTile;
  parallel(ceil_div(cells, kPanel), kParallelWork * kUnitSpeed / (M * steps * unit.lanes * kPanel + 1) + 1, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kPanel * kPanel];
    begin_tiles(unit.rows, unit.lanes);
    for (int64_t j = begin * kPanel; j < min_of(cells, end * kPanel); j += kPanel)
      for (int64_t i = 0; i < M; i += 2 * unit.rows) {
        const int rows = static_cast<int>(min_of<int64_t>(2 * unit.rows, M - i)), columns = static_cast<int>(min_of<int64_t>(kPanel, cells - j));
        const bool two = rows > unit.rows;
        const int32_t* const a = packed + i * kTile * steps;
        const int64_t a_step = two ? 2 * tile : tile;
        multiply_tiles(two, columns > kTile, steps, {kTile, tile, plane}, unit.rows,
                       [=](int64_t k, const int32_t*& at, const int32_t*& bt) { at = a + k * a_step, bt = e + offset[k] + j; }, sums);
        write_sums(sums, rows, columns, y + i * pitch + j, pitch, bias ? bias + i : nullptr, nullptr, false, relu);
      }
    end_tiles();
  });
}

// dw[channels][C][KH, KW] (+)= the sum over a group of images, as pairs. Whether the unit is for it.
inline bool unit_weight_gradient(const Taps<bf16>& t, int64_t channels, int64_t C, const Expansion& e, float* dw) {
  const int lanes = equal_lanes(t.cells);
  if (isa_active() != Isa::avx512_amx || lanes == 0 || channels == 0) return false;
  const int64_t lines = C * e.KW, panels = ceil_div(lines, kPanel), pitch = ceil_div(lines, kTile) * kTile, image = e.plane() * pitch;
  const int64_t tiles = ceil_div(channels, kTile), shares = t.cells / lanes;
  const int rows = static_cast<int>(ceil_div(channels, tiles));
  int32_t* const x = scratch<int32_t>(Slot::gates, t.images * image);  // [images][cell][line]
  for (int64_t n = 0; n < t.images; ++n) transpose_copy<int32_t>(x + n * image, pitch, t.e + n * t.e_image, e.plane(), lines, e.plane());
  parallel(e.KH * panels, kParallelWork * kUnitSpeed / (t.images * t.cells * channels * kPanel + 1) + 1, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kPanel * kPanel];
    begin_tiles(rows, lanes);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t kh = item / panels, first_line = item % panels * kPanel;
      const int columns = static_cast<int>(min_of<int64_t>(kPanel, lines - first_line));
      int64_t place[kPanel];  // of each line's sum among a channel's weights
      for (int i = 0; i < columns; ++i) place[i] = ((first_line + i) / e.KW * e.KH + kh) * e.KW + (first_line + i) % e.KW;
      for (int64_t k = 0; k < tiles; k += 2) {
        // The last tile of channels ends with the last of them: those that it shares with the tile before are added once.
        const int64_t first[2] = {min_of(k * rows, channels - rows), min_of((k + 1) * rows, channels - rows)};
        const bool two = k + 1 < tiles;
        const int32_t *a = t.g + first[0] * t.cells, *b = x + e.offset(0, kh, 0) * pitch + first_line;
        int64_t share = 0;
        multiply_tiles(two, columns > kTile, t.images * shares, {t.cells, (first[1] - first[0]) * t.cells, pitch}, rows,
                       [=](int64_t, const int32_t*& at, const int32_t*& bt) mutable {
                         at = a + share * lanes, bt = b + share * lanes * pitch;
                         if (++share == shares) share = 0, a += t.g_image, b += image;
                       }, sums);
        for (int half = 0; half <= two; ++half)
          for (int64_t r = (k + half) * rows - first[half]; r < rows; ++r) {
            const float* const sum = sums + (half * rows + r) * kPanel;
            float* const to = dw + (first[half] + r) * C * e.KH * e.KW;
            for (int i = 0; i < columns; ++i) to[place[i]] = sum[i] + (t.adds ? to[place[i]] : 0.0f);
          }
      }
    }
    end_tiles();
  });
  return true;
}
#endif

}  // namespace ts::TS_ISA
