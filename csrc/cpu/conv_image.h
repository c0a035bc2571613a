// A convolution of one image as a product with unit-stride loads only.
//
// The image is expanded in width: for each channel and window column kw, its rows with the cells that kw meets, OW of them
// and nothing else, padding written as zeros, rows of equal (row mod SH) together:
//   e[c][kw][row % SH][row / SH][ow] = x[c][row - PT][ow * SW + kw * DW - PL]
// Then window cell (c, kh, kw) of output cells j, j + 1, … is e at offset[c, kh, kw] + j, … : a plain vector load across
// output rows, for any stride, dilation and width, so that no lane is wasted on narrow images. It is KW / SW times the
// image instead of im2col's KH * KW / (SH * SW), and nothing at all for a 1 x 1 window.
#pragma once

#include "conv_lanes.h"
#include "gemm.h"
#include "pool.h"

namespace ts::TS_ISA {

// ceil_div for a stride, which mostly is 1: a division for every plane and window column would cost as much as small planes.
TS_INLINE int64_t steps_of(int64_t cells, int64_t stride) { return stride == 1 ? cells : ceil_div(cells, stride); }

// Geometry of an expansion.
struct Expansion {
  int64_t C, H, W;          // source planes
  int64_t top, left;        // padding before the first row and column (negative: source rows to drop)
  int64_t KH, KW, DH, DW, SH, SW;
  int64_t OH, OW;           // output cells
  int64_t phase_rows() const { return steps_of((OH - 1) * SH + (KH - 1) * DH + 1, SH); }
  int64_t plane() const { return SH * phase_rows() * OW; }
  int64_t size() const { return C * KW * plane(); }
  // Whether the source itself already is its expansion.
  bool trivial() const {
    return KH == 1 && KW == 1 && SH == 1 && SW == 1 && top == 0 && left == 0 && OH == H && OW == W;
  }
  // Where window cell (c, kh, kw) of output cell 0 lies.
  int64_t offset(int64_t c, int64_t kh, int64_t kw) const {
    return (c * KW + kw) * plane() + (kh * DH % SH * phase_rows() + kh * DH / SH) * OW;
  }
  void offsets(int64_t* at, int64_t channels) const {  // of all, in this order
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t kh = 0; kh < KH; ++kh)
        for (int64_t kw = 0; kw < KW; ++kw) *at++ = offset(c, kh, kw);
  }
};

// The cells of a row that one window column meets: to[ow] = row[ow * stride + shift] for ow in [begin, end), else 0.
struct Column {
  int64_t shift, begin, end;
  Column(const Expansion& e, int64_t kw) : shift(kw * e.DW - e.left) {
    begin = min_of(e.OW, shift >= 0 ? 0 : steps_of(-shift, e.SW));
    end = max_of(begin, min_of(e.OW, e.W - shift <= 0 ? int64_t(0) : steps_of(e.W - shift, e.SW)));
  }
};

template <class T>
TS_INLINE void expand_row(T* to, const T* row, const Expansion& e, const Column& column) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < column.begin; ++i) to[i] = T(0);
  for (int64_t i = column.begin; i < column.end; i += L) {
    const int n = static_cast<int>(min_of<int64_t>(L, column.end - i));
    store_some<T>(to + i, load_strided<T>(row + i * e.SW + column.shift, e.SW, n), n);
  }
  for (int64_t i = column.end; i < e.OW; ++i) to[i] = T(0);
}

// Zeros in whole vectors, up to one beyond the end: memory that is written next, or slack. memset's call costs more here.
template <class T>
TS_INLINE T* zero_cells(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store<T>(to + i, Vec<T>{});
  return to + count;
}

// Stride 1: whole vectors by masks that hold for every row; what is stored beyond OW the next row overwrites.
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

#if defined(__AVX2__)
// Output rows as long as the image's and shorter than a vector: the plane as one line, shifted, whole vectors across rows;
// cells that a window column meets outside are left out by masks, which all channels share.
constexpr int kMostMasks = 256;  // of all window columns together: 512 bytes on the stack
template <class T>
bool expand_lines(T* to, const T* x, const Expansion& e) {
  constexpr int L = kLanes<T>;
  const int64_t rows = e.phase_rows(), top = max_of<int64_t>(0, min_of(rows, e.top)), bottom = max_of(top, min_of(rows, e.H + e.top));
  const int64_t cells = (bottom - top) * e.W, vectors = ceil_div(cells, L);
  if (e.OW != e.W || e.W > L || vectors * e.KW > kMostMasks) return false;
  uint16_t masks[kMostMasks + 1] = {};  // and one for what is shifted out of the last, which is nothing
  for (int64_t kw = 0; kw < e.KW; ++kw) {
    const Column column(e, kw);
    for (int64_t i = column.begin; i < cells; i += e.W) {  // a row's cells lie in at most two vectors
      const unsigned run = ((1u << (column.end - column.begin)) - 1) << i % L;
      masks[kw * vectors + i / L] |= static_cast<uint16_t>(run & ((1u << L) - 1));
      masks[kw * vectors + i / L + 1] |= static_cast<uint16_t>(run >> L);
    }
  }
  for (int64_t c = 0; c < e.C; ++c)
    for (int64_t kw = 0; kw < e.KW; ++kw) {
      const T* from = x + c * e.H * e.W + (top - e.top) * e.W + kw * e.DW - e.left;
      to = zero_cells<T>(to, top * e.W);
      for (int64_t j = 0; j < vectors; ++j) store<T>(to + j * L, load_masked<T>(from + j * L, masks[kw * vectors + j]));
      to = zero_cells<T>(to + cells, (rows - bottom) * e.W);
    }
  return true;
}
#endif

template <class T>
void expand(T* to, const T* x, const Expansion& e) {
  const int64_t phase_rows = e.phase_rows();
  if (e.SH == 1 && e.SW == 1) {
#if defined(__AVX2__)
    if (expand_lines<T>(to, x, e)) return;
#endif
    for (int64_t c = 0; c < e.C; ++c)
      for (int64_t kw = 0; kw < e.KW; ++kw) to = expand_plain<T>(to, x + c * e.H * e.W, e, Column(e, kw));
    return;
  }
  for (int64_t c = 0; c < e.C; ++c)
    for (int64_t kw = 0; kw < e.KW; ++kw) {
      const Column column(e, kw);
      for (int64_t phase = 0; phase < e.SH; ++phase)
        for (int64_t q = 0; q < phase_rows; ++q, to += e.OW) {
          const int64_t row = q * e.SH + phase - e.top;
          if (row < 0 || row >= e.H) std::memset(to, 0, sizeof(T) * e.OW);
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

// Lanes [M, K] packed once for many images: panels of panel_rows(M) rows, panel[k * rows + i].
template <class T>
void pack_lanes(Lane<T>* to, int64_t M, int64_t K, const Lane<T>* lanes) {
  const int64_t rows = panel_rows(M);
  for (int64_t i = 0; i < M; i += rows)
    transpose_copy<Lane<T>>(to + i * K, min_of(rows, M - i), lanes + i * K, K, min_of(rows, M - i), K);
}
// Weights [M, channels, area] as such lanes.
template <class T>
void pack_weights(Lane<T>* to, int64_t M, int64_t channels, int64_t area, const T* w) {
  pack_lanes<T>(to, M, lanes_of<T>(channels) * area, lane_planes<T>(w, M, channels, area, Slot::planes));
}

// Steps of a tile at a time, at most, where there are several panels of channels: their weights and the cells they meet, 128 x
// (64 channels + 16 cells) floats, then stay in a 32 KB L1 while the panels take turns. Where more than 42 channels have their
// cells copied, 192 x (24 + 16) do too.
#if defined(__AVX512F__)
constexpr int64_t kConvSteps = 128;
#else
constexpr int64_t kConvSteps = 192;
#endif

// R output channels x V vectors of output cells over a block of the window: sum[i][v] += w[k][i] * e[offset[k] + cells of v].
// `kept`: the sums of earlier blocks, [R][V] vectors, null where one block is all (one chain of thousands of additions
// would lose digits). `whole`: the last vector is full. Else it is loaded by lanes: what lies behind an image may not be read.
template <class T, class Y, int R, int V, bool whole>
void conv_tile(const Lane<T>* e, const int64_t* offset, int64_t steps, const Lane<T>* w, Wide<T>* kept, bool first, bool last,
               Y* y, int64_t pitch, int columns, const T* bias, bool relu_at_end) {
  using W = Wide<T>;
  constexpr int L = kLanes<W>;
  const int rest = columns - (V - 1) * L;
  Vec<W> sum[R][V] = {};
#pragma GCC unroll kUnroll
  for (int64_t k = 0; k < steps; ++k) {
    const Lane<T>* cells = e + offset[k];
    Vec<Lane<T>> x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = whole || v + 1 < V ? load<Lane<T>>(cells + v * L) : load_n<Lane<T>>(cells + v * L, rest);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vec<Lane<T>> wv = splat<Lane<T>>(w[k * R + i]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] = multiply_add(sum[i][v], wv, x[v]);
    }
  }
  if (!first) for_sums(sum, [&](Vec<W>& out, int i, int v) __attribute__((always_inline)) { out += load<W>(kept + (i * V + v) * L); });
  if (!last) return for_sums(sum, [&](const Vec<W>& out, int i, int v) __attribute__((always_inline)) { store<W>(kept + (i * V + v) * L, out); });
  if (bias) for_sums(sum, [&](Vec<W>& out, int i, int) __attribute__((always_inline)) { out += splat<W>(widened(bias + i)); });
  if (relu_at_end) for_sums(sum, [](Vec<W>& out, int, int) __attribute__((always_inline)) { out = relu<W>(out); });
  for_sums(sum, [&](const Vec<W>& out, int i, int v) __attribute__((always_inline)) {
    store_wide(y + i * pitch + v * L, out, whole || v + 1 < V ? L : rest);
  });
}

template <class T, class Y>
using ConvTile = void (*)(const Lane<T>*, const int64_t*, int64_t, const Lane<T>*, Wide<T>*, bool, bool, Y*, int64_t, int,
                          const T*, bool);

// Few channels leave registers for more cells, and one chain of sums for each hides the latency of an FMA.
constexpr int kFewRows = 3;
TS_INLINE int vectors_at_once(int64_t M) { return M <= kFewRows ? 4 : 2; }

template <class T, class Y, bool whole, int R = kRows>
TS_INLINE ConvTile<T, Y> conv_tile_for(int rows, int vectors) {
  if constexpr (R == 0) return nullptr;
  else if (rows != R) return conv_tile_for<T, Y, whole, R - 1>(rows, vectors);
  else if (vectors == 1) return conv_tile<T, Y, R, 1, whole>;
  else if (vectors == 2) return conv_tile<T, Y, R, 2, whole>;
  else if constexpr (R <= kFewRows) return vectors == 3 ? conv_tile<T, Y, R, 3, whole> : conv_tile<T, Y, R, 4, whole>;
  else return nullptr;
}

// For a depth ordered window row by window row: leaves out rows that lie in the padding for a whole tile of cells.
struct WindowRows {
  int64_t OW = 0, top = 0, H = 0, KH = 0, DH = 1, depth = 0;  // depth of a window row, 0: none is left out
  // The rows that cells [first, last] meet, at least one (of zeros).
  void met(int64_t first, int64_t last, int64_t& begin, int64_t& end) const {
    const int64_t high = top - last / OW, low = top + H - 1 - first / OW;
    begin = high <= 0 ? 0 : min_of(KH, ceil_div(high, DH));
    end = low < 0 ? 0 : min_of(KH, low / DH + 1);
    if (begin >= end) begin = 0, end = 1;
  }
};

// Window cells of output cells as the right factor of a product (gemm.h). A panel is panel[k * kColumns + j].
template <class T>
struct RightCells {
  const T* e;
  const int64_t* offset;
  void panel(T* buffer, int64_t k0, int64_t depth, int64_t j0, int columns) const {
    constexpr int W = kColumns<T>, L = W / 2;
    const int low = min_of(columns, L);
    for (int64_t k = 0; k < depth; ++k, buffer += W) {
      const T* cells = e + offset[k0 + k] + j0;
      __builtin_prefetch(cells + 2 * W - 1);  // the next panel's line: planes apart, no hardware foresees it
      store<T>(buffer, load_some<T>(cells, low));
      store<T>(buffer + L, load_some<T>(cells + L, columns - low));
    }
  }
};

// The same straight from an image as wide as its output, with stride 1: there window cell (kh, kw) of all output cells is the
// image as one line, shifted. Lanes that meet padding are left out by masks, which all channels share.
constexpr int kLineTaps = 64;
template <class T>
struct RightLines {
  const T* x;
  const int64_t* offset;  // [depth], of output cell 0
  const int64_t* tap;     // [depth], kh * KW + kw
  const Expansion& e;
  static bool serves(const Expansion& e) {
#if defined(__AVX2__)
    return e.SH == 1 && e.SW == 1 && e.OW == e.W && e.KH * e.KW <= kLineTaps && !e.trivial();
#else
    return e.C < 0;  // never: without loads by masks the expansion is faster
#endif
  }
  // Offsets, then taps, of window cells in the order (c, kh, kw).
  static void offsets(const Expansion& e, int64_t* at, int64_t channels) {
    const int64_t area = e.KH * e.KW;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t kh = 0; kh < e.KH; ++kh)
        for (int64_t kw = 0; kw < e.KW; ++kw, ++at) {
          *at = (c * e.H + kh * e.DH - e.top) * e.W + kw * e.DW - e.left;
          at[channels * area] = kh * e.KW + kw;
        }
  }
  void panel(T* buffer, int64_t k0, int64_t depth, int64_t j0, int columns) const {
#if defined(__AVX2__)
    constexpr int W = kColumns<T>, L = W / 2;
    constexpr unsigned whole = (1u << L) - 1;
    uint64_t row_meets[kLineTaps] = {}, column_meets[kLineTaps] = {};  // a bit for each of the panel's cells
    int64_t oh = j0 / e.OW, ow = j0 % e.OW;
    for (int j = 0; j < columns; ++j) {
      const uint64_t bit = uint64_t{1} << j;
      for (int64_t kh = 0, h = oh - e.top; kh < e.KH; ++kh, h += e.DH) row_meets[kh] |= h >= 0 && h < e.H ? bit : 0;
      for (int64_t kw = 0, w = ow - e.left; kw < e.KW; ++kw, w += e.DW) column_meets[kw] |= w >= 0 && w < e.W ? bit : 0;
      if (++ow == e.OW) ow = 0, ++oh;
    }
    uint64_t meets[kLineTaps];
    for (int64_t kh = 0; kh < e.KH; ++kh)
      for (int64_t kw = 0; kw < e.KW; ++kw) meets[kh * e.KW + kw] = row_meets[kh] & column_meets[kw];
    for (int64_t k = 0; k < depth; ++k, buffer += W) {
      const T* cells = x + offset[k0 + k] + j0;
      __builtin_prefetch(cells + 2 * W - 1);
      const uint64_t mask = meets[tap[k0 + k]];
      for (int half = 0; half < 2; ++half) {
        const unsigned lanes = static_cast<unsigned>(mask >> half * L) & whole;
        store<T>(buffer + half * L, lanes == whole ? load<T>(cells + half * L) : load_masked<T>(cells + half * L, lanes));
      }
    }
#endif
  }
};

// Panels of channels from which on the cells they meet are copied side by side: each panel then reads one stream in place of
// a line of every plane, which pays for the copy.
constexpr int64_t kPanelsToCopyFor = 8;
// Weights of this size stay in L2 while panels of cells pass, one at a time. Larger ones are read once for kCellPanels.
constexpr int64_t kWeightsInCache = 256 << 10;
constexpr int64_t kCellPanels = 16;  // 16 x 256 x 16 floats are 256 KB
template <class T>
bool copies_cells(int64_t M) {
  return kPair<T> == 1 && ceil_div(M, kRows) >= kPanelsToCopyFor;
}

// y[M, cells] = w [M, depth] x windows of one expanded image (and group); depth in lanes. Y is T or Wide<T>.
template <class T>
struct ImageProduct {
  const Lane<T>* e;
  const int64_t* offset;  // [depth]
  int64_t M, depth, cells;
  const Lane<T>* packed;  // by pack_weights
  const T* bias;          // [M] or null
  bool relu;
  const Expansion* lined = nullptr;  // set: `e` is the image itself, read as RightLines, whose taps lie behind `offset`
  const T* direct = nullptr;         // set, where cells are copied: the weights as they lie, in place of `packed`
  WindowRows window = {};

  // Steps [first, first + count) of the depth, of which cells [j, j_end) meet more than padding.
  void steps(int64_t j, int64_t j_end, int64_t& first, int64_t& count) const {
    int64_t begin = 0, end = 1;
    if (window.depth) window.met(j, j_end - 1, begin, end);
    first = begin * window.depth;
    count = window.depth ? (end - begin) * window.depth : depth;
  }

  template <class Y>
  void tiles(Y* y, int64_t j, int64_t i_begin, int64_t i_end) const {
    constexpr int L = kLanes<Wide<T>>;
    const int64_t width = vectors_at_once(M) * L, rows = panel_rows(M);
    const int columns = static_cast<int>(min_of(width, cells - j)), vectors = (columns + L - 1) / L;
    int64_t first, count;
    steps(j, j + columns, first, count);
    const int64_t most = M > rows ? kConvSteps : kSteps, block = ceil_div(count, ceil_div(count, most));  // equal shares
    Wide<T>* const kept = count > block ? scratch<Wide<T>>(Slot::sums, (i_end - i_begin) * vectors * L) : nullptr;
    for (int64_t k = 0; k < count; k += block)
      for (int64_t i = i_begin; i < i_end; i += rows) {
        const int r = static_cast<int>(min_of(rows, M - i));
        (columns % L ? conv_tile_for<T, Y, false>(r, vectors) : conv_tile_for<T, Y, true>(r, vectors))(
            e + j, offset + first + k, min_of(block, count - k), packed + i * depth + (first + k) * r,
            kept + (i - i_begin) * vectors * L, k == 0, k + block >= count, y + i * cells + j, cells, columns,
            bias ? bias + i : nullptr, relu);
      }
  }

  // Cells [j_begin, j_end) of rows [i_begin, i_end): as tiles, but with the cells copied.
  template <bool in_place, class Right>
  void copied_tiles(const Right& right, T* y, int64_t j_begin, int64_t j_end, int64_t i_begin, int64_t i_end) const {
    constexpr int W = kColumns<T>;
    const int64_t rows = copied_rows();
    int64_t first, count;
    steps(j_begin, j_end, first, count);
    T* const copies = scratch<T>(Slot::pack_b, block_depth<T>(count) * ceil_div(j_end - j_begin, W) * W);
    for_blocks<T>(count, [&](const Block<T>& block) {
      const int64_t k0 = first + block.k0;
      const auto panel = [&](int64_t j) { return copies + (j - j_begin) * block.depth; };
      const auto columns = [&](int64_t j) { return static_cast<int>(min_of<int64_t>(W, j_end - j)); };
      for (int64_t j = j_begin; j < j_end; j += W) right.panel(panel(j), k0, block.depth, j, columns(j));
      for (int64_t i = i_begin; i < i_end; i += rows) {
        const int r = static_cast<int>(min_of(rows, M - i));
        const T* w = in_place ? direct + i * depth + k0 : packed + i * depth + k0 * r;
        for (int64_t j = j_begin; j < j_end; j += W)
          tile_for<T, T, in_place>(r, columns(j) > W / 2 ? 2 : 1)(
              block.depth, w, depth, panel(j), y + i * cells + j, cells, columns(j), block.last && bias ? bias + i : nullptr,
              nullptr, !block.first, block.last && relu);
      }
    });
  }
  int64_t copied_rows() const { return panel_rows(M, direct ? kDirectRows : kRows); }

  template <bool in_place, class Right>
  void run_copied(const Right& right, T* y) const {
    const bool large = M * depth * static_cast<int64_t>(sizeof(T)) > kWeightsInCache;
    const int64_t rows = copied_rows(), width = kColumns<T> * (large ? kCellPanels : 1), groups = ceil_div(cells, width);
    if (groups < threads())  // each thread copies all cells for its share of the channels
      parallel(ceil_div(M, rows), kParallelWork / (depth * cells * rows + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t j = 0; j < cells; j += width)
          copied_tiles<in_place>(right, y, j, min_of(cells, j + width), begin * rows, min_of(M, end * rows));
      });
    else
      parallel(groups, kParallelWork / (depth * width * M + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) copied_tiles<in_place>(right, y, g * width, min_of(cells, (g + 1) * width), 0, M);
      });
  }

  template <class Y>
  void run(Y* y) const {
    if constexpr (kPair<T> == 1)
      if (copies_cells<T>(M)) {
        const auto in_place = [&](const auto& right) { direct ? run_copied<true>(right, y) : run_copied<false>(right, y); };
        return lined ? in_place(RightLines<T>{e, offset, offset + depth, *lined}) : in_place(RightCells<T>{e, offset});
      }
    const int64_t width = vectors_at_once(M) * kLanes<Wide<T>>, panels = ceil_div(cells, width);
    const int64_t rows = panel_rows(M), grain = kParallelWork / (depth * width * rows + 1) + 1;
    // Weights beyond a share of the L2 cache, and larger than the image, are read once for all cells; others stay while
    // the cells pass.
    if (M * depth * static_cast<int64_t>(sizeof(Lane<T>)) > kWeightsInCache && M > cells) {
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
