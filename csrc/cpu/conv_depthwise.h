// Depthwise convolution of planes: each output channel reads one input channel, so there is no sum over channels to share
// loads between. A plane is copied once between zeros, its columns split by (column mod SW), so that for any stride, dilation
// and padding window cell t of the output cells j, j + 1, … of a row is a plain vector load at offset[t] + j; lanes are output
// columns. The data gradient is the same sum over g and, for strides, over the phases of conv_phases.h.
// K / C output channels read the same input channel: d.C == d.G, see conv2d::depthwise. Where rows keep their length nothing is
// copied: conv_depthwise_lines.h.
#pragma once

#include "conv_phases.h"
#include "conv_weights.h"
#include "lanes.h"

namespace ts::TS_ISA {

using conv2d::Dims;

// Row r, column phase b, index q of the copy is source cell (r - top, q * S + b - left); zeros where there is none.
struct Padded {
  int64_t H, W, top, left, S, rows, columns;  // source, zeros before it, column phases; rows and columns of a phase
  int64_t pitch() const { return S * columns; }
  int64_t size() const { return rows * pitch(); }
  int64_t at(int64_t row, int64_t column) const { return row * pitch() + column % S * columns + column / S; }
};

// The zeros of the copy are written once, by clear_padded: every source of a call has the same cells.
template <class T>
void clear_padded(T* to, int64_t count) {
  std::memset(to, 0, sizeof(T) * count);
}
// One column phase of a copy: so many cells, source columns `first`, first + S, …, from index `begin` on.
struct CopiedPhase {
  int64_t begin, first, count;
  CopiedPhase(const Padded& e, int64_t b) {
    begin = e.left > b ? ceil_div(e.left - b, e.S) : 0;
    first = begin * e.S + b - e.left;
    count = max_of<int64_t>(0, min_of(e.columns, ceil_div(max_of<int64_t>(0, e.W + e.left - b), e.S)) - begin);
  }
};
// Both phases of S = 2 at once: what the source gives is read once.
template <class T>
void fill_even_odd(T* to, const T* plane, const Padded& e, int64_t rows) {
  constexpr int L = kLanes<T>;
  const CopiedPhase phase[2] = {{e, 0}, {e, 1}};
  const int odd = phase[0].first == 0 ? 1 : 0;  // the phase of the odd columns
  const CopiedPhase &evens = phase[1 - odd], &odds = phase[odd];
  const int64_t W = e.W, pitch = e.pitch();
  T *even = to + e.top * pitch + (1 - odd) * e.columns + evens.begin, *uneven = to + e.top * pitch + odd * e.columns + odds.begin;
  const auto part = [](int64_t cells) { return static_cast<int>(max_of<int64_t>(0, min_of<int64_t>(L, cells))); };
  for (int64_t r = 0; r < rows; ++r, plane += W, even += pitch, uneven += pitch)
    for (int64_t i = 0; i < evens.count; i += L) {  // never less than the odd ones
      Vec<T> a, b;
      even_odd<T>(load_some<T>(plane + 2 * i, part(W - 2 * i)), load_some<T>(plane + 2 * i + L, part(W - 2 * i - L)), a, b);
      store_some<T>(even + i, in_order(a), part(evens.count - i));
      store_some<T>(uneven + i, in_order(b), part(odds.count - i));
    }
}
// `next` elements behind it lies the plane that comes next; 0: none.
template <class T>
void fill_padded(T* to, const T* plane, const Padded& e, int64_t next = 0) {
  const int64_t last = min_of(e.H, e.rows - e.top);
  if (next)
    for (int64_t r = 0; r < last; ++r) prefetch_row(plane + next + r * e.W, e.W);
  if (e.S == 2) return fill_even_odd<T>(to, plane, e, last);
  for (int64_t b = 0; b < e.S; ++b) {
    const CopiedPhase phase(e, b);
    for (int64_t r = 0; r < last; ++r) {
      T* row = to + (r + e.top) * e.pitch() + b * e.columns + phase.begin;
      const T* from = plane + r * e.W + phase.first;
      for_vectors<T>(phase.count, [&](int64_t i, int n) { store_some<T>(row + i, load_strided<T>(from + i * e.S, e.S, n), n); });
    }
  }
}

// A sum over window cells for `rows` x `columns` output cells. e holds whole vectors beyond the last column.
template <class T>
struct Correlation {
  const T* e;
  int64_t row_step;       // of e from one output row to the next
  const int64_t* offset;  // [taps]
  const T* w;             // [taps]
  int64_t taps, rows, columns;
  T bias;
  bool relu;

  template <int R, int V>
  TS_INLINE void tile(int64_t r, int64_t j, T* y, int64_t pitch) const {
    constexpr int L = kLanes<T>;
    Vec<T> sum[R][V] = {};
    const T* from = e + r * row_step + j;
    for (int64_t t = 0; t < taps; ++t) {
      const Vec<T> weight = splat<T>(w[t]);
      const T* cells = from + offset[t];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[i][v] += weight * load<T>(cells + i * row_step + v * L);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64_t at = j + v * L;
        const Vec<T> out = sum[i][v] + splat<T>(bias);
        store_n<T>(y + (r + i) * pitch + at, relu ? ts::TS_ISA::relu<T>(out) : out, static_cast<int>(min_of<int64_t>(L, columns - at)));
      }
  }

  // The last block of rows overlaps the one before: what it computes again is the same.
  template <int R, int V>
  void panel(int64_t j, T* y, int64_t pitch) const {
    if (rows < R) {
      for (int64_t r = 0; r < rows; ++r) tile<1, V>(r, j, y, pitch);
      return;
    }
    for (int64_t r = 0; r < rows; r += R) tile<R, V>(min_of(r, rows - R), j, y, pitch);
  }

  // Rows of one vector: up to eight at a time, in equal shares.
  template <int R = 8>
  void narrow(int64_t j, T* y, int64_t pitch) const {
    if constexpr (R > 1) {
      if (ceil_div(rows, ceil_div(rows, 8)) != R) return narrow<R - 1>(j, y, pitch);
    }
    panel<R, 1>(j, y, pitch);
  }

  // Four to eight sums at a time: an FMA takes four cycles, and 16 registers hold no more.
  void run(T* y, int64_t pitch) const {
    constexpr int L = kLanes<T>;
    for (int64_t j = 0; j < columns;) {
      const int64_t vectors = ceil_div(columns - j, L);
      if (vectors == 1) narrow(j, y, pitch);
      else if (vectors == 3) panel<2, 3>(j, y, pitch);
      else if (vectors == 2 || vectors == 5) panel<4, 2>(j, y, pitch);
      else panel<2, 4>(j, y, pitch);
      j += (vectors == 5 ? 2 : min_of<int64_t>(vectors, 4)) * L;
    }
  }
};

// Whole vectors of columns and the furthest window column, in cells of a phase.
template <class T>
TS_INLINE int64_t padded_columns(int64_t columns, int64_t reach) {
  return ceil_div(columns, kLanes<T>) * kLanes<T> + reach;
}

template <class T>
struct DepthwiseInput {  // x as forward and the weight gradient read it
  Padded e;
  explicit DepthwiseInput(const Dims& d)
      : e{d.H, d.W, d.PT, d.PL, d.SW, (d.OH - 1) * d.SH + (d.KH - 1) * d.DH + 1, padded_columns<T>(d.OW, (d.KW - 1) * d.DW / d.SW)} {}
  static void offsets(const Dims& d, const Padded& e, int64_t* at) {
    for (int64_t kh = 0; kh < d.KH; ++kh)
      for (int64_t kw = 0; kw < d.KW; ++kw) *at++ = e.at(kh * d.DH, kw * d.DW);
  }
};

TS_INLINE int64_t depthwise_grain(const Dims& d) {
  return ceil_div(kParallelWork, d.OH * d.OW * d.KH * d.KW);
}

template <class T>
void depthwise_forward(const conv2d::Forward<T>& p) {
  const Dims& d = p.d;
  const int64_t taps = d.KH * d.KW, multiple = d.K / d.C;
  const Padded e = DepthwiseInput<T>(d).e;
  int64_t* offset = scratch<int64_t>(Slot::cells, taps);
  DepthwiseInput<T>::offsets(d, e, offset);
  parallel(d.N * d.C, depthwise_grain(d), [&](int64_t begin, int64_t end) {
    T* x = scratch<T>(Slot::image, e.size());
    clear_padded<T>(x, e.size());
    for (int64_t plane = begin; plane < end; ++plane) {
      fill_padded<T>(x, p.x + plane * d.H * d.W, e, d.H * d.W);
      for (int64_t m = 0; m < multiple; ++m) {
        const int64_t k = plane % d.C * multiple + m;
        Correlation<T>{x, d.SH * e.pitch(), offset, p.w + k * taps, taps, d.OH, d.OW, p.bias ? p.bias[k] : T(0), d.relu}
            .run(p.y + (plane * multiple + m) * d.OH * d.OW, d.OW);
      }
    }
  });
}

// sums[t] += the sum of the lanes of sum[t].
template <class T, int R>
TS_INLINE void add_sum_each(const Vec<T> (&sum)[R], T* sums) {
  constexpr int L = kLanes<T>, kRounds = (R + L - 1) / L;
  Vec<T> spread[kRounds * L] = {};
#pragma GCC unroll 32
  for (int t = 0; t < R; ++t) spread[t] = sum[t];
  for (int first = 0; first < R; first += L) {
    Vec<T> part[L];
    std::memcpy(part, spread + first, sizeof part);
    const int n = min_of(L, R - first);
    store_n<T>(sums + first, load_n<T>(sums + first, n) + sum_each<T>(part), n);
  }
}

// sums[t] += sum over the cells of a plane of g * e[offset[t] + cell], R window cells at a time.
template <class T, int R>
void depthwise_taps(const Dims& d, const T* g, const T* e, int64_t row_step, const int64_t* offset, T* sums) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[R] = {};
  for (int64_t oh = 0; oh < d.OH; ++oh, g += d.OW, e += row_step) {
    int64_t j = 0;
    for (; j + L <= d.OW; j += L) {
      const Vec<T> v = load<T>(g + j);
#pragma GCC unroll 32
      for (int t = 0; t < R; ++t) sum[t] += v * load<T>(e + offset[t] + j);
    }
    if (j == d.OW) continue;
    const int n = static_cast<int>(d.OW - j);  // both sides by lanes: 0 times what lies behind a row could be NaN
    const Vec<T> v = load_n<T>(g + j, n);
#pragma GCC unroll 32
    for (int t = 0; t < R; ++t) sum[t] += v * load_n<T>(e + offset[t] + j, n);
  }
  add_sum_each<T, R>(sum, sums);
}

// Sums + g fill the registers: a 5 x 5 window in 32, a 3 x 3 one in 16.
#if defined(__AVX512F__)
constexpr int kDepthwiseTaps = 25;
#else
constexpr int kDepthwiseTaps = 9;
#endif
template <class T, int R = kDepthwiseTaps>
void depthwise_some_taps(int count, const Dims& d, const T* g, const T* e, int64_t row_step, const int64_t* offset, T* sums) {
  if constexpr (R > 0) {
    if (count == R) depthwise_taps<T, R>(d, g, e, row_step, offset, sums);
    else depthwise_some_taps<T, R - 1>(count, d, g, e, row_step, offset, sums);
  }
}

// dx of one plane: over the phases of its cells, from `multiple` padded planes of g.
template <class T>
struct DepthwiseData {
  const Dims& d;
  int64_t multiple;
  Padded e;

  explicit DepthwiseData(const Dims& dims) : d(dims), multiple(d.K / d.C), e{d.OH, d.OW, 0, 0, 1, 0, 0} {
    int64_t rows = 0, columns = 0;
    for (int64_t a = 0; a < min_of(d.SH, d.H); ++a) extend(row_phase(d, a), e.top, rows);
    for (int64_t b = 0; b < min_of(d.SW, d.W); ++b) extend(column_phase(d, b), e.left, columns);
    e.rows = max_of(rows + e.top, e.top + d.OH);
    e.columns = padded_columns<T>(max_of(columns, d.OW) + e.left, kLanes<T>);  // a phase may start at any column
  }
  static void extend(const Phase& phase, int64_t& before, int64_t& end) {
    if (phase.taps == 0) return;
    before = max_of(before, -phase.shift);
    end = max_of(end, phase.count + phase.shift + (phase.taps - 1) * phase.dilation);
  }

  // Of one phase: where its window cells lie, and their weights (flipped: tap taps - 1 comes first).
  int64_t window(const Phase& rows, const Phase& columns, const T* w, int64_t* at, T* weight) const {
    int64_t count = 0;
    for (int64_t m = 0; m < multiple; ++m)
      for (int64_t jh = 0; jh < rows.taps; ++jh)
        for (int64_t jw = 0; jw < columns.taps; ++jw, ++count) {
          const int64_t kh = rows.tap + (rows.taps - 1 - jh) * rows.step, kw = columns.tap + (columns.taps - 1 - jw) * columns.step;
          at[count] = m * e.size() + e.at(rows.shift + jh * rows.dilation + e.top, columns.shift + jw * columns.dilation + e.left);
          weight[count] = w[(m * d.KH + kh) * d.KW + kw];
        }
    return count;
  }

  // g: the padded planes. w: [multiple, KH, KW].
  void plane(const T* g, const T* w, T* dx) const {
    const int64_t most = multiple * d.KH * d.KW, most_rows = ceil_div(d.H, d.SH);
    int64_t* at = scratch<int64_t>(Slot::batch, most);
    T* weight = scratch<T>(Slot::transposed, most);
    const bool whole = d.SH == 1 && d.SW == 1;
    T* parts = whole ? dx : scratch<T>(Slot::pixels, most_rows * d.W);
    const T** row = scratch<const T*>(Slot::rows, d.SW);
    for (int64_t a = 0; a < min_of(d.SH, d.H); ++a) {
      const Phase rows = row_phase(d, a);
      T* to = parts;
      for (int64_t b = 0; b < d.SW; ++b) {
        row[b] = nullptr;
        if (b >= d.W) continue;
        const Phase columns = column_phase(d, b);
        const int64_t taps = window(rows, columns, w, at, weight);
        if (taps > 0) {
          Correlation<T>{g, e.pitch(), at, weight, taps, rows.count, columns.count, T(0), false}.run(to, columns.count);
          row[b] = to;
          to += rows.count * columns.count;
        }
      }
      if (whole) return;
      for (int64_t r = 0; r < rows.count; ++r) {
        interleave<T>(dx + (a + r * d.SH) * d.W, row, d.SW, d.W);
        for (int64_t b = 0; b < min_of(d.SW, d.W); ++b) row[b] += row[b] ? ceil_div(d.W - b, d.SW) : 0;
      }
    }
  }
};

// The gradient of output plane `plane`, where relu let it pass.
template <class T>
const T* depthwise_gradient(const conv2d::Backward<T>& p, int64_t plane) {
  const int64_t cells = p.d.OH * p.d.OW;
  const T* g = p.g + plane * cells;
  if (!p.d.relu) return g;
  T* masked = scratch<T>(Slot::gradient, cells);
  for_vectors<T>(cells, [&](int64_t i, int n) {
    store_some<T>(masked + i, relu_gradient<T>(load_some<T>(g + i, n), load_some<T>(p.y + plane * cells + i, n)), n);
  });
  return masked;
}

template <class T>
TS_INLINE T sum_plane(const T* plane, int64_t cells) {
  Vec<T> sum[2] = {};
  for_vectors<T>(cells, [&](int64_t i, int k) { sum[i / kLanes<T> % 2] += load_some<T>(plane + i, k); });
  return sum_lanes<T>(sum[0] + sum[1]);
}

// All gradients of one input channel, images in order: what a channel adds up belongs to one thread.
template <class T>
void depthwise_channel(const conv2d::Backward<T>& p, const DepthwiseData<T>& data, const Padded& e, const int64_t* offset, int64_t c,
                       T* x, T* g) {
  const Dims& d = p.d;
  const int64_t taps = d.KH * d.KW, multiple = data.multiple, chunks = ceil_div(taps, kDepthwiseTaps), chunk = ceil_div(taps, chunks);
  T* dw = p.dw ? p.dw + c * multiple * taps : nullptr;
  T* db = p.db ? p.db + c * multiple : nullptr;
  for (int64_t i = 0; i < multiple * taps && dw; ++i) dw[i] = T(0);
  for (int64_t i = 0; i < multiple && db; ++i) db[i] = T(0);
  for (int64_t n = 0; n < d.N; ++n) {
    if (dw) fill_padded<T>(x, p.x + (n * d.C + c) * d.H * d.W, e, d.C * d.H * d.W);
    for (int64_t m = 0; m < multiple; ++m) {
      const T* plane = depthwise_gradient<T>(p, (n * d.C + c) * multiple + m);
      for (int64_t t = 0; t < taps && dw; t += chunk)
        depthwise_some_taps<T>(static_cast<int>(min_of(chunk, taps - t)), d, plane, x, d.SH * e.pitch(), offset + t, dw + m * taps + t);
      if (db) db[m] += sum_plane<T>(plane, d.OH * d.OW);
      if (p.dx) fill_padded<T>(g + m * data.e.size(), plane, data.e);
    }
    if (p.dx) data.plane(g, p.w + c * multiple * taps, p.dx + (n * d.C + c) * d.H * d.W);
  }
}

template <class T>
void depthwise_backward(const conv2d::Backward<T>& p) {
  const Dims& d = p.d;
  const Padded e = DepthwiseInput<T>(d).e;
  const DepthwiseData<T> data(d);
  int64_t* offset = scratch<int64_t>(Slot::cells, d.KH * d.KW);
  DepthwiseInput<T>::offsets(d, e, offset);
  parallel(d.C, ceil_div(depthwise_grain(d), max_of<int64_t>(1, d.N)), [&](int64_t begin, int64_t end) {
    const int64_t g_size = data.multiple * data.e.size();
    T* x = scratch<T>(Slot::image, e.size());
    T* g = scratch<T>(Slot::partial, g_size);
    clear_padded<T>(x, e.size());
    clear_padded<T>(g, g_size);
    for (int64_t c = begin; c < end; ++c) depthwise_channel<T>(p, data, e, offset, c, x, g);
  });
}

}  // namespace ts::TS_ISA
