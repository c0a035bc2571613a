// An image as the right factor of a GEMM: column j is the output cell (j / OW, j % OW), row k the window cell (c, kh, kw).
// Nothing is materialised: cells are read out of the (padded) image where it can be done in place (conv_tile), else a panel
// of kColumns cells is cut out when the GEMM asks for it.
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
  // a: [M, K]. `block` columns at a time: kDepth for gemm, K for conv_tile.
  static LeftPacked pack(T* buffer, int64_t M, int64_t K, const T* a, int64_t block = kDepth) {
    const int rows = panel_rows(M);
    for (int64_t k0 = 0; k0 < K; k0 += block) {
      const int64_t depth = min_of(block, K - k0);
      for (int64_t i = 0; i < M; i += rows)
        LeftStrided<T>{a, K, 1}.panel(buffer + k0 * M + i * depth, i, static_cast<int>(min_of<int64_t>(rows, M - i)), k0,
                                      depth);
    }
    return {buffer, M, rows};
  }
  const T* panel(T*, int64_t i0, int, int64_t k0, int64_t depth) const { return data + k0 * M + i0 * depth; }
};

#if defined(__AVX512F__)
// Direct convolution, stride 1 in width, nothing packed: the vectors of output cells are assembled straight from the image.
// A vector of 16 consecutive output cells lies in `pieces` runs of image cells, one for each output row it touches; each run
// is one masked load whose pointer is moved back so that its cells land in their lanes. Masked-off lanes cost nothing.
constexpr int kMostPieces = 4;  // vectors over more rows than that (OW < 6) are cheaper to pack once

template <class T>
struct Pieces {
  int64_t offset[2 * kMostPieces];  // [vector][piece], from the first cell of the window
  uint16_t mask[2 * kMostPieces];
  int most = 0;  // pieces of the vector that has most; 0 if it has too many

  // Output cells [j0, j0 + columns) of an image with OW cells a row, `row_step` image cells from output row to output row.
  Pieces(int64_t j0, int columns, int64_t OW, int64_t row_step) {
    constexpr int L = kLanes<T>;
    int count = 0;
    for (int v = 0; v < 2; ++v) {
      int piece = 0;
      for (int lane = 0; lane < L && v * L + lane < columns; ++piece) {
        if (piece == kMostPieces) return;
        const int64_t j = j0 + v * L + lane, oh = j / OW, ow = j % OW;
        const int n = static_cast<int>(min_of<int64_t>(min_of(L - lane, columns - v * L - lane), OW - ow));
        offset[v * kMostPieces + piece] = oh * row_step + ow - lane;
        mask[v * kMostPieces + piece] = static_cast<uint16_t>(((1u << n) - 1) << lane);
        lane += n;
      }
      count = max_of(count, piece);
      for (; piece < kMostPieces; ++piece) offset[v * kMostPieces + piece] = 0, mask[v * kMostPieces + piece] = 0;
    }
    most = count;
  }
};

TS_INLINE Vec<float> merge_load(Vec<float> v, uint16_t mask, const float* p) {
  return (Vec<float>)_mm512_mask_loadu_ps((__m512)v, mask, p);
}
TS_INLINE Vec<double> merge_load(Vec<double> v, uint16_t mask, const double* p) {
  return (Vec<double>)_mm512_mask_loadu_pd((__m512d)v, static_cast<__mmask8>(mask), p);
}

// R output channels x V vectors of output cells over the whole window. w: panel of LeftPacked, w[k * R + i].
// cell[k]: where window cell k lies from the window's first.
template <class T, int R, int V, int P>
void conv_tile(const T* x, const Pieces<T>& pieces, const int64_t* cell, int64_t depth, const T* w, T* y, int64_t pitch,
               int columns, const T* bias, bool relu_at_end) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[R][V] = {};
  const T* from[V][P];
  uint16_t mask[V][P];
  for (int v = 0; v < V; ++v)
    for (int p = 0; p < P; ++p) {
      from[v][p] = x + pieces.offset[v * kMostPieces + p];
      mask[v][p] = pieces.mask[v * kMostPieces + p];
    }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> xv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      xv[v] = Vec<T>{};
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) xv[v] = merge_load(xv[v], mask[v][p], from[v][p] + cell[k]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vec<T> wv = splat<T>(w[i]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[i][v] += wv * xv[v];
    }
    w += R;
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const int n = v + 1 < V ? L : columns - v * L;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      Vec<T> out = bias ? sum[i][v] + splat<T>(bias[i]) : sum[i][v];
      if (relu_at_end) out = relu<T>(out);
      store_n<T>(y + i * pitch + v * L, out, n);
    }
  }
}

template <class T>
using ConvTile = void (*)(const T*, const Pieces<T>&, const int64_t*, int64_t, const T*, T*, int64_t, int, const T*, bool);

template <class T, int V, int P, int R = kRows>
TS_INLINE ConvTile<T> conv_tile_rows(int rows) {
  if constexpr (R == 0) return nullptr;
  else return rows == R ? conv_tile<T, R, V, P> : conv_tile_rows<T, V, P, R - 1>(rows);
}
template <class T>
ConvTile<T> conv_tile_for(int rows, int vectors, int pieces) {
  if (vectors == 1) return pieces <= 1 ? conv_tile_rows<T, 1, 1>(rows) : pieces == 2 ? conv_tile_rows<T, 1, 2>(rows) : conv_tile_rows<T, 1, 4>(rows);
  return pieces <= 1 ? conv_tile_rows<T, 2, 1>(rows) : pieces == 2 ? conv_tile_rows<T, 2, 2>(rows) : conv_tile_rows<T, 2, 4>(rows);
}
#endif

// y[M, cells] = w x(window) for one image and group. w packed by LeftPacked over the whole depth where direct.
template <class T>
struct ImageProduct {
  Image<T> image;
  int64_t M, depth, cells;
  const int64_t* cell;  // [depth], offsets of the window's cells
  bool direct;          // weights are packed for conv_tile

  static bool can_be_direct(int64_t SW, int64_t OW) {
#if defined(__AVX512F__)
    // Rows a vector may touch: all it can reach from any start, or its exact number where rows divide the vector.
    constexpr int L = kLanes<T>;
    return SW == 1 && OW > 0 && (OW * (kMostPieces - 1) >= L - 1 || (L % OW == 0 && L / OW <= kMostPieces));
#else
    return false && SW == OW;
#endif
  }

  void run(const T* packed, T* y, const T* bias, bool relu) const {
#if defined(__AVX512F__)
    if (direct) return run_direct(packed, y, bias, relu);
#endif
    gemm<T>(M, cells, depth, LeftPacked<T>{packed, M, panel_rows(M)}, image, y, cells, {.row_bias = bias, .relu = relu});
  }

#if defined(__AVX512F__)
  void tiles(const T* packed, T* y, const T* bias, bool relu, int64_t j, int64_t i_begin, int64_t i_end) const {
    const int columns = static_cast<int>(min_of<int64_t>(kColumns<T>, cells - j)), rows = panel_rows(M);
    const Pieces<T> pieces(j, columns, image.OW, image.SH * image.pitch);
    for (int64_t i = i_begin; i < i_end; i += rows) {
      const int r = static_cast<int>(min_of<int64_t>(rows, M - i));
      conv_tile_for<T>(r, columns > kLanes<T> ? 2 : 1, pieces.most)(image.x, pieces, cell, depth, packed + i * depth,
                                                                    y + i * cells + j, cells, columns,
                                                                    bias ? bias + i : nullptr, relu);
    }
  }
  void run_direct(const T* packed, T* y, const T* bias, bool relu) const {
    constexpr int64_t W = kColumns<T>;
    const int64_t panels = ceil_div(cells, W), rows = panel_rows(M), row_panels = ceil_div(M, rows);
    const int64_t grain = kParallelWork / (depth * W * rows) + 1;
    // Weights that leave the L2 cache are read once for all cells of a row panel; smaller ones stay while the cells pass.
    if (M * depth * static_cast<int64_t>(sizeof(T)) > (256 << 10)) {
      parallel(row_panels, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < panels; ++j) tiles(packed, y, bias, relu, j * W, i * rows, min_of(M, (i + 1) * rows));
      });
    } else {
      parallel(panels, grain, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) tiles(packed, y, bias, relu, j * W, 0, M);
      });
    }
  }
#endif
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
