// A convolution of one image as a product with unit-stride loads only.
//
// The image is expanded in width: for each channel and window column kw, its rows with the cells that kw meets, OW of them
// and nothing else, padding written as zeros, rows of equal (row mod SH) together:
//   e[c][kw][row % SH][row / SH][ow] = x[c][row - PT][ow * SW + kw * DW - PL]
// Then window cell (c, kh, kw) of output cells j, j + 1, … is e at offset[c, kh, kw] + j, … : a plain vector load across
// output rows, for any stride, dilation and width, so that no lane is wasted on narrow images. It is KW / SW times the
// image instead of im2col's KH * KW / (SH * SW), and nothing at all for a 1 x 1 window.
#pragma once

#include "gemm.h"
#include "pool.h"

namespace ts::TS_ISA {

// Geometry of an expansion. `insert` zeros stand between source cells (the data gradient of a strided convolution).
struct Expansion {
  int64_t C, H, W;          // source planes
  int64_t top, left;        // padding before the first row and column (negative: source rows to drop)
  int64_t insert_h, insert_w;
  int64_t KH, KW, DH, DW, SH, SW;
  int64_t OH, OW;           // output cells
  int64_t phase_rows() const { return ceil_div((OH - 1) * SH + (KH - 1) * DH + 1, SH); }
  int64_t plane() const { return SH * phase_rows() * OW; }
  int64_t size() const { return C * KW * plane(); }
  // Whether the source itself already is its expansion.
  bool trivial() const {
    return KH == 1 && KW == 1 && SH == 1 && SW == 1 && insert_h == 1 && insert_w == 1 && top == 0 && left == 0 &&
           OH == H && OW == W;
  }
  // Where window cell (c, kh, kw) of output cell 0 lies; `channels` of them.
  void offsets(int64_t* at, int64_t channels) const {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t kh = 0; kh < KH; ++kh)
        for (int64_t kw = 0; kw < KW; ++kw)
          *at++ = (c * KW + kw) * plane() + (kh * DH % SH * phase_rows() + kh * DH / SH) * OW;
  }
};

// The cells of a row that one window column meets: to[ow] = row[(ow * stride + shift) / insert] for ow in [begin, end), else 0.
struct Column {
  int64_t shift, begin, end;
  Column(const Expansion& e, int64_t kw) : shift(kw * e.DW - e.left) {
    begin = min_of(e.OW, shift >= 0 ? 0 : ceil_div(-shift, e.SW));
    end = max_of(begin, min_of(e.OW, e.W - shift <= 0 ? int64_t(0) : ceil_div(e.W - shift, e.SW)));
  }
};

template <class T>
TS_INLINE void expand_row(T* to, const T* row, const Expansion& e, const Column& column) {
  constexpr int L = kLanes<T>;
  if (e.insert_w > 1) {  // its stride is 1
    std::memset(to, 0, sizeof(T) * e.OW);
    for (int64_t w = max_of<int64_t>(0, ceil_div(column.shift, e.insert_w)); w < e.W && w * e.insert_w - column.shift < e.OW; ++w)
      to[w * e.insert_w - column.shift] = row[w];
  } else {
    for (int64_t i = 0; i < column.begin; ++i) to[i] = T(0);
    for (int64_t i = column.begin; i < column.end; i += L) {
      const int n = static_cast<int>(min_of<int64_t>(L, column.end - i));
      store_some<T>(to + i, load_strided<T>(row + i * e.SW + column.shift, e.SW, n), n);
    }
    for (int64_t i = column.end; i < e.OW; ++i) to[i] = T(0);
  }
}

// Zeros in whole vectors, up to one beyond the end: memory that is written next, or slack. memset's call costs more here.
template <class T>
TS_INLINE T* zero_cells(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store<T>(to + i, Vec<T>{});
  return to + count;
}

// Stride 1, nothing inserted: whole vectors by masks that hold for every row; what is stored beyond OW the next row overwrites.
template <class T>
T* expand_plain(T* to, const T* plane, const Expansion& e, const Column& column) {
  constexpr int L = kLanes<T>;
  const int64_t rows = e.phase_rows(), top = max_of<int64_t>(0, min_of(rows, e.top)), bottom = max_of(top, min_of(rows, e.H + e.top));
  const T* from = plane + (top - e.top) * e.W + column.shift;
  T* const first_row = zero_cells<T>(to, top * e.OW);
  for (int64_t i = 0; i < e.OW; i += L) {  // a column of vectors after the other: each overwrites only what lies right of it
    const int first = static_cast<int>(max_of<int64_t>(0, min_of<int64_t>(L, column.begin - i)));
    const int last = static_cast<int>(max_of<int64_t>(first, min_of<int64_t>(L, column.end - i)));
    T* row = first_row + i;
    const T* cells = from + i;
    if (i + L <= e.OW && first == 0 && last == L) {
      for (int64_t r = top; r < bottom; ++r, row += e.OW, cells += e.W) store<T>(row, load<T>(cells));
    } else if (e.OW <= L) {
      for (int64_t r = top; r < bottom; ++r, row += e.OW, cells += e.W) store<T>(row, load_between<T>(cells, first, last));
    } else {
      const int width = static_cast<int>(min_of<int64_t>(L, e.OW - i));
      for (int64_t r = top; r < bottom; ++r, row += e.OW, cells += e.W) store_n<T>(row, load_between<T>(cells, first, last), width);
    }
  }
  return zero_cells<T>(to + bottom * e.OW, (rows - bottom) * e.OW);
}

template <class T>
void expand(T* to, const T* x, const Expansion& e) {
  const int64_t phase_rows = e.phase_rows();
  if (e.SH == 1 && e.SW == 1 && e.insert_h == 1 && e.insert_w == 1) {
    for (int64_t c = 0; c < e.C; ++c)
      for (int64_t kw = 0; kw < e.KW; ++kw) to = expand_plain<T>(to, x + c * e.H * e.W, e, Column(e, kw));
    return;
  }
  for (int64_t c = 0; c < e.C; ++c)
    for (int64_t kw = 0; kw < e.KW; ++kw) {
      const Column column(e, kw);
      for (int64_t phase = 0; phase < e.SH; ++phase)
        for (int64_t q = 0; q < phase_rows; ++q, to += e.OW) {
          const int64_t virtual_row = q * e.SH + phase - e.top;
          const int64_t row = e.insert_h == 1 ? virtual_row : virtual_row / e.insert_h;
          if (virtual_row < 0 || row >= e.H || row * e.insert_h != virtual_row) std::memset(to, 0, sizeof(T) * e.OW);
          else expand_row<T>(to, x + (c * e.H + row) * e.W, e, column);
        }
    }
}

// `count` images expanded into a scratch slot, or the images themselves where there is nothing to do.
template <class T>
const T* expanded(const T* x, int64_t count, const Expansion& e, Slot slot) {
  if (e.trivial()) return x;
  T* to = scratch<T>(slot, count * e.size());
  for (int64_t n = 0; n < count; ++n) expand<T>(to + n * e.size(), x + n * e.C * e.H * e.W, e);
  return to;
}

// A matrix [M, K] packed once for many images: panels of panel_rows(M) rows, panel[k * rows + i].
template <class T>
void pack_weights(T* to, int64_t M, int64_t K, const T* w) {
  const int rows = panel_rows(M);
  for (int64_t i = 0; i < M; i += rows)
    LeftStrided<T>{w, K, 1}.panel(to + i * K, i, static_cast<int>(min_of<int64_t>(rows, M - i)), 0, K);
}

// R output channels x V vectors of output cells over the whole window: sum[i][v] += w[k][i] * e[offset[k] + cells of v].
// `whole`: the last vector is full. Else it is loaded by lanes: what lies behind an image may not be read.
template <class T, int R, int V, bool whole>
void conv_tile(const T* e, const int64_t* offset, int64_t depth, const T* w, T* y, int64_t pitch, int columns,
               const T* bias, bool relu_at_end) {
  constexpr int L = kLanes<T>;
  const int rest = columns - (V - 1) * L;
  T kept[R * V * L];  // the sums of earlier blocks: one chain of thousands of additions would lose digits
  Vec<T> sum[R][V];
  for (int64_t k = 0; k < depth;) {
    const int64_t first = k, end = min_of(depth, k + kDepth);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] = Vec<T>{};
    for (; k < end; ++k) {
      const T* cells = e + offset[k];
      Vec<T> x[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) x[v] = whole || v + 1 < V ? load<T>(cells + v * L) : load_n<T>(cells + v * L, rest);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const Vec<T> wv = splat<T>(w[i]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[i][v] += wv * x[v];
      }
      w += R;
    }
    if (first == 0 && end == depth) break;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        T* to = kept + (i * V + v) * L;
        if (first > 0) sum[i][v] += load<T>(to);
        if (end < depth) store<T>(to, sum[i][v]);
      }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      Vec<T> out = bias ? sum[i][v] + splat<T>(bias[i]) : sum[i][v];
      if (relu_at_end) out = relu<T>(out);
      if (whole || v + 1 < V) store<T>(y + i * pitch + v * L, out);
      else store_n<T>(y + i * pitch + v * L, out, rest);
    }
}

template <class T>
using ConvTile = void (*)(const T*, const int64_t*, int64_t, const T*, T*, int64_t, int, const T*, bool);

// Few channels leave registers for more cells, and one chain of sums for each hides the latency of an FMA.
constexpr int kFewRows = 3;
TS_INLINE int vectors_at_once(int64_t M) { return M <= kFewRows ? 4 : 2; }

template <class T, bool whole, int R = kRows>
TS_INLINE ConvTile<T> conv_tile_for(int rows, int vectors) {
  if constexpr (R == 0) return nullptr;
  else if (rows != R) return conv_tile_for<T, whole, R - 1>(rows, vectors);
  else if (vectors == 1) return conv_tile<T, R, 1, whole>;
  else if (vectors == 2) return conv_tile<T, R, 2, whole>;
  else if constexpr (R <= kFewRows) return vectors == 3 ? conv_tile<T, R, 3, whole> : conv_tile<T, R, 4, whole>;
  else return nullptr;
}

// y[M, cells] = w [M, depth] x windows of one expanded image (and group).
template <class T>
struct ImageProduct {
  const T* e;
  const int64_t* offset;  // [depth]
  int64_t M, depth, cells;
  const T* packed;  // by pack_weights
  const T* bias;    // [M] or null
  bool relu;

  void tiles(T* y, int64_t j, int64_t i_begin, int64_t i_end) const {
    const int64_t width = vectors_at_once(M) * kLanes<T>, rows = panel_rows(M);
    const int columns = static_cast<int>(min_of(width, cells - j)), vectors = (columns + kLanes<T> - 1) / kLanes<T>;
    for (int64_t i = i_begin; i < i_end; i += rows) {
      const int r = static_cast<int>(min_of(rows, M - i));
      (columns % kLanes<T> ? conv_tile_for<T, false>(r, vectors) : conv_tile_for<T, true>(r, vectors))(
          e + j, offset, depth, packed + i * depth, y + i * cells + j, cells, columns, bias ? bias + i : nullptr, relu);
    }
  }

  void run(T* y) const {
    const int64_t width = vectors_at_once(M) * kLanes<T>, panels = ceil_div(cells, width), rows = panel_rows(M);
    const int64_t grain = kParallelWork / (depth * width * rows + 1) + 1;
    // Weights beyond a share of the L2 cache are read once for all cells; smaller ones stay while the cells pass.
    if (M * depth * static_cast<int64_t>(sizeof(T)) > (256 << 10)) {
      parallel(ceil_div(M, rows), grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < panels; ++j) tiles(y, j * width, i * rows, min_of(M, (i + 1) * rows));
      });
    } else {
      parallel(panels, grain, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) tiles(y, j * width, 0, M);
      });
    }
  }
};

}  // namespace ts::TS_ISA
