// The backward pass of convolution + ReLU + max pool, from the pooled gradient alone. Of a 2x2 pool's four cells one gets a
// gradient, and where the ReLU is off none: instead of spreading g over the convolution's output and multiplying zeros, each
// pooled cell with a gradient v, whose maximum was output cell (oh, ow) of channel k, adds
//   dw[k][t][c] += v * x[oh, ow][t][c]      dx[oh, ow][t][c] += v * w[k][t][c]      db[k] += v
// over the window's cells t, with lanes along the input channels c: x, w and dx are laid out channels last, channels rounded
// up to whole vectors. For a given k and vector of channels, dw (or w) stays in registers over all its cells.
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
  const conv2d::Dims d;
  int64_t rows, columns, vectors, width;  // of the padded image; vectors of channels; floats a cell
  int64_t taps;
  int64_t chosen[256];  // the cell at each position of the pool's window, from that at position 0; where positions are bytes

  explicit SparseBackward(const conv2d::Dims& dims)
      : d(dims), rows(d.H + d.PT + d.PB), columns(d.W + d.PL + d.PR), vectors(ceil_div(d.C, kLanes<T>)),
        width(vectors * kLanes<T>), taps(d.KH * d.KW) {
    if (d.pool && maxpool2d::byte_position(d.window))
      for (int64_t at = 0; at < d.window.KH * d.window.KW; ++at) chosen[at] = cell_at(at / d.window.KW, at % d.window.KW);
  }
  // Where the window of the convolution's output cell (row, column) begins in a padded channels-last image.
  int64_t cell_at(int64_t row, int64_t column) const { return (row * d.SH * columns + column * d.SW) * width; }

  // Fewer multiply-adds than the dense way, counted in vectors; 2 for the store that goes with each of dx.
  bool pays() const {
    if (!d.pool || d.G != 1 || d.N == 0) return false;
    const int64_t pooled = d.window.OH * d.window.OW;
    const int64_t dense = d.C * (ceil_div(d.OH * d.OW, kLanes<T>) + ceil_div(d.H * d.W, kLanes<T>));
    return 3 * pooled * vectors < dense;
  }

  int64_t image_size() const { return rows * columns * width; }
  int64_t tap_offset(int64_t t) const { return (t / d.KW * d.DH * columns + t % d.KW * d.DW) * width; }

  struct Cell {
    int64_t at;  // its window's first cell in a padded channels-last image
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

  // [C][H][W] -> padded [rows][columns][width], zeros around and behind.
  void to_channels_last(const T* x, T* to) const {
    if (d.C < width || rows > d.H || columns > d.W) std::memset(to, 0, sizeof(T) * image_size());
    if (columns == d.W) return transpose_copy<T>(to + d.PT * columns * width, width, x, d.H * d.W, d.C, d.H * d.W);
    for (int64_t h = 0; h < d.H; ++h)
      transpose_copy<T>(to + ((h + d.PT) * columns + d.PL) * width, width, x + h * d.W, d.H * d.W, d.C, d.W);
  }
  static bool all_finite(const T* x, int64_t count) {
    Vec<T> zero{};
    for_vectors<T>(count, [&](int64_t i, int n) { zero += load_some<T>(x + i, n) * T(0); });  // NaN from NaN and inf
    const T sum = sum_lanes<T>(zero);
    return sum == sum;
  }
  void from_channels_last(const T* from, T* dx) const {
    if (columns == d.W) return transpose_copy<T>(dx, d.H * d.W, from + d.PT * columns * width, width, d.H * d.W, d.C);
    for (int64_t h = 0; h < d.H; ++h)
      transpose_copy<T>(dx + h * d.W, d.H * d.W, from + ((h + d.PT) * columns + d.PL) * width, width, d.W, d.C);
  }
  // [K][C][taps] -> [K][taps][width]
  void weights_last(const T* w, T* to) const {
    std::memset(to, 0, sizeof(T) * d.K * taps * width);
    for (int64_t k = 0; k < d.K; ++k) transpose_copy<T>(to + k * taps * width, width, w + k * d.C * taps, taps, d.C, taps);
  }

  template <int R>
  void add_dw(const T* x, int64_t x_image, const Cells* cells, int64_t stride, int64_t images, const int64_t* offset, T* dw) const {
    Vec<T> sum[R];
#pragma GCC unroll 32
    for (int t = 0; t < R; ++t) sum[t] = load<T>(dw + t * width);
    for (int64_t n = 0; n < images; ++n, x += x_image)
      for (const Cell *c = cells[n * stride].first, *end = c + cells[n * stride].count; c != end; ++c) {
        const Vec<T> v = splat<T>(c->value);
        const T* at = x + c->at;
#pragma GCC unroll 32
        for (int t = 0; t < R; ++t) sum[t] += v * load<T>(at + offset[t]);
      }
#pragma GCC unroll 32
    for (int t = 0; t < R; ++t) store<T>(dw + t * width, sum[t]);
  }
  template <int R>
  void add_dx(T* dx, const Cells& cells, const int64_t* offset, const T* w) const {
    Vec<T> weight[R];
#pragma GCC unroll 32
    for (int t = 0; t < R; ++t) weight[t] = load<T>(w + t * width);
    for (const Cell *c = cells.first, *end = c + cells.count; c != end; ++c) {
      const Vec<T> v = splat<T>(c->value);
      T* at = dx + c->at;
#pragma GCC unroll 32
      for (int t = 0; t < R; ++t) store<T>(at + offset[t], load<T>(at + offset[t]) + v * weight[t]);
    }
  }

  // f.template operator()<R>(first tap) over balanced chunks of at most kMostTaps taps.
  template <int R = kMostTaps, class F>
  static void with_taps(int count, const F& f) {
    if constexpr (R > 0) {
      if (count == R) f.template operator()<R>();
      else with_taps<R - 1>(count, f);
    }
  }

  // A vector of channels at a time: its part of the image is small enough to stay in L1 while all channels of g meet it.
  // dw: [K][taps][width]. x: images channels last; cells[n * K + k].
  void weight_gradient(const T* x, const Cells* cells, int64_t images, T* dw) const {
    for_parts([&]<int R>(int64_t k, const int64_t* offset, int64_t c, int64_t w) {
      add_dw<R>(x + c, image_size(), cells + k, d.K, images, offset, dw + w);
    });
  }
  // dx of one image, channels last and padded, overwritten. w: by weights_last; cells[k].
  void data_gradient(const T* w, const Cells* cells, T* dx) const {
    std::memset(dx, 0, sizeof(T) * image_size());
    for_parts([&]<int R>(int64_t k, const int64_t* offset, int64_t c, int64_t at) {
      add_dx<R>(dx + c, cells[k], offset, w + at);
    });
  }

  // f.template operator()<taps at once>(channel of g, offsets of the taps, first channel, where their weights are)
  template <class F>
  void for_parts(const F& f) const {
    const int64_t chunk = ceil_div(taps, ceil_div(taps, kMostTaps));
    for (int64_t t0 = 0; t0 < taps; t0 += chunk) {
      const int count = static_cast<int>(min_of(chunk, taps - t0));
      int64_t offset[kMostTaps];
      for (int t = 0; t < count; ++t) offset[t] = tap_offset(t0 + t);
      for (int64_t c = 0; c < width; c += kLanes<T>)
        for (int64_t k = 0; k < d.K; ++k)
          with_taps(count, [&]<int R>() { f.template operator()<R>(k, offset, c, (k * taps + t0) * width + c); });
    }
  }
};

// Images [begin, end) of the batch, a group at a time; sums: dw [K][taps][width], then db [K].
template <class T>
void sparse_images(const conv2d::Backward<T>& p, const SparseBackward<T>& way, int64_t begin, int64_t end, const T* w, T* sums) {
  using Way = SparseBackward<T>;
  const conv2d::Dims& d = p.d;
  const int64_t pooled = d.window.OH * d.window.OW, image = d.C * d.H * d.W, bytes = sizeof(T);
  const int64_t at_once = max_of<int64_t>(1, min_of<int64_t>(16, (int64_t{512} << 10) / (bytes * way.image_size())));
  T* db = sums + d.K * way.taps * way.width;
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
      for (int64_t n = 0; n < count; ++n) way.to_channels_last(p.x + (first + n) * image, x + n * way.image_size());
      way.weight_gradient(x, cells, count, sums);
    }
    for (int64_t n = 0; n < count && p.dx; ++n) {
      T* dx = scratch<T>(Slot::image, way.image_size());
      way.data_gradient(w, cells + n * d.K, dx);
      way.from_channels_last(dx, p.dx + (first + n) * image);
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
  T* w = p.dx ? scratch<T>(Slot::transposed, d.K * way.taps * way.width) : nullptr;
  if (p.dx) way.weights_last(p.w, w);
  // Shares of the batch depend on the sizes alone, so that threads do not change the result.
  const int64_t share_size = d.K * way.taps * way.width + d.K, bytes = sizeof(T);
  const int64_t most = max_of<int64_t>(1, min_of<int64_t>(16, (int64_t{8} << 20) / (bytes * share_size)));
  const int64_t shares = min_of(most, ceil_div(d.N, 4)), images = ceil_div(d.N, shares);
  T* partial = scratch<T>(Slot::partial, shares * share_size);
  std::memset(partial, 0, sizeof(T) * shares * share_size);
  const int64_t work = images * d.K * d.window.OH * d.window.OW * way.taps * way.width;
  parallel(shares, max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, work)), [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share)
      sparse_images<T>(p, way, d.N * share / shares, d.N * (share + 1) / shares, w, partial + share * share_size);
  });
  for (int64_t share = 1; share < shares; ++share)
    for (int64_t i = 0; i < share_size; ++i) partial[i] += partial[share * share_size + i];
  for (int64_t k = 0; k < d.K && p.dw; ++k)
    transpose_copy<T>(p.dw + k * d.C * way.taps, way.taps, partial + k * way.taps * way.width, way.width, way.taps, d.C);
  if (p.db) std::memcpy(p.db, partial + d.K * way.taps * way.width, sizeof(T) * d.K);
  return true;
}

}  // namespace ts::TS_ISA
