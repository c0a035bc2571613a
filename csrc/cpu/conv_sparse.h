// The backward pass of convolution + ReLU + max pool, from the pooled gradient alone. Of a 2x2 pool's four cells one gets a
// gradient, and where the ReLU is off none: instead of spreading g over the convolution's output and multiplying zeros, each
// pooled cell with a gradient v, whose maximum was output cell (oh, ow) of channel k, adds
//   dw[k][t][c] += v * x[oh, ow][t][c]      dx[oh, ow][t][c] += v * w[k][t][c]      db[k] += v
// over the window's cells t, with lanes along the input channels c: x and dx lie as planes of cells of a vector of channels
// each, channels rounded up to whole vectors, dw and w as such planes for each k. For a given k and plane, dw (or w) stays in
// registers over all its cells, and the plane in L1 over all k.
// A skipped 0 * inf would lose a NaN, so the caller takes the dense way where x or w hold NaN or infinity.
#pragma once

#include "../contract/conv2d.h"
#include "conv_weights.h"

namespace ts::TS_ISA {

#if defined(__AVX512F__)
constexpr int kMostTaps = 25;  // a 5 x 5 window in registers
#else
constexpr int kMostTaps = 12;
#endif

template <class T>
struct SparseBackward {
  static constexpr int L = kLanes<T>;
  const conv2d::Dims d;
  int64_t rows, columns, vectors;  // of the padded image; of channels
  int64_t taps;
  int64_t chosen[256];  // the cell at each position of the pool's window, from that at position 0; where positions are bytes

  explicit SparseBackward(const conv2d::Dims& dims)
      : d(dims), rows(d.H + d.PT + d.PB), columns(d.W + d.PL + d.PR), vectors(ceil_div(d.C, L)),
        taps(d.KH * d.KW) {
    if (d.pool && maxpool2d::byte_position(d.window))
      for (int64_t at = 0; at < d.window.KH * d.window.KW; ++at) chosen[at] = cell_at(at / d.window.KW, at % d.window.KW);
  }
  // Where the window of the convolution's output cell (row, column) begins in a padded plane.
  int64_t cell_at(int64_t row, int64_t column) const { return (row * d.SH * columns + column * d.SW) * L; }

  // Fewer multiply-adds than the dense way, counted in vectors; 2 for the store that goes with each of dx.
  bool pays() const {
    if (!d.pool || d.G != 1 || d.N == 0) return false;
    const int64_t pooled = d.window.OH * d.window.OW;
    const int64_t dense = d.C * (ceil_div(d.OH * d.OW, L) + ceil_div(d.H * d.W, L));
    return 3 * pooled * vectors < dense;
  }

  int64_t plane_size() const { return rows * columns * L; }
  int64_t image_size() const { return vectors * plane_size(); }
  int64_t weights() const { return vectors * d.K * taps * L; }
  int channels(int64_t v) const { return static_cast<int>(min_of<int64_t>(L, d.C - v * L)); }  // of a plane

  struct Cell {
    int64_t at;  // its window's first cell in a padded plane
    T value;
  };
  struct Cells {  // of one channel of one image
    const Cell* first;
    int64_t count;
  };

  // The cells of channel k that have a gradient, and one more is overwritten: whether one has is as good as random, so that
  // a branch would be foreseen badly. position: in the pool's window. Returns how many.
  template <class P>
  int64_t list(const T* g, const T* y, const P* position, Cell* const first) const {
    const maxpool2d::Geometry w = d.window;
    const int64_t step = cell_at(0, w.SW), *const offset = chosen;
    Cell* to = first;
    for (int64_t oh = 0; oh < w.OH; ++oh) {
      int64_t window = cell_at(oh * w.SH - w.PH, -w.PW);
      for (int64_t ow = 0; ow < w.OW; ++ow, ++g, ++y, ++position, window += step) {
        const int64_t at = *position;
        *to = {window + (sizeof(P) == 1 ? offset[at] : cell_at(at / w.KW, at % w.KW)), *g};
        to += !(*y <= T(0)) & (*g != T(0));
      }
    }
    return to - first;
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
    Vec<T> zero{};
    for_vectors<T>(count, [&](int64_t i, int n) { zero += load_some<T>(x + i, n) * T(0); });  // NaN from NaN and inf
    const T sum = sum_lanes<T>(zero);
    return sum == sum;
  }
  void from_planes(const T* from, T* dx) const {
    for (int64_t v = 0; v < vectors; ++v, from += plane_size(), dx += L * d.H * d.W) {
      if (columns == d.W) transpose_copy<T>(dx, d.H * d.W, from + d.PT * columns * L, L, d.H * d.W, channels(v));
      else
        for (int64_t h = 0; h < d.H; ++h)
          transpose_copy<T>(dx + h * d.W, d.H * d.W, from + ((h + d.PT) * columns + d.PL) * L, L, d.W, channels(v));
    }
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
  void add_dw(const T* x, int64_t x_image, const Cells* cells, int64_t stride, int64_t images, const int64_t* row, T* dw) const {
    Vec<T> sum[R * C];
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
  template <int R, int C>
  void add_dx(T* dx, const Cells& cells, const int64_t* row, const T* w) const {
    Vec<T> weight[R * C];
#pragma GCC unroll 32
    for (int t = 0; t < R * C; ++t) weight[t] = load<T>(w + t * L);
    for (const Cell *c = cells.first, *end = c + cells.count; c != end; ++c) {
      const Vec<T> v = splat<T>(c->value);
#pragma GCC unroll 32
      for (int r = 0; r < R; ++r) {
        T* at = opaque(dx + c->at + row[r]);
#pragma GCC unroll 8
        for (int t = 0; t < C; ++t) store<T>(at + t * L, load<T>(at + t * L) + v * weight[r * C + t]);
      }
    }
  }
  // A pointer that is computed once: else each access would add the row anew, by an index that costs a micro-operation.
  template <class P>
  TS_INLINE static P* opaque(P* p) {
    asm("" : "+r"(p));
    return p;
  }

  // A plane of channels at a time. dw: [vectors][K][taps][L]. x: images in planes; cells[n * K + k].
  void weight_gradient(const T* x, const Cells* cells, int64_t images, T* dw) const {
    for_parts([&]<int R, int C>(int64_t k, const int64_t* row, int64_t v, int64_t w) {
      add_dw<R, C>(x + v * plane_size(), image_size(), cells + k, d.K, images, row, dw + w);
    });
  }
  // dx of one image, padded planes, overwritten. w: by weights_to_planes; cells[k].
  void data_gradient(const T* w, const Cells* cells, T* dx) const {
    std::memset(dx, 0, sizeof(T) * image_size());
    for_parts([&]<int R, int C>(int64_t k, const int64_t* row, int64_t v, int64_t at) {
      add_dx<R, C>(dx + v * plane_size(), cells[k], row, w + at);
    });
  }

  // f.template operator()<R, C>(channel of g, offsets of R rows of C taps, plane, where their weights are)
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
      for (int64_t v = 0; v < vectors; ++v)
        for (int64_t k = 0; k < d.K; ++k)
          with_rows<C>(at_once, [&]<int R>() { f.template operator()<R, C>(k, row, v, ((v * d.K + k) * taps + r0 * C) * L); });
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

// Images [begin, end) of the batch, a group at a time; sums: dw in planes, then db [K].
template <class T>
void sparse_images(const conv2d::Backward<T>& p, const SparseBackward<T>& way, int64_t begin, int64_t end, const T* w, T* sums) {
  using Way = SparseBackward<T>;
  const conv2d::Dims& d = p.d;
  const int64_t pooled = d.window.OH * d.window.OW, image = d.C * d.H * d.W, bytes = sizeof(T);
  const int64_t most = max_of<int64_t>(1, min_of<int64_t>(16, kPlanesBytes / (bytes * way.plane_size())));
  const int64_t at_once = ceil_div(end - begin, ceil_div(end - begin, most));
  T* db = sums + way.weights();
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t count = min_of(at_once, end - first);
    auto* cells = scratch<typename Way::Cells>(Slot::pixels, count * d.K);
    auto* cell = scratch<typename Way::Cell>(Slot::gradient, count * d.K * pooled + 1);
    for (int64_t i = 0; i < count * d.K; ++i) {
      const int64_t at = (first * d.K + i) * pooled;
      const bool byte = maxpool2d::byte_position(d.window);
      const int64_t found = byte ? way.list(p.g + at, p.y + at, static_cast<const uint8_t*>(p.position) + at, cell)
                                 : way.list(p.g + at, p.y + at, static_cast<const int32_t*>(p.position) + at, cell);
      cells[i] = {cell, found};
      for (int64_t c = 0; c < found; ++c) db[i % d.K] += cell[c].value;
      cell += found;
    }
    if (p.dw) {
      T* x = scratch<T>(Slot::batch, count * way.image_size());
      for (int64_t n = 0; n < count; ++n) way.to_planes(p.x + (first + n) * image, x + n * way.image_size());
      way.weight_gradient(x, cells, count, sums);
    }
    for (int64_t n = 0; n < count && p.dx; ++n) {
      T* dx = scratch<T>(Slot::image, way.image_size());
      way.data_gradient(w, cells + n * d.K, dx);
      way.from_planes(dx, p.dx + (first + n) * image);
    }
  }
}

// The whole backward pass this way; false, with nothing done, where it does not pay or may not be taken.
template <class T>
bool sparse_backward(const conv2d::Backward<T>& p) {
  const conv2d::Dims& d = p.d;
  const SparseBackward<T> way(d);
  if (!d.relu || !way.pays() || !way.all_finite(p.x, d.N * d.C * d.H * d.W) || !way.all_finite(p.w, d.K * d.C * way.taps))
    return false;
  T* w = p.dx ? scratch<T>(Slot::transposed, way.weights()) : nullptr;
  if (p.dx) way.weights_to_planes(p.w, w);
  // Shares of the batch depend on the sizes alone, so that threads do not change the result.
  const int64_t share_size = way.weights() + d.K, bytes = sizeof(T);
  const int64_t most = max_of<int64_t>(1, min_of<int64_t>(16, (int64_t{8} << 20) / (bytes * share_size)));
  const int64_t shares = min_of(most, ceil_div(d.N, 4)), images = ceil_div(d.N, shares);
  T* partial = scratch<T>(Slot::partial, shares * share_size);
  std::memset(partial, 0, sizeof(T) * shares * share_size);
  const int64_t work = images * d.K * d.window.OH * d.window.OW * way.taps * way.vectors * kLanes<T>;
  parallel(shares, max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, work)), [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share)
      sparse_images<T>(p, way, d.N * share / shares, d.N * (share + 1) / shares, w, partial + share * share_size);
  });
  for (int64_t share = 1; share < shares; ++share)
    for (int64_t i = 0; i < share_size; ++i) partial[i] += partial[share * share_size + i];
  if (p.dw) way.weights_from_planes(partial, p.dw);
  if (p.db) std::memcpy(p.db, partial + way.weights(), sizeof(T) * d.K);
  return true;
}

}  // namespace ts::TS_ISA
