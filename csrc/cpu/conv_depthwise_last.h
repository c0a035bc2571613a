// Depthwise convolution of channels-last images [N, H, W, C], one output channel an input channel: lanes are channels, so
// nothing is gathered or padded for any stride or dilation; windows at the edge meet fewer cells (Reach, Meeting of the pool).
#pragma once

#include "conv_depthwise.h"
#include "pool_last.h"

namespace ts::TS_ISA {

TS_INLINE Geometry window_of(const Dims& d) {
  return {d.H, d.W, d.KH, d.KW, d.SH, d.SW, d.PT, d.PL, d.DH, d.DW, d.OH, d.OW};
}

// [C, taps] -> [taps, C]
template <class T>
const T* taps_first(const Dims& d, const T* w, T* to) {
  transpose_copy<T>(to, d.C, w, d.KH * d.KW, d.C, d.KH * d.KW);
  return to;
}

// Columns side by side that share a load of the weights; their sums, a weight and a cell fit 16 registers.
constexpr int kDepthwiseColumns = 8;

template <class T>
struct DepthwiseLast {
  static constexpr int kColumns = kDepthwiseColumns;
  static constexpr bool kChannelsFirst = false;
  const Geometry& d;
  int64_t C;
  const T *x, *w, *bias;  // an image; [taps, C]; [C] or null
  T* y;
  bool relu;

  // V output cells from (oh, ow) on, or V vectors of channels of one.
  template <int V, bool kChannels>
  TS_INLINE void cells(int64_t oh, int64_t ow, const Reach& rows, const Reach& columns) const {
    const int64_t x_step = kChannels ? kLanes<T> : d.SW * C, y_step = kChannels ? kLanes<T> : C;
    const T* window = x + ((oh * d.SH - d.PH) * d.W + ow * d.SW - d.PW) * C;
    for_channels<T>(C, kChannels ? V * kLanes<T> : kLanes<T>, [&](int64_t c, int n) TS_LAMBDA {
      Vec<T> sum[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[v] = bias ? load_some<T>(bias + c + (kChannels ? v * kLanes<T> : 0), n) : Vec<T>{};
      for (int64_t kh = rows.begin; kh < rows.end; ++kh)
        for (int64_t kw = columns.begin; kw < columns.end; ++kw) {
          const T *from = window + (kh * d.DH * d.W + kw * d.DW) * C + c, *weight = w + (kh * d.KW + kw) * C + c;
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v)
            sum[v] += load_some<T>(weight + (kChannels ? v * kLanes<T> : 0), n) * load_some<T>(from + v * x_step, n);
        }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        store_some<T>(y + (oh * d.OW + ow) * C + v * y_step + c, relu ? ts::TS_ISA::relu<T>(sum[v]) : sum[v], n);
    });
  }
};

template <class T>
void depthwise_last_forward(const conv2d::Forward<T>& p) {
  const Dims& d = p.d;
  const Geometry window = window_of(d);
  const T* w = taps_first<T>(d, p.w, scratch<T>(Slot::transposed, d.C * d.KH * d.KW));
  parallel(d.N * d.OH, ceil_div(kParallelWork, d.OW * d.C * d.KH * d.KW), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / d.OH;
      const DepthwiseLast<T> image{window, d.C, p.x + n * d.H * d.W * d.C, w, p.bias, p.y + n * d.OH * d.OW * d.C, d.relu};
      window_row<T>(image, i % d.OH);
    }
  });
}

// Lanes [at, at + n) of the gradient, where relu let it pass.
template <class T, bool kRelu>
TS_INLINE Vec<T> gradient_at(const T* g, const T* y, int64_t at, int n) {
  const Vec<T> v = load_some<T>(g + at, n);
  if constexpr (kRelu) return relu_gradient<T>(v, load_some<T>(y + at, n));
  else return v;
}

// dx[cell] = sum over the windows that meet it of w * g.
template <class T, bool kRelu>
struct DepthwiseDataLast {
  static constexpr int kColumns = kDepthwiseColumns;
  static constexpr bool kChannelsFirst = false;
  const Geometry& d;
  int64_t C;
  const T *g, *y, *w;  // of an image; [taps, C]
  T* dx;
  const Meetings &rows, &columns;

  // Cells iw, iw + SW, …, each of which meets the windows of the one before moved by one; or vectors of channels of one.
  template <int V, bool kChannels>
  TS_INLINE void cells(int64_t ih, int64_t iw) const {
    const int64_t g_step = kChannels ? kLanes<T> : C, dx_step = kChannels ? kLanes<T> : d.SW * C;
    for_channels<T>(C, kChannels ? V * kLanes<T> : kLanes<T>, [&](int64_t c, int n) TS_LAMBDA {
      Vec<T> sum[V] = {};
      for (const Meeting* r = rows.begin(ih); r != rows.end(ih); ++r)
        for (const Meeting* m = columns.begin(iw); m != columns.end(iw); ++m) {
          const int64_t o = (r->o * d.OW + m->o) * C + c;
          const T* weight = w + (r->k * d.KW + m->k) * C + c;
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v)
            sum[v] += load_some<T>(weight + (kChannels ? v * kLanes<T> : 0), n) * gradient_at<T, kRelu>(g, y, o + v * g_step, n);
        }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store_some<T>(dx + (ih * d.W + iw) * C + v * dx_step + c, sum[v], n);
    });
  }
};

template <class T, bool kRelu>
void depthwise_last_data(const conv2d::Backward<T>& p, const Geometry& window) {
  const Dims& d = p.d;
  const T* w = taps_first<T>(d, p.w, scratch<T>(Slot::transposed, d.C * d.KH * d.KW));
  const Meetings rows = row_meetings(window, Slot::cells), columns = column_meetings(window, Slot::rows);
  const int64_t out = d.OH * d.OW * d.C, work = d.W * d.C * ceil_div(d.KH * d.KW, d.SH * d.SW);
  parallel(d.N * d.H, ceil_div(kParallelWork, work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / d.H;
      const DepthwiseDataLast<T, kRelu> image{window, d.C, p.g + n * out, kRelu ? p.y + n * out : nullptr, w, p.dx + n * d.H * d.W * d.C,
                                       rows, columns};
      gather_row<T>(image, i % d.H);
    }
  });
}

// dw and db of the channels of one vector, all images in order. Sums of a row stay in registers, those of an image in
// memory: chains of thousands of additions would lose digits.
template <class T, bool kRelu>
struct DepthwiseWeightsLast {
  const Dims& d;
  const Geometry& window;
  const T *g, *y, *x;  // of an image, from the vector's first channel on
  int n;               // its channels
  T* sums;             // [taps] vectors, then one for the bias

  TS_INLINE void add(T* to, Vec<T> v) const { store<T>(to, load<T>(to) + v); }

  // R window columns from kw on, over the output cells [begin, end) of a row whose windows lie inside: U cells at a time.
  template <int R, int U>
  TS_INLINE void taps(int64_t o, const T* from, int64_t begin, int64_t end, T* to) const {
    Vec<T> sum[U][R] = {};
    const int64_t step = d.SW * d.C;
    int64_t ow = begin;
    for (; ow + U <= end; ow += U)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const Vec<T> v = gradient_at<T, kRelu>(g, y, (o + ow + u) * d.C, n);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[u][r] += v * load_some<T>(from + (ow + u) * step + r * d.DW * d.C, n);
      }
    for (; ow < end; ++ow) {
      const Vec<T> v = gradient_at<T, kRelu>(g, y, (o + ow) * d.C, n);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[0][r] += v * load_some<T>(from + ow * step + r * d.DW * d.C, n);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec<T> all = sum[0][r];
#pragma GCC unroll 4
      for (int u = 1; u < U; ++u) all += sum[u][r];
      add(to + r * kLanes<T>, all);
    }
  }

  void row(int64_t oh) const {
    constexpr int L = kLanes<T>;
    const Reach rows = row_reach(window, oh);
    const Inner inner = inner_columns(window);
    const int64_t o = oh * d.OW;
    for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
      const T* from = x + ((oh * d.SH - d.PT + kh * d.DH) * d.W - d.PL) * d.C;
      T* to = sums + kh * d.KW * L;
      int64_t kw = 0;  // six to eight chains of sums: an FMA takes four cycles
      for (; kw + 5 <= d.KW; kw += 5) taps<5, 1>(o, from + kw * d.DW * d.C, inner.begin, inner.end, to + kw * L);
      for (; kw + 3 <= d.KW; kw += 3) taps<3, 2>(o, from + kw * d.DW * d.C, inner.begin, inner.end, to + kw * L);
      for (; kw < d.KW; ++kw) taps<1, 4>(o, from + kw * d.DW * d.C, inner.begin, inner.end, to + kw * L);
      for (int64_t ow = 0; ow < d.OW; ++ow) {
        if (ow == inner.begin) ow = inner.end;
        if (ow >= d.OW) break;
        const Reach columns = column_reach(window, ow);
        const Vec<T> v = gradient_at<T, kRelu>(g, y, (o + ow) * d.C, n);
        for (int64_t k = columns.begin; k < columns.end; ++k)
          add(to + k * L, v * load_some<T>(from + (ow * d.SW + k * d.DW) * d.C, n));
      }
    }
  }
  void bias(int64_t oh) const {
    Vec<T> sum[2] = {};
    for (int64_t ow = 0; ow < d.OW; ++ow) sum[ow % 2] += gradient_at<T, kRelu>(g, y, (oh * d.OW + ow) * d.C, n);
    add(sums + d.KH * d.KW * kLanes<T>, sum[0] + sum[1]);
  }
};

template <class T, bool kRelu>
void depthwise_last_weights(const conv2d::Backward<T>& p, const Geometry& window) {
  constexpr int L = kLanes<T>;
  const Dims& d = p.d;
  const int64_t taps = d.KH * d.KW, count = (taps + 1) * L, out = d.OH * d.OW * d.C;
  const int64_t grain = ceil_div(kParallelWork, max_of<int64_t>(1, d.N * d.OH * d.OW * taps * L));
  parallel(ceil_div(d.C, L), grain, [&](int64_t begin, int64_t end) {
    T* total = scratch<T>(Slot::partial, 2 * count);
    T* sums = total + count;
    for (int64_t c = begin * L; c < min_of(d.C, end * L); c += L) {
      const int n = static_cast<int>(min_of<int64_t>(L, d.C - c));
      std::memset(total, 0, sizeof(T) * count);
      for (int64_t image = 0; image < d.N; ++image) {
        std::memset(sums, 0, sizeof(T) * count);
        const DepthwiseWeightsLast<T, kRelu> way{d, window, p.g + image * out + c, kRelu ? p.y + image * out + c : nullptr,
                                          p.x + image * d.H * d.W * d.C + c, n, sums};
        for (int64_t oh = 0; oh < d.OH; ++oh) {
          if (p.dw) way.row(oh);
          if (p.db) way.bias(oh);
        }
        for (int64_t i = 0; i < count; i += L) store<T>(total + i, load<T>(total + i) + load<T>(sums + i));
      }
      for (int i = 0; i < n; ++i) {
        for (int64_t t = 0; t < taps && p.dw; ++t) p.dw[(c + i) * taps + t] = total[t * L + i];
        if (p.db) p.db[c + i] = total[taps * L + i];
      }
    }
  });
}

template <class T, bool kRelu>
void depthwise_last_gradients(const conv2d::Backward<T>& p) {
  const Geometry window = window_of(p.d);
  if (p.dx) depthwise_last_data<T, kRelu>(p, window);
  if (p.dw || p.db) depthwise_last_weights<T, kRelu>(p, window);
}
template <class T>
void depthwise_last_backward(const conv2d::Backward<T>& p) {
  if (p.d.relu) depthwise_last_gradients<T, true>(p);
  else depthwise_last_gradients<T, false>(p);
}

}  // namespace ts::TS_ISA
