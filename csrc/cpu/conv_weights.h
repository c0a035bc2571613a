// The weight gradient of a convolution:  dw[r][s] = sum over images and output cells of g[r][cell] * e[offset[s] + cell].
// Lanes are output cells of the expanded image (conv_image.h), so that no channel count wastes lanes; R x S sums stay in
// registers over a group of images, and their lanes are summed once at the end. Of bf16 a lane is a pair of images.
#pragma once

#include "conv_image.h"

namespace ts::TS_ISA {

// Sums + a vector of g for each row + one of e fill the registers: 25 + 5 + 1 of 32, 12 + 3 + 1 of 16.
#if defined(__AVX512F__)
constexpr int kTileRows = 5, kTileTaps = 5;
#else
constexpr int kTileRows = 3, kTileTaps = 4;
#endif
// Of g that many bytes at a time meet all of e: half of a 32 KB L1, so that from L2 comes e alone.
constexpr int64_t kRowBytes = 16 << 10;
// Vectors in a group of images: enough to make the final sum over lanes (about 4 instructions a sum) small.
constexpr int64_t kGroupVectors = 64;

// Sums the lanes of L vectors at once: lane i of the result is the sum of v[i]. Each round halves the vectors.
template <class T>
TS_INLINE Vec<T> sum_each(Vec<T> (&v)[kLanes<T>]) {
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = zip_low<T>(v[i], v[i + half]) + zip_high<T>(v[i], v[i + half]);
  return v[0];
}

template <class T>
struct Taps {  // a group of images, as lanes: g [images][..][cells], e expanded; strides from image to image
  const Lane<T> *g, *e;
  int64_t g_image, e_image, images, cells;
  const int64_t* offset;
};

template <class T, int R, int S>
void tap_tile(const Taps<T>& t, const Lane<T>* g, const int64_t* offset, Wide<T>* dw, int64_t dw_pitch) {
  using W = Wide<T>;
  using Cell = Lane<T>;
  constexpr int L = kLanes<W>, kRounds = (R * S + L - 1) / L;
  Vec<W> sum[R][S] = {};  // only ever indexed by constants: else it would live in memory
  const int rest = static_cast<int>(t.cells % L);
  for (int64_t n = 0; n < t.images; ++n, g += t.g_image) {
    const Cell *at[S], *gn = g;
    for (int s = 0; s < S; ++s) at[s] = t.e + n * t.e_image + offset[s];
    int64_t j = 0;
    for (; j + L <= t.cells; j += L) {
      Vec<Cell> gr[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) gr[r] = load<Cell>(gn + r * t.cells + j);
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        const Vec<Cell> x = load<Cell>(at[s] + j);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r][s] = multiply_add(sum[r][s], gr[r], x);
      }
    }
    if (rest) {  // both sides by lanes: a 0 times what lies behind an image could be NaN
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        const Vec<Cell> x = load_n<Cell>(at[s] + j, rest);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r][s] = multiply_add(sum[r][s], load_n<Cell>(gn + r * t.cells + j, rest), x);
      }
    }
  }
  Vec<W> spread[kRounds * L] = {};
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) spread[r * S + s] = sum[r][s];
  W flat[kRounds * L];
  for (int round = 0; round < kRounds; ++round) {
    Vec<W> part[L];
    std::memcpy(part, spread + round * L, sizeof part);
    store<W>(flat + round * L, sum_each<W>(part));
  }
  for (int r = 0; r < R; ++r)
    for (int s = 0; s < S; ++s) dw[r * dw_pitch + s] += flat[r * S + s];
}

template <class T>
using TapTile = void (*)(const Taps<T>&, const Lane<T>*, const int64_t*, Wide<T>*, int64_t);

template <class T, int R, int S = kTileTaps>
TS_INLINE TapTile<T> tap_tile_taps(int taps) {
  if constexpr (S == 0) return nullptr;
  else return taps == S ? tap_tile<T, R, S> : tap_tile_taps<T, R, S - 1>(taps);
}
template <class T, int R = kTileRows>
TS_INLINE TapTile<T> tap_tile_for(int rows, int taps) {
  if constexpr (R == 0) return nullptr;
  else return rows == R ? tap_tile_taps<T, R>(taps) : tap_tile_for<T, R - 1>(rows, taps);
}

// dw[channels][taps] += the sum over a group of images.
template <class T>
void add_weight_gradient(const Taps<T>& t, int64_t channels, int64_t taps, Wide<T>* dw) {
  if (channels == 0 || taps == 0) return;
  const int64_t S = ceil_div(taps, ceil_div(taps, kTileTaps)), R = ceil_div(channels, ceil_div(channels, kTileRows));
  const int64_t row_bytes = t.images * t.cells * static_cast<int64_t>(sizeof(Lane<T>));
  const int64_t at_once = R * max_of<int64_t>(1, kRowBytes / (R * row_bytes + 1));
  const int64_t grain = kParallelWork / (t.cells * t.images * S * channels + 1) + 1;
  parallel(ceil_div(taps, S), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r0 = 0; r0 < channels; r0 += at_once)
      for (int64_t s = begin * S; s < min_of(taps, end * S); s += S)
        for (int64_t r = r0; r < min_of(channels, r0 + at_once); r += R)
          tap_tile_for<T>(static_cast<int>(min_of(R, channels - r)), static_cast<int>(min_of(S, taps - s)))(
              t, t.g + r * t.cells, t.offset + s, dw + r * taps + s, taps);
  });
}

}  // namespace ts::TS_ISA
