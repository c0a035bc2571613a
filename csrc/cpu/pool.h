// Max pooling of one plane, and its transpose: what maxpool2d.cpp runs over planes and conv2d.cpp over a finished image.
#pragma once

#include "pool_pairs.h"

namespace ts::TS_ISA {

// The window cells [begin, end) of output cell o that lie inside, in one dimension.
struct Reach {
  int64_t begin, end;
  Reach(int64_t o, int64_t in, int64_t K, int64_t S, int64_t P, int64_t D) {
    const int64_t first = o * S - P;
    begin = first >= 0 ? 0 : min_of(K, ceil_div(-first, D));
    end = first >= in ? begin : max_of(begin, min_of(K, ceil_div(in - first, D)));
  }
};
TS_INLINE Reach row_reach(const Geometry& d, int64_t oh) { return {oh, d.H, d.KH, d.SH, d.PH, d.DH}; }
TS_INLINE Reach column_reach(const Geometry& d, int64_t ow) { return {ow, d.W, d.KW, d.SW, d.PW, d.DW}; }

// Output cells [begin, end) of one dimension have their whole window inside.
struct Inner {
  int64_t begin, end;
  Inner(int64_t in, int64_t out, int64_t K, int64_t S, int64_t P, int64_t D) {
    const int64_t reach = in - 1 + P - (K - 1) * D;
    begin = min_of(out, ceil_div(P, S));
    end = max_of(begin, reach < 0 ? 0 : min_of(out, reach / S + 1));
  }
};
TS_INLINE Inner inner_rows(const Geometry& d) { return {d.H, d.OH, d.KH, d.SH, d.PH, d.DH}; }
TS_INLINE Inner inner_columns(const Geometry& d) { return {d.W, d.OW, d.KW, d.SW, d.PW, d.DW}; }

// Windows inside the plane that share no row: each is read once, straight from x.
template <class T, class P>
void pool_apart(const Geometry& d, const T* x, int64_t pitch, T* y, P* position) {
  for (int64_t oh = 0; oh < d.OH; ++oh)
    for (int64_t ow = 0; ow < d.OW; ow += kLanes<T>) {
      const int n = static_cast<int>(min_of<int64_t>(kLanes<T>, d.OW - ow));
      const T* window = x + oh * d.SH * pitch + ow * d.SW;
      Best<T> best{load_strided<T>(window, d.SW, n), {}};
      for (int64_t kh = 0; kh < d.KH; ++kh)
        for (int64_t kw = kh == 0 ? 1 : 0; kw < d.KW; ++kw)
          best.meet(load_strided<T>(window + kh * d.DH * pitch + kw * d.DW, d.SW, n), everywhere<T>(kh * d.KW + kw));
      store_n<T>(y + oh * d.OW + ow, best.value, n);
      store_position<T, P>(position + oh * d.OW + ow, best.at, n);
    }
}

// Windows that overlap or reach over the edge, in two steps: along each row of x once, then down its rows for every
// output row that meets them. The first of equal cells along a row, then the first of equal rows, is the first of the
// window, and the same holds for the last NaN. Rows are copied between cells of -inf, which never win: `at` starts at the
// first cell inside. From the first NaN of a plane on, comparisons look for more.
constexpr int64_t kRowsAhead = 4096;  // bytes from a row to the one that is asked for meanwhile
template <class T>
struct RowMaxima {
  const Geometry& d;
  int64_t width, kept;  // output columns in whole vectors; rows of x that one output row reaches over
  T *line, *first, *rows;  // a padded row; the first kw inside for each output column; [kept][value, at][width]

  explicit RowMaxima(const Geometry& geometry)
      : d(geometry), width(ceil_div(d.OW, kLanes<T>) * kLanes<T>), kept((d.KH - 1) * d.DH + 1) {
    const int64_t cells = max_of(d.PW + d.W, width * d.SW + (d.KW - 1) * d.DW) + 2 * kLanes<T>;
    line = scratch<T>(Slot::rows, cells + width * (1 + 2 * kept));
    first = line + cells;
    rows = first + width;
    for (int64_t i = 0; i < cells; ++i)
      if (i < d.PW || i >= d.PW + d.W) line[i] = kLowest<T>;
    for (int64_t ow = 0; ow < width; ow += kLanes<T>) {
      Mask<T> inside{};
      for (int i = 0; i < kLanes<T> && (ow + i) * d.SW < d.PW; ++i)
        inside[i] = min_of(d.KW - 1, ceil_div(d.PW - (ow + i) * d.SW, d.DW));
      store<T>(first + ow, (Vec<T>)inside);
    }
  }
  T* row(int64_t ih) const { return rows + ih % kept * 2 * width; }

  // Copies a row of x; whether it has no NaN.
  bool copy(const T* x) const {
    const int64_t W = d.W;
    T* const to = line + d.PW;
    Mask<T> nan{};
    prefetch_row(x + kRowsAhead / sizeof(T), W);
    for_vectors<T>(W, [&](int64_t i, int n) {
      const Vec<T> v = load_some<T>(x + i, n);
      nan |= v != v;
      store_some<T>(to + i, v, n);
    });
    return !any<T>(nan);
  }

  // KW and SW known at compile time, or 0.
  template <int kKW, int kSW, bool kNumbers>
  void along(T* to) const {
    const int64_t KW = kKW ? kKW : d.KW, SW = kSW ? kSW : d.SW, DW = kKW ? 1 : d.DW;
    for (int64_t ow = 0; ow < width; ow += kLanes<T>) {
      const T* const from = line + ow * SW;
      const Mask<T> inside = (Mask<T>)load<T>(first + ow);
      Best<T> best;
      if constexpr (kKW == 3 && kSW == 2) {
        Vec<T> cell[3], none;
        even_odd<T>(load<T>(from), load<T>(from + kLanes<T>), cell[0], cell[1]);
        even_odd<T>(load<T>(from + 2), load<T>(from + 2 + kLanes<T>), cell[2], none);
        best = {cell[0], inside};  // lane 0 alone can lie before the row, and stays where it is
        for (int kw = 1; kw < 3; ++kw) best.template meet<kNumbers>(cell[kw], everywhere<T>(kw));
        best = {in_order(best.value), in_order(best.at)};
      } else {
        best = {load_strided<T>(from, SW, kLanes<T>), inside};
        for (int64_t kw = 1; kw < KW; ++kw)
          best.template meet<kNumbers>(load_strided<T>(from + kw * DW, SW, kLanes<T>), everywhere<T>(kw));
      }
      store<T>(to + ow, best.value);
      store<T>(to + width + ow, (Vec<T>)best.at);
    }
  }

  template <class P, bool kNumbers>
  void down(int64_t oh, T* y, P* position) const {
    const Reach reach = row_reach(d, oh);
    const int64_t OW = d.OW, KW = d.KW, DH = d.DH;
    const int64_t top = (oh * d.SH - d.PH + reach.begin * DH) % kept;  // divided once: in the loops it would take most of the time
    for (int64_t ow = 0; ow < OW; ow += kLanes<T>) {
      const int n = static_cast<int>(min_of<int64_t>(kLanes<T>, OW - ow));
      Best<T> best{splat<T>(kLowest<T>), {}};
      int64_t ih = top;
      for (int64_t kh = reach.begin; kh < reach.end; ++kh) {
        const T* from = rows + ih * 2 * width + ow;
        const Mask<T> at = (Mask<T>)load<T>(from + width) + static_cast<int>(kh * KW);
        if (kh == reach.begin) best = {load<T>(from), at};
        else best.template meet<kNumbers>(load<T>(from), at);
        ih = ih + DH < kept ? ih + DH : ih + DH - kept;
      }
      store_some<T>(y + ow, best.value, n);
      store_position<T, P>(position + ow, best.at, n);
    }
  }

  template <class P, int kKW, int kSW>
  void plane(const T* x, int64_t pitch, T* y, P* position) const {
    int64_t next = 0;  // rows of x before it are done, or met by no window
    bool numbers = true;  // so far
    for (int64_t oh = 0; oh < d.OH; ++oh) {
      const int64_t top = oh * d.SH - d.PH;
      next = max_of(next, top);
      for (const int64_t end = min_of(d.H, top + kept); next < end; ++next) {
        numbers = copy(x + next * pitch) && numbers;
        if (numbers) along<kKW, kSW, true>(row(next));
        else along<kKW, kSW, false>(row(next));
      }
      if (numbers) down<P, true>(oh, y + oh * d.OW, position + oh * d.OW);
      else down<P, false>(oh, y + oh * d.OW, position + oh * d.OW);
    }
  }
};

// x: H rows of W cells, `pitch` apart. y, position: OH x OW, dense.
template <class T, class P>
void pool_plane(const Geometry& d, const T* x, int64_t pitch, T* y, P* position) {
  if (side_by_side(d)) return pool_pairs<T, P>(d, x, pitch, y, position);
  const Inner rows = inner_rows(d), columns = inner_columns(d);
  const bool inside = d.PH == 0 && d.PW == 0 && rows.end == d.OH && columns.end == d.OW;
  if (inside && d.SH > (d.KH - 1) * d.DH) return pool_apart<T, P>(d, x, pitch, y, position);
  const RowMaxima<T> maxima(d);
  if (d.KW == 3 && d.DW == 1 && d.SW == 1) maxima.template plane<P, 3, 1>(x, pitch, y, position);
  else if (d.KW == 3 && d.DW == 1 && d.SW == 2) maxima.template plane<P, 3, 2>(x, pitch, y, position);
  else maxima.template plane<P, 0, 0>(x, pitch, y, position);
}

// dx[cell at position] += g, or where `y` is given (ReLU before or after the pool: the same) only where !(y <= 0).
// dx: H x W dense, overwritten.
template <class T, class P>
void unpool_plane(const Geometry& d, const T* g, const T* y, const P* position, T* dx) {
  if (covered_by_pairs(d)) return unpool_pairs<T, P>(d.OH, d.OW, g, y, position, dx);
  std::memset(dx, 0, sizeof(T) * d.H * d.W);
  if (sizeof(P) == 1 && d.DH == 1 && d.DW == 1) {  // every window meets a cell; where it is, is looked up instead of divided out
    int64_t offset[256] = {};
    for (int64_t k = 0; k < d.KH * d.KW; ++k) offset[k] = k / d.KW * d.W + k % d.KW;
    const int64_t OW = d.OW, SW = d.SW;
    const uint64_t cells = d.H * d.W;
    for (int64_t oh = 0, o = 0; oh < d.OH; ++oh)
      for (int64_t ow = 0, first = (oh * d.SH - d.PH) * d.W - d.PW; ow < OW; ++ow, ++o, first += SW) {
        const T v = y && y[o] <= T(0) ? T(0) : g[o];
        const uint64_t cell = first + offset[position[o]];
        if (cell < cells) dx[cell] += v;  // as pool_plane gives them, all are
      }
    return;
  }
  for (int64_t oh = 0; oh < d.OH; ++oh)
    for (int64_t ow = 0; ow < d.OW; ++ow) {
      const int64_t o = oh * d.OW + ow, at = position[o];
      const int64_t row = oh * d.SH - d.PH + at / d.KW * d.DH, column = ow * d.SW - d.PW + at % d.KW * d.DW;
      if ((y && y[o] <= T(0)) || row < 0 || row >= d.H || column < 0 || column >= d.W) continue;  // outside: no cell met
      dx[row * d.W + column] += g[o];
    }
}

}  // namespace ts::TS_ISA
