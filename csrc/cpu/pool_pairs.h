// Max pooling of one plane by 2x2 windows side by side, and its transpose.
#pragma once

#include "pool_lanes.h"

namespace ts::TS_ISA {

TS_INLINE bool side_by_side(const Geometry& d) {  // 2x2 windows, none over an edge
  return d.KH == 2 && d.KW == 2 && d.SH == 2 && d.SW == 2 && d.PH == 0 && d.PW == 0 && d.DH == 1 && d.DW == 1 &&
         2 * d.OH <= d.H && 2 * d.OW <= d.W;
}

TS_INLINE bool covered_by_pairs(const Geometry& d) { return side_by_side(d) && d.H == 2 * d.OH && d.W == 2 * d.OW; }

// Two rows of x from p on and the maxima of their cells, two by two: of `first` cells, and from `apart` behind p of `second`.
template <class T>
TS_INLINE Best<T> best_of_pairs(const T* p, int64_t pitch, int64_t apart, int first, int second) {
  const auto row = [&](const T* at, Vec<T>& even, Vec<T>& odd) __attribute__((always_inline)) {
    even_odd<T>(load_some<T>(at, first), second ? load_some<T>(at + apart, second) : Vec<T>{}, even, odd);
  };
  Vec<T> cell[4];
  row(p, cell[0], cell[1]);
  row(p + pitch, cell[2], cell[3]);
  Best<T> best{cell[0], {}};
  if (__builtin_expect(any<T>(unordered<T>(cell[0], cell[1]) | unordered<T>(cell[2], cell[3])), 0)) {
    for (int k = 1; k < 4; ++k) best.meet(cell[k], everywhere<T>(k));
  } else {
    Best<T> below{cell[2], everywhere<T>(2)};
    best.template meet<true>(cell[1], everywhere<T>(1));
    below.template meet<true>(cell[3], everywhere<T>(3));
    best.template meet<true>(below.value, below.at);
  }
  return {in_order(best.value), in_order(best.at)};
}

// Such windows. Columns outside, rows inside: the masks of a column's vectors hold for all rows. Where half a vector is left,
// it takes two rows of y at a time.
template <class T, class P, bool kWhole>
TS_INLINE void pool_pairs_down(int64_t OH, int64_t OW, int n, const T* x, int64_t pitch, int64_t next, T* y, P* position) {
  constexpr int L = kLanes<T>;
  if (kWhole) n = L;
  const int first = kWhole ? L : min_of(2 * n, L), second = kWhole ? L : 2 * n - first;
  for (int64_t oh = 0; oh < OH; ++oh, x += 2 * pitch, y += OW, position += OW) {
    if (next) prefetch_row(x + next, 2 * pitch);
    const Best<T> best = best_of_pairs<T>(x, pitch, L, first, second);
    store_n<T>(y, best.value, n);
    store_position<T, P>(position, best.at, n);
  }
}
template <class T, class P, bool kWhole>
TS_INLINE void pool_pairs_two_rows(int64_t OH, int64_t OW, int n, const T* x, int64_t pitch, int64_t next, T* y, P* position) {
  if (kWhole) n = kLanes<T> / 2;
  for (int64_t oh = 0; oh < OH; oh += 2, x += 4 * pitch, y += 2 * OW, position += 2 * OW) {
    if (next) prefetch_row(x + next, 4 * pitch);
    const bool two = oh + 1 < OH;
    const Best<T> best = best_of_pairs<T>(x, pitch, 2 * pitch, 2 * n, two ? 2 * n : 0);
    store_n<T>(y, best.value, n);
    store_position<T, P>(position, best.at, n);
    if (!two) break;
    store_n<T>(y + OW, upper_half<T>(best.value), n);
    store_position<T, P>(position + OW, upper_half<T>(best.at), n);
  }
}
template <class T, class P>
void pool_pairs(const Geometry& d, const T* x, int64_t pitch, T* y, P* position) {
  constexpr int L = kLanes<T>;
  const int64_t OH = d.OH, OW = d.OW;
  int64_t next = d.H * pitch;  // the next plane is asked for once
  for (int64_t ow = 0; ow < OW; ow += L, next = 0) {
    const int n = static_cast<int>(min_of<int64_t>(L, OW - ow));
    if (n == L) pool_pairs_down<T, P, true>(OH, OW, n, x + 2 * ow, pitch, next, y + ow, position + ow);
    else if (n > L / 2) pool_pairs_down<T, P, false>(OH, OW, n, x + 2 * ow, pitch, next, y + ow, position + ow);
    else if (n == L / 2) pool_pairs_two_rows<T, P, true>(OH, OW, n, x + 2 * ow, pitch, next, y + ow, position + ow);
    else pool_pairs_two_rows<T, P, false>(OH, OW, n, x + 2 * ow, pitch, next, y + ow, position + ow);
  }
}

// What goes back to the cells of a plane, from output cells of which some lie at o.
template <class T, class P>
struct Unpooled {
  const T *g, *y;
  const P* position;
  T* dx;
  int64_t OW;

  TS_INLINE Vec<T> gradient(int64_t o, int n) const {
    const Vec<T> v = load_some<T>(g + o, n);
    return y ? relu_gradient<T>(v, load_some<T>(y + o, n)) : v;
  }
  // Two rows of dx: from `row` on `first` cells, and from `apart` behind it `second`.
  TS_INLINE void put(Vec<T> v, Mask<T> at, T* row, int64_t apart, int first, int second) const {
    v = in_order(v), at = in_order(at);
    for (int kh = 0; kh < 2; ++kh, row += 2 * OW) {
      const Vec<T> zero{};
      Vec<T> low, high;
      in_turn<T>(at == 2 * kh ? v : zero, at == 2 * kh + 1 ? v : zero, low, high);
      store_some<T>(row, low, first);
      if (second) store_some<T>(row + apart, high, second);
    }
  }
  // Columns of dx as in pool_pairs.
  template <bool kWhole>
  TS_INLINE void down(int64_t OH, int64_t ow, int n) const {
    constexpr int L = kLanes<T>;
    if (kWhole) n = L;
    const int first = kWhole ? L : min_of(2 * n, L), second = kWhole ? L : 2 * n - first;
    T* row = dx + 2 * ow;
    for (int64_t oh = 0, o = ow; oh < OH; ++oh, o += OW, row += 4 * OW)
      put(gradient(o, n), load_position<T, P>(position + o, n), row, L, first, second);
  }
  template <bool kWhole>
  TS_INLINE void two_rows(int64_t OH, int64_t ow, int n) const {
    if (kWhole) n = kLanes<T> / 2;
    T* row = dx + 2 * ow;
    for (int64_t oh = 0, o = ow; oh < OH; oh += 2, o += 2 * OW, row += 8 * OW) {
      Vec<T> v = gradient(o, n);
      Mask<T> at = load_position<T, P>(position + o, n);
      const bool two = oh + 1 < OH;
      if (two) v = halves<T>(v, gradient(o + OW, n)), at = halves<T>(at, load_position<T, P>(position + o + OW, n));
      put(v, at, row, 4 * OW, 2 * n, two ? 2 * n : 0);
    }
  }
};
// 2x2 windows that cover the plane: every cell of dx is written once, two rows at a time.
template <class T, class P>
void unpool_pairs(int64_t OH, int64_t OW, const T* g, const T* y, const P* position, T* dx) {
  const Unpooled<T, P> plane{g, y, position, dx, OW};
  for (int64_t ow = 0; ow < OW; ow += kLanes<T>) {
    const int n = static_cast<int>(min_of<int64_t>(kLanes<T>, OW - ow));
    if (n == kLanes<T>) plane.template down<true>(OH, ow, n);
    else if (n > kLanes<T> / 2) plane.template down<false>(OH, ow, n);
    else if (n == kLanes<T> / 2) plane.template two_rows<true>(OH, ow, n);
    else plane.template two_rows<false>(OH, ow, n);
  }
}

}  // namespace ts::TS_ISA
