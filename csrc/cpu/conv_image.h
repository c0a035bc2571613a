// A convolution of one image as a product: weights [channels, window] times the window cells of its output cells (conv_cells.h).
#pragma once

#include "conv_amx.h"

namespace ts::TS_ISA {

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
// would lose digits). `adds`: to what y holds. `whole`: the last vector is full. Else it is loaded by lanes: what lies behind an image may not be read.
template <class T, class Y, int R, int V, bool whole>
void conv_tile(const Lane<T>* e, const int64_t* offset, int64_t steps, const Lane<T>* w, Wide<T>* kept, bool first, bool last,
               Y* y, int64_t pitch, int columns, bool adds, const T* bias, bool relu_at_end) {
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
    for (int i = 0; i < R; ++i) add_row<R>(i, sum[i], w + k * R + i, x);
  }
  if (!first) for_sums(sum, [&](Vec<W>& out, int i, int v) __attribute__((always_inline)) { out += load<W>(kept + (i * V + v) * L); });
  if (!last) return for_sums(sum, [&](const Vec<W>& out, int i, int v) __attribute__((always_inline)) { store<W>(kept + (i * V + v) * L, out); });
  const auto lanes = [&](int v) __attribute__((always_inline)) { return whole || v + 1 < V ? L : rest; };
  if (adds) for_sums(sum, [&](Vec<W>& out, int i, int v) __attribute__((always_inline)) { out += load_wide(y + i * pitch + v * L, lanes(v)); });
  if (bias) for_sums(sum, [&](Vec<W>& out, int i, int) __attribute__((always_inline)) { out += splat<W>(widened(bias + i)); });
  if (relu_at_end) for_sums(sum, [](Vec<W>& out, int, int) __attribute__((always_inline)) { out = relu<W>(out); });
  for_sums(sum, [&](const Vec<W>& out, int i, int v) __attribute__((always_inline)) { store_wide(y + i * pitch + v * L, out, lanes(v)); });
}

template <class T, class Y>
using ConvTile = void (*)(const Lane<T>*, const int64_t*, int64_t, const Lane<T>*, Wide<T>*, bool, bool, Y*, int64_t, int, bool,
                          const T*, bool);

// Few channels leave registers for more cells, and one chain of sums for each hides the latency of an FMA.
constexpr int kFewChannels = 3;
TS_INLINE int vectors_at_once(int64_t M) { return M <= kFewChannels ? 4 : 2; }

template <class T, class Y, bool whole, int R = kRows>
TS_INLINE ConvTile<T, Y> conv_tile_for(int rows, int vectors) {
  if constexpr (R == 0) return nullptr;
  else if (rows != R) return conv_tile_for<T, Y, whole, R - 1>(rows, vectors);
  else if (vectors == 1) return conv_tile<T, Y, R, 1, whole>;
  else if (vectors == 2) return conv_tile<T, Y, R, 2, whole>;
  else if constexpr (R <= kFewChannels) return vectors == 3 ? conv_tile<T, Y, R, 3, whole> : conv_tile<T, Y, R, 4, whole>;
  else return nullptr;
}

// f(band) for each: a thread takes whole bands, or where there are fewer of them a part of each.
template <class F>
void for_bands(int64_t bands, const F& f) {
  parallel(bands, bands < threads() ? bands : 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) f(at);
  });
}

// For a depth ordered window row by window row: leaves out rows that lie in the padding for a whole tile of cells.
struct WindowRows {
  int64_t OW = 0, top = 0, H = 0, KH = 0, DH = 1, depth = 0;  // depth of a window row, 0: none is left out
  // The rows that cells [first, last] meet, at least one (of zeros).
  void met(int64_t first, int64_t last, int64_t& begin, int64_t& end) const {
    const int64_t high = top - last / OW, low = top + H - 1 - first / OW;
    begin = high <= 0 ? 0 : min_of(KH, steps_of(high, DH));
    end = low < 0 ? 0 : min_of(KH, (DH == 1 ? low : low / DH) + 1);
    if (begin >= end) begin = 0, end = 1;
  }
};

// Channels from which on the cells they meet are copied side by side: each panel of channels then reads one stream in place of
// a line of every plane, which pays for the copy (8 panels of 6; with AVX-512 4 of 14: 64 channels take 0.83 of the time).
constexpr int64_t kChannelsToCopyFor = 43;
// Weights of this size stay in L2 while panels of cells pass, one at a time. Larger ones are read once for kCellPanels.
constexpr int64_t kWeightsInCache = 256 << 10;
constexpr int64_t kCellPanels = 16;  // 16 x 256 x 16 floats are 256 KB
template <class T>
bool copies_cells(int64_t M) {
  return kPair<T> == 1 && M >= kChannelsToCopyFor;
}

// y[M, cells] = w [M, depth] x windows of one expanded image (and group), or of a band of it; depth in lanes. Y is T or Wide<T>.
template <class T>
struct ImageProduct {
  const Lane<T>* e;
  const int64_t* offset;  // [depth]
  int64_t M, depth, cells, pitch;  // from channel to channel of y: the cells of the whole image
  const Lane<T>* packed;  // by pack_weights
  const T* bias = nullptr;  // [M]
  bool relu = false;
  const Expansion* lined = nullptr;  // set: `e` is the image itself, read as RightLines, whose taps lie behind `offset`
  const T* direct = nullptr;         // set, where cells are copied: the weights as they lie, in place of `packed`
  WindowRows window = {};
  UnitTiles unit = {};               // set: `packed` are its tiles, `offset` those of its steps
  int64_t plane = 0, KH = 0;         // then: from plane to plane of e; window rows
  int64_t before = 0, all = 0;       // steps that other products of these sums take: those before, added to; with these. 0: none

  // Steps [first, first + count) of the depth, of which cells [j, j_end) meet more than padding.
  void steps(int64_t j, int64_t j_end, int64_t& first, int64_t& count) const {
    int64_t begin = 0, end = 1;
    if (window.depth) window.met(j, j_end - 1, begin, end);
    first = begin * window.depth;
    count = window.depth ? (end - begin) * window.depth : depth;
  }

  // What the tiles share, worked out once: a tile of few steps takes hardly longer than the divisions.
  template <class Y>
  struct Split {
    int64_t width, rows, most, block;  // cells and channels of a tile; steps at a time, at most and where none is left out
    ConvTile<T, Y> full;               // for a whole tile
  };
  static int64_t shares_of(int64_t steps, int64_t most) { return steps <= most ? steps : ceil_div(steps, ceil_div(steps, most)); }
  template <class Y>
  Split<Y> split() const {
    constexpr int L = kLanes<Wide<T>>;
    const int vectors = vectors_at_once(M), rows = panel_rows(M);
    const int64_t most = M > rows ? kConvSteps : kSteps;
    return {vectors * L, rows, most, shares_of(depth, most), conv_tile_for<T, Y, true>(rows, vectors)};
  }

  template <class Y>
  void tiles(const Split<Y>& split, Y* y, int64_t j, int64_t i_begin, int64_t i_end) const {
    constexpr int L = kLanes<Wide<T>>;
    const int columns = static_cast<int>(min_of(split.width, cells - j)), vectors = (columns + L - 1) / L;
    int64_t first, count;
    steps(j, j + columns, first, count);
    const int64_t block = count == depth ? split.block : shares_of(count, split.most);
    Wide<T>* const kept = count > block ? scratch<Wide<T>>(Slot::sums, (i_end - i_begin) * vectors * L) : nullptr;
    for (int64_t k = 0; k < count; k += block)
      for (int64_t i = i_begin; i < i_end; i += split.rows) {
        const int r = static_cast<int>(min_of(split.rows, M - i));
        const bool full = r == split.rows && columns == split.width;
        (full ? split.full : columns % L ? conv_tile_for<T, Y, false>(r, vectors) : conv_tile_for<T, Y, true>(r, vectors))(
            e + j, offset + first + k, min_of(block, count - k), packed + i * max_of(all, depth) + (before + first + k) * r,
            kept + (i - i_begin) * vectors * L, k == 0, k + block >= count, y + i * pitch + j, pitch, columns,
            before > 0, bias ? bias + i : nullptr, relu);
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
              block.depth, w, depth, PanelOf<T>{panel(j)}, y + i * pitch + j, pitch, columns(j), block.last && bias ? bias + i : nullptr,
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
    if constexpr (kUnit<T>)
      if (unit.rows) return unit_product(unit, e, plane, offset, KH, M, cells, packed, bias, relu, y, pitch);
    if constexpr (kPair<T> == 1)
      if (copies_cells<T>(M)) {
        const auto in_place = [&](const auto& right) { direct ? run_copied<true>(right, y) : run_copied<false>(right, y); };
        return lined ? in_place(RightLines<T>{e, offset, offset + depth, *lined}) : in_place(RightCells<T>{e, offset});
      }
    const Split<Y> shared = split<Y>();
    const int64_t width = shared.width, rows = shared.rows, panels = ceil_div(cells, width);
    const int64_t grain = kParallelWork / (depth * width * rows + 1) + 1;
    // Weights beyond a share of the L2 cache, and larger than the image, are read once for all cells; others stay while
    // the cells pass.
    if (M * depth * static_cast<int64_t>(sizeof(Lane<T>)) > kWeightsInCache && M > cells) {
      parallel(ceil_div(M, rows), grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < panels; ++j) tiles(shared, y, j * width, i * rows, min_of(M, (i + 1) * rows));
      });
    } else {
      parallel(panels, grain, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) tiles(shared, y, j * width, 0, M);
      });
    }
  }
};

}  // namespace ts::TS_ISA
