// The weight gradient of a convolution:  dw[r][s] = sum over images and output cells of g[r][cell] * e[offset[s] + cell].
// Lanes are output cells of the expanded image (conv_cells.h), so that no channel count wastes lanes; R x S sums stay in
// registers over a group of images, and their lanes are summed once at the end. Of bf16 a lane is a pair of images.
// Where channels fill vectors, lanes are channels of g instead (channel_tile), or 8 channels of two neighbouring cells (pair_tile).
#pragma once

#include <type_traits>

#include "conv_cells.h"

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

template <class T>
struct Taps {  // a group of images, as lanes: g [images][..][cells], e expanded; strides from image to image, channel to channel
  const Lane<T> *g, *e;
  int64_t g_image, e_image, images, cells, pitch;
  bool adds;  // to what dw holds: else that is overwritten, and need not have been set to zero
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
      for (int r = 0; r < R; ++r) gr[r] = load<Cell>(gn + r * t.pitch + j);
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
        for (int r = 0; r < R; ++r) sum[r][s] = multiply_add(sum[r][s], load_n<Cell>(gn + r * t.pitch + j, rest), x);
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
    for (int s = 0; s < S; ++s) dw[r * dw_pitch + s] = flat[r * S + s] + (t.adds ? dw[r * dw_pitch + s] : W(0));
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

// The other way: lanes are channels of g, whose cells are transposed for it, and e is read cell by cell, through a pointer for
// each tap of a tile. Without a sum over lanes at the end it takes 0.7-0.85 of the time where channels fill their vectors;
// with AVX-512, which has registers for more taps, 0.6-0.9 where they fill two at a time (with 16 channels 1.07).
#if defined(__AVX512F__)
constexpr int kTapRows = 10, kVectorsToFill = 2;
#else
constexpr int kTapRows = kDirectRows, kVectorsToFill = 1;
#endif
constexpr int64_t kChunk = 384;  // cells at a time: 384 x 16 floats of g are 24 KB of a 32 KB L1
constexpr int64_t kTapsToTransposeFor = 48;

// 24 channels leave lanes of two vectors of 16 empty, and with 16 in one vector each multiply-add needs a load. Lanes are then
// 8 channels x 2 neighbouring cells, in two or three vectors, all of which one broadcast of two cells of e meets: 0.8 of the time.
#if defined(__AVX512F__)
template <class T>
constexpr bool kCellPairs = std::is_same_v<T, float>;
#else
template <class T>
constexpr bool kCellPairs = false;
#endif
constexpr int kPairChannels = 8;  // of a vector
constexpr int pair_rows(int vectors) { return vectors == 2 ? 14 : 9; }  // 28 or 27 sums, 2 or 3 of g, 1 of e
// Vectors for the channels of a panel, 0 where pairs are not for them; two cells must be one place of g.
template <class T>
int pair_vectors(int64_t channels, int64_t cells) {
  if (!kCellPairs<T> || channels <= kPairChannels || channels > 3 * kPairChannels || cells % 2) return 0;
  return channels > 2 * kPairChannels ? 3 : 2;
}
template <class T>
bool channel_lanes(int64_t channels, int64_t taps, int64_t cells) {
  constexpr int64_t lanes = kVectorsToFill * kLanes<T>;
  const int64_t rest = channels % lanes, pairs = pair_vectors<T>(rest, cells);
  const int64_t last = rest == 0 ? 0 : pairs ? pairs * kPairChannels : lanes;
  return kPair<T> == 1 && taps >= kTapsToTransposeFor && 4 * channels >= 3 * (channels - rest + last);
}

// R taps x V vectors of channels over `cells` cells of each image. g: [images][cells][kColumns].
template <class T, int R, int V>
void channel_tile(const Taps<T>& t, const T* g, const T* e, const int64_t* offset, int channels, T* dw, int64_t dw_pitch) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[R][V] = {};
  for (int64_t n = 0; n < t.images; ++n, e += t.e_image) {
    const T* at[R];
    for (int i = 0; i < R; ++i) at[i] = e + offset[i];
#pragma GCC unroll kUnroll
    for (int64_t j = 0; j < t.cells; ++j, g += kColumns<T>) {
      Vec<T> gv[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) gv[v] = load<T>(g + v * L);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) add_row<R>(i, sum[i], at[i] + j, gv);
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
    for (int r = 0; r < R; r += L) {  // squares of L taps
      Vec<T> square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = r + i < R ? sum[r + i < R ? r + i : 0][v] : Vec<T>{};
      transpose<T>(square);
      const int lanes = min_of(R - r, L);
      for (int k = 0; k < min_of(channels - v * L, L); ++k) {
        T* to = dw + (v * L + k) * dw_pitch + r;
        store_n<T>(to, t.adds ? load_n<T>(to, lanes) + square[k] : square[k], lanes);
      }
    }
}

// R taps x V vectors over pairs of cells. g: [images][cells / 2][V * kPairChannels][2].
template <class T, int R, int V>
void pair_tile(const Taps<T>& t, const T* g, const T* e, const int64_t* offset, int channels, T* dw, int64_t dw_pitch) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[R][V] = {};
  for (int64_t n = 0; n < t.images; ++n, e += t.e_image) {
    const T* at[R];
    for (int i = 0; i < R; ++i) at[i] = e + offset[i];
    for (int64_t j = 0; j < t.cells; j += 2, g += V * L) {
      Vec<T> gv[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) gv[v] = load<T>(g + v * L);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        double two;  // cells j and j + 1
        std::memcpy(&two, at[i] + j, sizeof two);
        const Vec<T> x = (Vec<T>)splat<double>(two);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) sum[i][v] += x * gv[v];
      }
    }
  }
#pragma GCC unroll 3
  for (int v = 0; v < V; ++v) {
    Vec<T> square[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) square[i] = i < R ? sum[i < R ? i : 0][v] : Vec<T>{};
    transpose<T>(square);
    for (int k = 0; k < min_of(channels - v * L / 2, L / 2); ++k) {
      T* to = dw + (v * L / 2 + k) * dw_pitch;
      const Vec<T> both = square[2 * k] + square[2 * k + 1];
      store_n<T>(to, t.adds ? load_n<T>(to, R) + both : both, R);
    }
  }
}

template <class T>
using ChannelTile = void (*)(const Taps<T>&, const T*, const T*, const int64_t*, int, T*, int64_t);
template <class T, int V, int R = pair_rows(V)>
TS_INLINE ChannelTile<T> pair_tile_for(int rows) {
  if constexpr (R == 0 || !kCellPairs<T>) return nullptr;
  else return rows == R ? pair_tile<T, R, V> : pair_tile_for<T, V, R - 1>(rows);
}
template <class T, int R = kTapRows>
TS_INLINE ChannelTile<T> channel_tile_for(int rows, int vectors) {
  if constexpr (R == 0) return nullptr;
  else if (rows != R) return channel_tile_for<T, R - 1>(rows, vectors);
  else return vectors == 1 ? channel_tile<T, R, 1> : channel_tile<T, R, 2>;
}

template <class T>
void add_by_channels(const Taps<T>& t, int64_t channels, int64_t begin, int64_t end, int64_t taps, T* dw) {
  constexpr int W = kColumns<T>;
  const int64_t images = max_of<int64_t>(1, kChunk / t.cells), cells = ceil_div(ceil_div(t.cells, ceil_div(t.cells, kChunk)), 2) * 2;
  T* const g = scratch<T>(Slot::pack_b, images * cells * W);
  for (int64_t n = 0; n < t.images; n += images)
    for (int64_t j = 0; j < t.cells; j += cells) {
      const Taps<T> chunk{nullptr, nullptr, 0, t.e_image, min_of(images, t.images - n), min_of(cells, t.cells - j), 0,
                          t.adds || n > 0 || j > 0, nullptr};
      for (int64_t k = 0; k < channels; k += W) {
        const int lanes = static_cast<int>(min_of<int64_t>(W, channels - k));
        const int pairs = pair_vectors<T>(lanes, t.cells | t.pitch);
        const int64_t pitch = pairs ? pairs * kPairChannels : W, rows = panel_rows(end - begin, pairs ? pair_rows(pairs) : kTapRows);
        // What lies in lanes without a channel counts nowhere, but denormals there would take thirty times as long. They stay
        // zeros until a panel with more channels takes the place.
        if (lanes < pitch && (k > 0 || (n == 0 && j == 0))) std::memset(g, 0, sizeof(T) * images * cells * W);
        for (int64_t m = 0; m < chunk.images; ++m) {
          const T* from = t.g + (n + m) * t.g_image + k * t.pitch + j;
          T* const to = g + m * chunk.cells * pitch;
          if (pairs)  // moved as one number of twice the size
            transpose_copy<double>(reinterpret_cast<double*>(to), pitch, reinterpret_cast<const double*>(from), t.pitch / 2, lanes, chunk.cells / 2);
          else
            transpose_copy<T>(to, W, from, t.pitch, lanes, chunk.cells);
        }
        for (int64_t s = begin; s < end; s += rows) {
          const int at_once = static_cast<int>(min_of(rows, end - s));
          (pairs == 3 ? pair_tile_for<T, 3>(at_once) : pairs ? pair_tile_for<T, 2>(at_once) : channel_tile_for<T>(at_once, lanes > W / 2 ? 2 : 1))(
              chunk, g, t.e + n * t.e_image + j, t.offset + s, lanes, dw + k * taps + s, taps);
        }
      }
    }
}

// dw[channels][taps] (+)= the sum over a group of images.
template <class T>
void add_weight_gradient(const Taps<T>& t, int64_t channels, int64_t taps, Wide<T>* dw) {
  if (channels == 0 || taps == 0 || t.cells == 0) return;
  if constexpr (kPair<T> == 1)
    if (channel_lanes<T>(channels, taps, t.cells | t.pitch)) {
      const int64_t grain = kParallelWork / (t.cells * t.images * kTapRows * channels + 1) + 1;
      return parallel(ceil_div(taps, kTapRows), grain, [&](int64_t begin, int64_t end) {
        add_by_channels<T>(t, channels, begin * kTapRows, min_of(taps, end * kTapRows), taps, dw);
      });
    }
  const int64_t S = ceil_div(taps, ceil_div(taps, kTileTaps)), R = ceil_div(channels, ceil_div(channels, kTileRows));
  const int64_t row_bytes = t.images * t.cells * static_cast<int64_t>(sizeof(Lane<T>));
  const int64_t at_once = R * max_of<int64_t>(1, kRowBytes / (R * row_bytes + 1));
  const int64_t grain = kParallelWork / (t.cells * t.images * S * channels + 1) + 1;
  parallel(ceil_div(taps, S), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r0 = 0; r0 < channels; r0 += at_once)
      for (int64_t s = begin * S; s < min_of(taps, end * S); s += S)
        for (int64_t r = r0; r < min_of(channels, r0 + at_once); r += R)
          tap_tile_for<T>(static_cast<int>(min_of(R, channels - r)), static_cast<int>(min_of(S, taps - s)))(
              t, t.g + r * t.pitch, t.offset + s, dw + r * taps + s, taps);
  });
}

}  // namespace ts::TS_ISA
