// An image as the right factor of a GEMM: column j is the output cell (j / OW, j % OW), row k the window cell (c, kh, kw).
// Nothing is materialised: a panel of kColumns cells is cut out of the (padded) image when the GEMM asks for it.
#pragma once

#include "gemm.h"
#include "pool.h"

namespace ts::TS_ISA {

template <class T>
struct Image {
  const T* x;             // channel planes
  int64_t plane, pitch;   // cells from plane to plane, from row to row
  int64_t KH, KW, DH, DW, SH, SW, OW;

  void panel(T* buffer, int64_t k0, int64_t depth, int64_t j0, int columns) const {
    constexpr int W = kColumns<T>, L = kLanes<T>;
    // The panel's cells fall into runs of consecutive cells of one output row, none longer than a vector.
    int64_t source[W];
    int target[W], length[W], runs = 0;
    for (int j = 0; j < columns;) {
      const int64_t oh = (j0 + j) / OW, ow = (j0 + j) % OW;
      const int n = static_cast<int>(min_of<int64_t>(min_of(L, columns - j), OW - ow));
      source[runs] = oh * SH * pitch + ow * SW;
      target[runs] = j;
      length[runs++] = n;
      j += n;
    }
    int64_t kw = k0 % KW, kh = k0 / KW % KH, c = k0 / (KW * KH);
    for (int64_t k = 0; k < depth; ++k, buffer += W) {
      const T* cell = x + c * plane + kh * DH * pitch + kw * DW;
      // Whole vectors are stored; the next run overwrites what lies beyond this one (the slack ends the last panel).
      for (int r = 0; r < runs; ++r) store<T>(buffer + target[r], load_strided<T>(cell + source[r], SW, length[r]));
      if (++kw == KW) {
        kw = 0;
        if (++kh == KH) kh = 0, ++c;
      }
    }
  }
};

// Copies C planes of H x W cells into planes of PH x PW zeros, cell (h, w) to (top + h * SH, left + w * SW); what falls
// outside is dropped. Padding for the forward pass, zero insertion for the data gradient.
template <class T>
void place(T* to, int64_t PH, int64_t PW, const T* from, int64_t C, int64_t H, int64_t W, int64_t top, int64_t left,
           int64_t SH, int64_t SW) {
  std::memset(to, 0, sizeof(T) * C * PH * PW);
  const int64_t w_begin = left >= 0 ? 0 : ceil_div(-left, SW);
  const int64_t w_end = min_of(W, PW - left <= 0 ? int64_t(0) : ceil_div(PW - left, SW));
  for (int64_t c = 0; c < C; ++c)
    for (int64_t h = 0; h < H; ++h) {
      const int64_t row = top + h * SH;
      if (row < 0 || row >= PH || w_begin >= w_end) continue;
      T* target = to + (c * PH + row) * PW + left;
      const T* source = from + (c * H + h) * W;
      if (SW == 1) std::memcpy(target + w_begin, source + w_begin, sizeof(T) * (w_end - w_begin));
      else
        for (int64_t w = w_begin; w < w_end; ++w) target[w * SW] = source[w];
    }
}

// A left factor packed once for many products: panels of panel_rows(M) rows, for each block of kDepth columns.
template <class T>
struct LeftPacked {
  const T* data;
  int64_t M;
  int rows;
  static LeftPacked pack(T* buffer, int64_t M, int64_t K, const T* a) {  // a: [M, K]
    const int rows = panel_rows(M);
    for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
      const int64_t depth = min_of(kDepth, K - k0);
      for (int64_t i = 0; i < M; i += rows)
        LeftStrided<T>{a, K, 1}.panel(buffer + k0 * M + i * depth, i, static_cast<int>(min_of<int64_t>(rows, M - i)), k0,
                                      depth);
    }
    return {buffer, M, rows};
  }
  const T* panel(T*, int64_t i0, int, int64_t k0, int64_t depth) const { return data + k0 * M + i0 * depth; }
};

// dw tile: R window cells x V vectors of output channels, summed over the OH x OW output cells of an image.
//   sum[i][co] += x[cell + offset[i]] * gt[cell][co]
template <class T, int R, int V>
void weight_tile(const T* x, const int64_t* offset, int64_t row_step, int64_t column_step, const T* gt, int64_t gt_pitch,
                 int64_t OH, int64_t OW, T* sums, int64_t sums_pitch) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[R][V];
#pragma GCC unroll 32
  for (int i = 0; i < R; ++i)
    for (int v = 0; v < V; ++v) sum[i][v] = load<T>(sums + i * sums_pitch + v * L);
  for (int64_t oh = 0; oh < OH; ++oh) {
    const T* cell = x + oh * row_step;
    for (int64_t ow = 0; ow < OW; ++ow, cell += column_step, gt += gt_pitch) {
      Vec<T> g[V];
      for (int v = 0; v < V; ++v) g[v] = load<T>(gt + v * L);
#pragma GCC unroll 32
      for (int i = 0; i < R; ++i) {
        const Vec<T> xv = splat<T>(cell[offset[i]]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[i][v] += xv * g[v];
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < R; ++i)
    for (int v = 0; v < V; ++v) store<T>(sums + i * sums_pitch + v * L, sum[i][v]);
}

template <class T>
using WeightTile = void (*)(const T*, const int64_t*, int64_t, int64_t, const T*, int64_t, int64_t, int64_t, T*, int64_t);

constexpr int kTallRows = 2 * kRows;  // one vector of channels leaves room for twice the window cells

template <class T, int R = kTallRows>
TS_INLINE WeightTile<T> weight_tile_for(int rows, int vectors) {
  if constexpr (R == 0) return nullptr;
  else if constexpr (R > kRows) return rows == R ? weight_tile<T, R, 1> : weight_tile_for<T, R - 1>(rows, vectors);
  else if (rows == R) return vectors == 1 ? weight_tile<T, R, 1> : weight_tile<T, R, 2>;
  else return weight_tile_for<T, R - 1>(rows, vectors);
}

}  // namespace ts::TS_ISA
