// Depthwise convolution with stride 1 whose output rows are as long as the image's: there a window cell of all output cells is
// the plane as one line, shifted, so that vectors run across rows and nothing is copied. What a window cell meets outside of the
// plane is left out by masks, which all planes share. Small planes gain most: one of 4 x 4 cells is a single vector.
#pragma once

#include "conv_depthwise.h"

namespace ts::TS_ISA {

// The lines of one direction: forward, or with the shifts turned round that of the data gradient.
template <class T>
struct ShiftedLines {
  static constexpr int L = kLanes<T>;
  int64_t taps, cells, vectors;  // of the window; of a plane of the result
  const int64_t* shift;          // [taps]
  const LaneMask<T>* mask;       // [vectors][taps]

  static int64_t masks(const Dims& d, int64_t rows) { return ceil_div(rows * d.W, L) * d.KH * d.KW; }

  // From planes of `from` rows to planes of `to`. sign: 1 forward, -1 back. Room for [taps], and twice for [vectors][taps].
  ShiftedLines(const Dims& d, int64_t from, int64_t to, int sign, int64_t* shifts, uint16_t* bits, LaneMask<T>* lanes)
      : taps(d.KH * d.KW), cells(to * d.W), vectors(ceil_div(cells, L)), shift(shifts), mask(lanes) {
    std::memset(bits, 0, sizeof(uint16_t) * vectors * taps);
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t down = sign * (t / d.KW * d.DH - d.PT), right = sign * (t % d.KW * d.DW - d.PL);
      shifts[t] = down * d.W + right;
      const int64_t begin = max_of<int64_t>(0, -right), end = min_of(d.W, d.W - right);
      for (int64_t row = max_of<int64_t>(0, -down); row < min_of(to, from - down); ++row)
        for (int64_t i = row * d.W + begin; i < row * d.W + end;) {
          const int64_t n = min_of(L - i % L, row * d.W + end - i);
          bits[i / L * taps + t] |= static_cast<uint16_t>(((1u << n) - 1) << i % L);
          i += n;
        }
    }
    for (int64_t i = 0; i < vectors * taps; ++i) lanes[i] = lane_mask<T>(bits[i]);
  }

  static TS_INLINE int lanes(int64_t cells) { return static_cast<int>(min_of<int64_t>(L, cells)); }

  // f.template operator()<R>(first) for the taps in equal shares, as many as there are registers for.
  template <class F>
  void in_shares(const F& f) const {
    const int64_t share = ceil_div(taps, ceil_div(taps, kDepthwiseTaps));
    for (int64_t t = 0; t < taps; t += share) of_size(static_cast<int>(min_of(share, taps - t)), t, f);
  }
  template <int R = kDepthwiseTaps, class F>
  static void of_size(int count, int64_t first, const F& f) {
    if constexpr (R > 0) {
      if (count == R) f.template operator()<R>(first);
      else of_size<R - 1>(count, first, f);
    }
  }

  // y (+)= bias + the sum of w * x over the window.
  void run(const T* x, const T* w, T bias, bool relu, bool add, T* y) const {
    in_shares([&]<int R>(int64_t first) { correlate<R>(first, x, w + first, bias, relu && first + R == taps, add || first > 0, y); });
  }
  template <int R>
  void correlate(int64_t first, const T* x, const T* w, T bias, bool relu, bool add, T* y) const {
    const T* at[R];
    Vec<T> weight[R];
    for (int t = 0; t < R; ++t) at[t] = x + shift[first + t], weight[t] = splat<T>(w[t]);
    const LaneMask<T>* m = mask + first;
    const int64_t step = taps;  // not read again after each store, which might be to it
    for (int64_t j = 0, rest = cells; rest > 0; j += L, rest -= L, m += step) {
      Vec<T> sum = add ? load_some<T>(y + j, lanes(rest)) : splat<T>(bias);
#pragma GCC unroll 32
      for (int t = 0; t < R; ++t) sum += weight[t] * load_masked<T>(at[t] + j, m[t]);
      store_some<T>(y + j, relu ? ts::TS_ISA::relu<T>(sum) : sum, lanes(rest));
    }
  }

  // sums[t] += the sum of g * x over all cells.
  void products(const T* g, const T* x, T* sums) const {
    in_shares([&]<int R>(int64_t first) { add_products<R>(first, g, x, sums + first); });
  }
  template <int R>
  void add_products(int64_t first, const T* g, const T* x, T* sums) const {
    Vec<T> sum[R] = {};
    const T* at[R];
    for (int t = 0; t < R; ++t) at[t] = x + shift[first + t];
    const LaneMask<T>* m = mask + first;
    for (int64_t j = 0, rest = cells; rest > 0; j += L, rest -= L, m += taps) {
      const Vec<T> v = load_some<T>(g + j, lanes(rest));
#pragma GCC unroll 32
      for (int t = 0; t < R; ++t) sum[t] += v * load_masked<T>(at[t] + j, m[t]);
    }
    add_sum_each<T, R>(sum, sums);
  }
};

// Larger planes' masks would not stay in L1 beside the plane, and their rows fill vectors.
constexpr int64_t kMaskBytes = 16 << 10;
template <class T>
bool in_lines(const Dims& d) {
  const int64_t masks = ShiftedLines<T>::masks(d, max_of(d.H, d.OH));
  return kMaskedLoads && d.SH == 1 && d.SW == 1 && d.OW == d.W && masks * static_cast<int64_t>(sizeof(LaneMask<T>)) <= kMaskBytes;
}

template <class T>
void depthwise_lines_forward(const conv2d::Forward<T>& p) {
  const Dims& d = p.d;
  const int64_t taps = d.KH * d.KW, multiple = d.K / d.C, masks = ShiftedLines<T>::masks(d, d.OH);
  const ShiftedLines<T> lines(d, d.H, d.OH, 1, scratch<int64_t>(Slot::cells, taps), scratch<uint16_t>(Slot::rows, masks),
                              scratch<LaneMask<T>>(Slot::planes, masks));
  parallel(d.N * d.K, depthwise_grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t k = plane % d.K;
      lines.run(p.x + plane / multiple * d.H * d.W, p.w + k * taps, p.bias ? p.bias[k] : T(0), p.d.relu, false,
                p.y + plane * d.OH * d.OW);
    }
  });
}

template <class T>
void depthwise_lines_backward(const conv2d::Backward<T>& p) {
  const Dims& d = p.d;
  const int64_t taps = d.KH * d.KW, multiple = d.K / d.C, image = d.H * d.W, masks = ShiftedLines<T>::masks(d, max_of(d.H, d.OH));
  int64_t* shifts = scratch<int64_t>(Slot::cells, 2 * taps);
  uint16_t* bits = scratch<uint16_t>(Slot::rows, masks);
  LaneMask<T>* lanes = scratch<LaneMask<T>>(Slot::planes, 2 * masks);
  const ShiftedLines<T> lines(d, d.H, d.OH, 1, shifts, bits, lanes), back(d, d.OH, d.H, -1, shifts + taps, bits, lanes + masks);
  // What a channel adds up over the images belongs to one thread.
  parallel(d.K, ceil_div(depthwise_grain(d), max_of<int64_t>(1, d.N)), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (p.dw) std::memset(p.dw + k * taps, 0, sizeof(T) * taps);
      if (p.db) p.db[k] = T(0);
      for (int64_t n = 0; n < d.N && (p.dw || p.db); ++n) {
        const T* g = depthwise_gradient<T>(p, n * d.K + k);
        if (p.dw) lines.products(g, p.x + (n * d.C + k / multiple) * image, p.dw + k * taps);
        if (p.db) p.db[k] += sum_plane<T>(g, d.OH * d.OW);
      }
    }
  });
  if (!p.dx) return;
  parallel(d.N * d.C, depthwise_grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane)
      for (int64_t m = 0; m < multiple; ++m) {
        const int64_t k = plane % d.C * multiple + m;
        back.run(depthwise_gradient<T>(p, plane * multiple + m), p.w + k * taps, T(0), false, m > 0, p.dx + plane * image);
      }
  });
}

}  // namespace ts::TS_ISA
