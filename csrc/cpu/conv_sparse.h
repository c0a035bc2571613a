// The backward pass of convolution + ReLU + max pool, from the pooled gradient alone. Of a 2x2 pool's four cells one gets a
// gradient, and where the ReLU is off none: instead of spreading g over the convolution's output and multiplying zeros, each
// pooled cell with a gradient v, whose maximum was output cell (oh, ow) of channel k, adds
//   dw[k][t][c] += v * x[oh, ow][t][c]      dx[oh, ow][t][c] += v * w[k][t][c]      db[k] += v
// over the window's cells t, with lanes along the input channels c: x and dx lie as planes of cells of a vector of channels
// each, channels rounded up to whole vectors, dw and w as such planes for each k. For a given k and plane, dw stays in
// registers over all its cells, and the plane in L1 over all k. The window of dx that begins at a cell stays in registers over
// all k that have a gradient there (of a 2x2 pool's, one in four), the plane's w in L1 over a group of images.
// A skipped 0 * inf would lose a NaN, so the caller takes the dense way where x or w hold NaN or infinity.
#pragma once

#include <atomic>
#include <utility>

#include "../contract/conv2d.h"
#include "conv_weights.h"

namespace ts::TS_ISA {

#if defined(__AVX512F__)
constexpr int kMostTaps = 25;  // a 5 x 5 window in registers
#else
constexpr int kMostTaps = 12;
#endif

// What listing, sorting and beginning with a cell takes, in multiply-adds of vectors.
constexpr int64_t kCellWork = 24;

template <class T>
struct SparseBackward {
  static constexpr int L = kLanes<T>;
  const conv2d::Dims d;
  int64_t rows, columns, vectors;  // of the padded image; of channels
  int64_t taps;
  int32_t chosen[256];  // the cell at each position of the pool's window, from that at position 0; where positions are bytes

  explicit SparseBackward(const conv2d::Dims& dims)
      : d(dims), rows(d.H + d.PT + d.PB), columns(d.W + d.PL + d.PR), vectors(ceil_div(d.C, L)),
        taps(d.KH * d.KW) {
    if (d.pool && maxpool2d::byte_position(d.window))
      for (int64_t at = 0; at < d.window.KH * d.window.KW; ++at) chosen[at] = cell_at(at / d.window.KW, at % d.window.KW);
  }
  // Where the window of the convolution's output cell (row, column) begins in a padded plane.
  int32_t cell_at(int64_t row, int64_t column) const { return static_cast<int32_t>((row * d.SH * columns + column * d.SW) * L); }

  // Less work than the dense way, in multiply-adds of vectors: those of both gradients and what is loaded and stored with dx count
  // as 3, and a cell takes as long as some to be listed, sorted and begun with: few channels of a small window do not pay.
  bool pays() const {
    if (!d.pool || d.G != 1 || d.N * d.K == 0 || max_of(plane_size(), d.K * taps * L) > INT32_MAX) return false;
    const int64_t pooled = d.window.OH * d.window.OW;
    const int64_t dense = taps * d.C * (ceil_div(d.OH * d.OW, L) + ceil_div(d.H * d.W, L));
    return pooled * (3 * vectors * taps + kCellWork) < dense;
  }

  int64_t plane_size() const { return rows * columns * L; }
  int64_t image_size() const { return vectors * plane_size(); }
  int64_t weights() const { return vectors * d.K * taps * L; }
  int channels(int64_t v) const { return static_cast<int>(min_of<int64_t>(L, d.C - v * L)); }  // of a plane

  struct Cell {
    int32_t at;  // its window's first cell in a padded plane; sorted by that, its channel's weights in a plane of them
    T value;
  };
  struct Cells {  // of one channel of one image
    const Cell* first;
    int64_t count;
  };
  struct Sorted {  // those of some channels of one image, by their places in a padded plane
    const Cell* first;
    const int32_t* end;  // [rows * columns], behind the last of a place
  };

  // Where the pool's windows begin, [OH * OW].
  void list_windows(int32_t* to) const {
    const maxpool2d::Geometry& w = d.window;
    for (int64_t oh = 0; oh < w.OH; ++oh)
      for (int64_t ow = 0; ow < w.OW; ++ow) *to++ = cell_at(oh * w.SH - w.PH, ow * w.SW - w.PW);
  }
  // The cells of one channel that have a gradient, and one more is overwritten: whether one has is as good as random, so that
  // a branch would be foreseen badly. position: in the pool's window. Returns how many.
  template <class P>
  int64_t list(const int32_t* window, const T* g, const T* y, const P* position, Cell* const first) const {
    Cell* to = first;
    for (int64_t i = 0; i < d.window.OH * d.window.OW; ++i) {
      const int64_t at = position[i];
      *to = {window[i] + (sizeof(P) == 1 ? chosen[at] : cell_at(at / d.window.KW, at % d.window.KW)), g[i]};
      to += !(y[i] <= T(0)) & (g[i] != T(0));
    }
    return to - first;
  }
  Sorted sorted(const Cells* cells, int64_t k_begin, int64_t k_end, int32_t* end, Cell* to) const {
    const auto place = [](const Cell& cell) { return static_cast<uint32_t>(cell.at) / L; };
    std::memset(end, 0, sizeof(int32_t) * rows * columns);
    for (int64_t k = k_begin; k < k_end; ++k)
      for (int64_t c = 0; c < cells[k].count; ++c) ++end[place(cells[k].first[c])];
    for (int32_t i = 0, before = 0; i < rows * columns; ++i) {
      const int32_t here = end[i];
      end[i] = before;
      before += here;
    }
    for (int64_t k = k_begin; k < k_end; ++k)
      for (int64_t c = 0; c < cells[k].count; ++c) {
        const Cell& cell = cells[k].first[c];
        to[end[place(cell)]++] = {static_cast<int32_t>(k * taps * L), cell.value};
      }
    return {to, end};
  }

  // [C][H][W] -> padded planes, zeros around and behind.
  void to_planes(const T* x, T* to) const {
    const bool padded = rows > d.H || columns > d.W;
    if (padded || d.C < vectors * L) {
      const int64_t whole = padded ? 0 : (vectors - 1) * plane_size();
      std::memset(to + whole, 0, sizeof(T) * (image_size() - whole));
    }
    for (int64_t v = 0; v < vectors; ++v, to += plane_size(), x += L * d.H * d.W) {
      if (columns == d.W) transpose_copy<T>(to + d.PT * columns * L, L, x, d.H * d.W, channels(v), d.H * d.W);
      else
        for (int64_t h = 0; h < d.H; ++h)
          transpose_copy<T>(to + ((h + d.PT) * columns + d.PL) * L, L, x + h * d.W, d.H * d.W, channels(v), d.W);
    }
  }
  static bool all_finite(const T* x, int64_t count) {
    Vec<T> zero[4] = {};  // NaN from NaN and infinity; four chains hide the latency of an addition
    int64_t i = 0;
    for (; i + 4 * L <= count; i += 4 * L)
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) zero[c] += load<T>(x + i + c * L) * T(0);
    for_vectors<T>(count - i, [&](int64_t j, int n) { zero[0] += load_some<T>(x + i + j, n) * T(0); });
    const T sum = sum_lanes<T>((zero[0] + zero[1]) + (zero[2] + zero[3]));
    return sum == sum;
  }
  // Plane v back to the channels it holds, [C][H][W].
  void from_plane(int64_t v, const T* from, T* dx) const {
    dx += v * L * d.H * d.W;
    if (columns == d.W) transpose_copy<T>(dx, d.H * d.W, from + d.PT * columns * L, L, d.H * d.W, channels(v));
    else
      for (int64_t h = 0; h < d.H; ++h)
        transpose_copy<T>(dx + h * d.W, d.H * d.W, from + ((h + d.PT) * columns + d.PL) * L, L, d.W, channels(v));
  }
  // [K][C][taps] -> [vectors][K][taps][L], and back
  void weights_to_planes(const T* w, T* to) const {
    if (d.C < vectors * L) std::memset(to, 0, sizeof(T) * weights());
    for (int64_t v = 0; v < vectors; ++v)
      for (int64_t k = 0; k < d.K; ++k)
        transpose_copy<T>(to + (v * d.K + k) * taps * L, L, w + (k * d.C + v * L) * taps, taps, channels(v), taps);
  }
  void weights_from_planes(const T* from, T* w) const {
    for (int64_t v = 0; v < vectors; ++v)
      for (int64_t k = 0; k < d.K; ++k)
        transpose_copy<T>(w + (k * d.C + v * L) * taps, taps, from + (v * d.K + k) * taps * L, L, taps, channels(v));
  }

  // Taps at a time: R rows of C neighbours, the rows at `row`. Neighbours lie at constant distances, which cost nothing: an
  // offset for each tap would take two loads and three micro-operations for a multiply-add.
  template <int R, int C>
  void add_dw(const T* x, int64_t x_image, const Cells* cells, int64_t stride, int64_t images, const int64_t* row, bool adds, T* dw) const {
    Vec<T> sum[R * C] = {};
    if (adds)
#pragma GCC unroll 32
      for (int t = 0; t < R * C; ++t) sum[t] = load<T>(dw + t * L);
    for (int64_t n = 0; n < images; ++n, x += x_image)
      for (const Cell *c = cells[n * stride].first, *end = c + cells[n * stride].count; c != end; ++c) {
        const Vec<T> v = splat<T>(c->value);
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) {
          const T* at = opaque(x + c->at + row[r]);
#pragma GCC unroll 8
          for (int t = 0; t < C; ++t) sum[r * C + t] += v * load<T>(at + t * L);
        }
      }
#pragma GCC unroll 32
    for (int t = 0; t < R * C; ++t) store<T>(dw + t * L, sum[t]);
  }
  // Of a row's places one after the other the window is C columns of sums: that of `step` P begins with column P, which leaves
  // the registers before the next one comes in.
  template <int R, int C>
  void add_dx(T* dx, const Sorted& cells, const int64_t* row, const T* w) const {
    const int64_t across = columns - (d.KW - 1) * d.DW;
    const Cell* c = cells.first;
    const int32_t* end = cells.end;
    for (int64_t h = 0; h < rows - (d.KH - 1) * d.DH; ++h, end += columns, dx += columns * L) {
      if (cells.first + end[across - 1] == c) continue;
      Vec<T> sum[C][R];
      const auto get = [&](int to, int64_t column) __attribute__((always_inline)) {
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) sum[to][r] = load<T>(dx + row[r] + column * L);
      };
      const auto put = [&](int from, int64_t column) __attribute__((always_inline)) {
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) store<T>(dx + row[r] + column * L, sum[from][r]);
      };
#pragma GCC unroll 8
      for (int t = 0; t < C; ++t) get(t, t);
      int64_t place = 0;
      const auto step = [&]<int P>() __attribute__((always_inline)) {
        for (const Cell* last = cells.first + end[place]; c != last; ++c) {
          const Vec<T> v = splat<T>(c->value);
          const T* weight = opaque(w + c->at);
#pragma GCC unroll 32
          for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int t = 0; t < C; ++t) sum[(P + t) % C][r] += v * load<T>(weight + (r * C + t) * L);
        }
        if (place + 1 == across) {
#pragma GCC unroll 8
          for (int t = 0; t < C; ++t) put((P + t) % C, place + t);
          return false;
        }
        put(P, place);
        get(P, place + C);
        ++place;
        return true;
      };
      while (in_turn(step, std::make_integer_sequence<int, C>())) {}
    }
  }
  template <class F, int... P>
  TS_INLINE static bool in_turn(const F& step, std::integer_sequence<int, P...>) {
    return (step.template operator()<P>() && ...);
  }
  // A pointer that is computed once: else each access would add the row anew, by an index that costs a micro-operation.
  template <class P>
  TS_INLINE static P* opaque(P* p) {
    asm("" : "+r"(p));
    return p;
  }

  // A plane of channels at a time. dw: [vectors][K][taps][L], written, or added to. x: images in planes; cells[n * K + k].
  void weight_gradient(const T* x, const Cells* cells, int64_t images, bool adds, T* dw) const {
    for_parts([&]<int R, int C>(const int64_t* row, int64_t tap) {
      for (int64_t v = 0; v < vectors; ++v)
        for (int64_t k = 0; k < d.K; ++k)
          add_dw<R, C>(x + v * plane_size(), image_size(), cells + k, d.K, images, row, adds, dw + ((v * d.K + k) * taps + tap) * L);
    });
  }
  // Plane v of dx of one image, padded, overwritten. w: by weights_to_planes; cells: in `blocks` blocks of channels.
  void data_gradient(int64_t v, const T* w, const Sorted* cells, int64_t blocks, T* dx) const {
    std::memset(dx, 0, sizeof(T) * plane_size());
    for (int64_t b = 0; b < blocks; ++b)
      for_parts([&]<int R, int C>(const int64_t* row, int64_t tap) { add_dx<R, C>(dx, cells[b], row, w + (v * d.K * taps + tap) * L); });
  }

  // f.template operator()<R, C>(offsets of R rows of C taps, the first tap)
  template <class F>
  void for_parts(const F& f) const {
    if (d.DW == 1 && d.KW == 3) for_rows<3>(d.KH, f);
    else if (d.DW == 1 && d.KW == 5) for_rows<5>(d.KH, f);
    else if (d.DW == 1 && d.KW == 7) for_rows<7>(d.KH, f);
    else for_rows<1>(taps, f);
  }
  // Equal shares of at most kMostTaps taps.
  template <int C, class F>
  void for_rows(int64_t count, const F& f) const {
    const int64_t share = ceil_div(count, ceil_div(count, kMostTaps / C));
    for (int64_t r0 = 0; r0 < count; r0 += share) {
      const int at_once = static_cast<int>(min_of(share, count - r0));
      int64_t row[kMostTaps];
      for (int r = 0; r < at_once; ++r) {
        const int64_t t = (r0 + r) * C;
        row[r] = (t / d.KW * d.DH * columns + t % d.KW * d.DW) * L;
      }
      with_rows<C>(at_once, [&]<int R>() { f.template operator()<R, C>(row, r0 * C); });
    }
  }
  template <int C, int R = kMostTaps / C, class F>
  static void with_rows(int count, const F& f) {
    if constexpr (R > 0) {
      if (count == R) f.template operator()<R>();
      else with_rows<C, R - 1>(count, f);
    }
  }
};

// Images of a group: a plane of each stays in L1 while all channels of g meet it, and with a small L1 most do.
constexpr int64_t kPlanesBytes = 40 << 10;
// A block of channels whose weights of a plane stay in L1 while the cells of an image meet them.
constexpr int64_t kBlockBytes = 64 << 10;
// Cells of a channel in a share of the batch, at least.
constexpr int64_t kShareCells = 128;

// Images [begin, end) of the batch, a group at a time; sums: dw in planes, then db [K], overwritten. False where x is not finite.
template <class T>
bool sparse_images(const conv2d::Backward<T>& p, const SparseBackward<T>& way, int64_t begin, int64_t end, const T* w, T* sums) {
  using Way = SparseBackward<T>;
  using Cell = typename Way::Cell;
  const conv2d::Dims& d = p.d;
  const int64_t pooled = d.window.OH * d.window.OW, image = d.C * d.H * d.W, bytes = sizeof(T), places = way.rows * way.columns;
  const int64_t most = max_of<int64_t>(1, min_of<int64_t>(16, kPlanesBytes / (bytes * way.plane_size())));
  const int64_t at_once = ceil_div(end - begin, ceil_div(end - begin, most));
  const int64_t blocks = ceil_div(d.K, max_of<int64_t>(1, kBlockBytes / (bytes * min_of<int64_t>(way.taps, kMostTaps) * Way::L))), block = ceil_div(d.K, blocks);
  int32_t* const window = scratch<int32_t>(Slot::cells, pooled);
  way.list_windows(window);
  T* const db = sums + way.weights();
  std::memset(db, 0, sizeof(T) * d.K);
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t count = min_of(at_once, end - first), most_cells = count * d.K * pooled + 1;
    auto* cells = scratch<typename Way::Cells>(Slot::pixels, count * d.K);
    Cell* const cell = scratch<Cell>(Slot::gradient, 2 * most_cells);
    Cell* next = cell;
    for (int64_t i = 0; i < count * d.K; ++i) {
      const int64_t at = (first * d.K + i) * pooled;
      const bool byte = maxpool2d::byte_position(d.window);
      const int64_t found = byte ? way.list(window, p.g + at, p.y + at, static_cast<const uint8_t*>(p.position) + at, next)
                                 : way.list(window, p.g + at, p.y + at, static_cast<const int32_t*>(p.position) + at, next);
      cells[i] = {next, found};
      for (int64_t c = 0; c < found; ++c) db[i % d.K] += next[c].value;
      next += found;
    }
    T* const x = scratch<T>(Slot::batch, count * way.image_size());
    for (int64_t n = 0; n < count; ++n) {
      const T* from = p.x + (first + n) * image;
      if (!way.all_finite(from, image)) return false;
      if (p.dw) way.to_planes(from, x + n * way.image_size());
    }
    if (p.dw) way.weight_gradient(x, cells, count, first > begin, sums);
    if (!p.dx) continue;
    auto* sorted = scratch<typename Way::Sorted>(Slot::rows, count * blocks);
    int32_t* const ends = scratch<int32_t>(Slot::pairs, count * blocks * places);
    next = cell + most_cells;
    for (int64_t i = 0; i < count * blocks; ++i) {
      const int64_t k = min_of(d.K, i % blocks * block), k_end = min_of(d.K, k + block);
      sorted[i] = way.sorted(cells + i / blocks * d.K, k, k_end, ends + i * places, next);
      next += sorted[i].end[places - 1];
    }
    T* const plane = scratch<T>(Slot::image, way.plane_size());
    for (int64_t v = 0; v < way.vectors; ++v)
      for (int64_t n = 0; n < count; ++n) {
        way.data_gradient(v, w, sorted + n * blocks, blocks, plane);
        way.from_plane(v, plane, p.dx + (first + n) * image);
      }
  }
  return true;
}

// The whole backward pass this way; false where it does not pay or may not be taken: what dx then holds is to be overwritten.
// Which way is taken depends on x and w even where their gradient is not asked for, so that the others' do not change.
template <class T>
bool sparse_backward(const conv2d::Backward<T>& p) {
  const conv2d::Dims& d = p.d;
  const SparseBackward<T> way(d);
  if (!d.relu || !way.pays() || !way.all_finite(p.w, d.K * d.C * way.taps)) return false;
  T* w = p.dx ? scratch<T>(Slot::transposed, way.weights()) : nullptr;
  if (p.dx) way.weights_to_planes(p.w, w);
  // Shares of the batch depend on the sizes alone, so that threads do not change the result. A share writes its sums, and they
  // are read once more: few cells of an image make that as much work as the sums.
  const int64_t pooled = d.window.OH * d.window.OW, share_size = way.weights() + d.K, bytes = sizeof(T);
  const int64_t most = max_of<int64_t>(1, min_of<int64_t>(16, (int64_t{8} << 20) / (bytes * share_size)));
  const int64_t shares = min_of(most, ceil_div(d.N, max_of<int64_t>(4, kShareCells / max_of<int64_t>(1, pooled)))), images = ceil_div(d.N, shares);
  T* partial = scratch<T>(Slot::partial, shares * share_size);
  const int64_t work = images * d.K * pooled * way.taps * way.vectors * kLanes<T>;
  std::atomic<bool> finite{true};
  parallel(shares, max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, work)), [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end && finite; ++share)
      if (!sparse_images<T>(p, way, d.N * share / shares, d.N * (share + 1) / shares, w, partial + share * share_size)) finite = false;
  });
  if (!finite) return false;
  for (int64_t share = 1; share < shares; ++share)
    for (int64_t i = p.dw ? 0 : way.weights(); i < share_size; ++i) partial[i] += partial[share * share_size + i];
  if (p.dw) way.weights_from_planes(partial, p.dw);
  if (p.db) std::memcpy(p.db, partial + way.weights(), sizeof(T) * d.K);
  return true;
}

}  // namespace ts::TS_ISA
