// Max pooling of one plane, and its transpose: what maxpool2d.cpp runs over planes and conv2d.cpp over a finished image.
#pragma once

#include "../contract/maxpool2d.h"
#include "simd.h"

namespace ts::TS_ISA {

using maxpool2d::Geometry;

// Lanes i hold p[i * stride], i < n. Two vectors and a shuffle for stride 2; one load for stride 1.
template <class T>
TS_INLINE Vec<T> load_strided(const T* p, int64_t stride, int n) {
  constexpr int L = kLanes<T>;
  if (stride == 1) return load_n<T>(p, n);
#if !defined(__clang__)
  if (stride == 2) {
    const int cells = 2 * n - 1;  // the cell after the last may lie outside the plane
    const Vec<T> low = load_n<T>(p, cells < L ? cells : L), high = load_n<T>(p + L, cells > L ? cells - L : 0);
    Mask<T> even;
    for (int i = 0; i < L; ++i) even[i] = 2 * i;
    return __builtin_shuffle(low, high, even);
  }
#endif
  Vec<T> v{};
  for (int i = 0; i < n; ++i) v[i] = p[i * stride];
  return v;
}

template <class T, class P>
TS_INLINE void store_position(P* p, Mask<T> position, int n) {
  typedef P Narrow __attribute__((vector_size(kLanes<T> * sizeof(P))));
  const Narrow narrow = __builtin_convertvector(position, Narrow);
  if (n == kLanes<T>) std::memcpy(p, &narrow, sizeof narrow);
  else std::memcpy(p, &narrow, n * sizeof(P));
}
template <class T, class P>
TS_INLINE Mask<T> load_position(const P* p, int n) {
  typedef P Narrow __attribute__((vector_size(kLanes<T> * sizeof(P))));
  Narrow narrow{};
  if (n == kLanes<T>) std::memcpy(&narrow, p, sizeof narrow);
  else std::memcpy(&narrow, p, n * sizeof(P));
  return __builtin_convertvector(narrow, Mask<T>);
}

// One window, cell by cell: for windows that reach over the edge.
template <class T, class P>
void pool_window(const Geometry& d, const T* x, int64_t pitch, int64_t oh, int64_t ow, T* y, P* position) {
  T best = T(0);
  int64_t at = -1;
  for (int64_t kh = 0; kh < d.KH; ++kh) {
    const int64_t ih = oh * d.SH - d.PH + kh * d.DH;
    if (ih < 0 || ih >= d.H) continue;
    for (int64_t kw = 0; kw < d.KW; ++kw) {
      const int64_t iw = ow * d.SW - d.PW + kw * d.DW;
      if (iw < 0 || iw >= d.W) continue;
      const T v = x[ih * pitch + iw];
      if (at < 0 || v > best || v != v) best = v, at = kh * d.KW + kw;
    }
  }
  *y = best;
  *position = static_cast<P>(at);
}

// x: H rows of W cells, `pitch` apart. y, position: OH x OW, dense.
template <class T, class P>
void pool_plane(const Geometry& d, const T* x, int64_t pitch, T* y, P* position) {
  // Columns [left, right) and rows [top, bottom) have their whole window inside.
  const int64_t left = min_of(d.OW, ceil_div(d.PW, d.SW)), top = min_of(d.OH, ceil_div(d.PH, d.SH));
  const int64_t reach_w = d.W - 1 + d.PW - (d.KW - 1) * d.DW, reach_h = d.H - 1 + d.PH - (d.KH - 1) * d.DH;
  const int64_t right = reach_w < 0 ? 0 : min_of(d.OW, reach_w / d.SW + 1);
  const int64_t bottom = reach_h < 0 ? 0 : min_of(d.OH, reach_h / d.SH + 1);
  for (int64_t oh = 0; oh < d.OH; ++oh) {
    T* yr = y + oh * d.OW;
    P* pr = position + oh * d.OW;
    const bool inside = oh >= top && oh < bottom && left < right;
    const int64_t from = inside ? left : d.OW;
    for (int64_t ow = 0; ow < from; ++ow) pool_window<T, P>(d, x, pitch, oh, ow, yr + ow, pr + ow);
    if (!inside) continue;
    for (int64_t ow = left; ow < right; ow += kLanes<T>) {
      const int n = static_cast<int>(min_of<int64_t>(kLanes<T>, right - ow));
      const T* window = x + (oh * d.SH - d.PH) * pitch + ow * d.SW - d.PW;
      Vec<T> best = load_strided<T>(window, d.SW, n);
      Mask<T> at{};
      for (int64_t kh = 0; kh < d.KH; ++kh)
        for (int64_t kw = kh == 0 ? 1 : 0; kw < d.KW; ++kw) {
          const Vec<T> v = load_strided<T>(window + kh * d.DH * pitch + kw * d.DW, d.SW, n);
          const Mask<T> take = (v > best) | (v != v);  // v != v: a NaN wins, the last one counts
          best = take ? v : best;
          at = take ? (Mask<T>{} + static_cast<int>(kh * d.KW + kw)) : at;
        }
      store_n<T>(yr + ow, best, n);
      store_position<T, P>(pr + ow, at, n);
    }
    for (int64_t ow = max_of(left, right); ow < d.OW; ++ow) pool_window<T, P>(d, x, pitch, oh, ow, yr + ow, pr + ow);
  }
}

// dx[cell at position] += g, or where `y` is given (ReLU before or after the pool: the same) only where !(y <= 0).
// dx: H x W dense, overwritten.
template <class T, class P>
void unpool_plane(const Geometry& d, const T* g, const T* y, const P* position, T* dx) {
  const bool pairs = d.KH == 2 && d.KW == 2 && d.SH == 2 && d.SW == 2 && d.PH == 0 && d.PW == 0 && d.DH == 1 &&
                     d.DW == 1 && d.H == 2 * d.OH && d.W == 2 * d.OW;
  if (!pairs) {
    std::memset(dx, 0, sizeof(T) * d.H * d.W);
    for (int64_t oh = 0; oh < d.OH; ++oh)
      for (int64_t ow = 0; ow < d.OW; ++ow) {
        const int64_t o = oh * d.OW + ow, at = position[o];
        if (y && y[o] <= T(0)) continue;
        dx[(oh * d.SH - d.PH + at / d.KW * d.DH) * d.W + ow * d.SW - d.PW + at % d.KW * d.DW] += g[o];
      }
    return;
  }
  // 2x2 windows side by side: every cell of dx is written once, two rows at a time.
  for (int64_t oh = 0; oh < d.OH; ++oh)
    for (int64_t ow = 0; ow < d.OW; ow += kLanes<T>) {
      const int n = static_cast<int>(min_of<int64_t>(kLanes<T>, d.OW - ow));
      const int64_t o = oh * d.OW + ow;
      Vec<T> v = load_n<T>(g + o, n);
      if (y) v = relu_gradient<T>(v, load_n<T>(y + o, n));
      const Mask<T> at = load_position<T, P>(position + o, n);
      const int first = min_of(2 * n, kLanes<T>), second = 2 * n - first;
      for (int kh = 0; kh < 2; ++kh) {
        const Vec<T> zero{};
        const Vec<T> even = at == 2 * kh ? v : zero, odd = at == 2 * kh + 1 ? v : zero;
        T* row = dx + (2 * oh + kh) * d.W + 2 * ow;
        store_n<T>(row, zip_low<T>(even, odd), first);
        store_n<T>(row + kLanes<T>, zip_high<T>(even, odd), second);
      }
    }
}

}  // namespace ts::TS_ISA
