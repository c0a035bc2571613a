// Max pooling of channels-last images [N, H, W, C], and its transpose: lanes are channels, so that nothing is gathered
// for any stride or dilation. Where C fills a vector, the last one overlaps the one before instead of being partial.
#pragma once

#include "pool.h"

namespace ts::TS_ISA {

// A body that is inlined where it is called, so that `lanes` is a constant wherever vectors are whole.
#define TS_LAMBDA __attribute__((always_inline))

// Vectors that are computed together: a comparison takes 3 cycles and two blends wait for it, so four chains keep the ports
// busy; their 4 x 2 vectors fit 16 registers. What the loops around cost is shared as well.
constexpr int kTogether = 4;

// Those vectors are neighbours: in channels where C holds so many, else in columns (`step` apart).
template <class T>
TS_INLINE bool many_channels(int64_t C) {
  return C >= kTogether * kLanes<T>;
}

// body(c, lanes) covers channels [0, C), `width` at a time or all C below a vector; some channels twice, so that it must
// not add to memory.
template <class T, class F>
TS_INLINE void for_channels(int64_t C, int64_t width, const F& body) {
  if (C < kLanes<T>) return body(int64_t{0}, static_cast<int>(C));
  for (int64_t c = 0; c < C; c += width) body(min_of(c, C - width), kLanes<T>);
}

// A row of output cells, in blocks that the image names: kColumns side by side where their windows lie inside, before or
// after vectors of channels.
template <class T, class Image>
void window_row(const Image& image, int64_t oh) {
  const Geometry& d = image.d;
  const Reach rows = row_reach(d, oh);
  const Inner inner = inner_columns(d);
  const bool channels = many_channels<T>(image.C);
  for (int64_t ow = 0; ow < d.OW;) {
    const Reach columns = column_reach(d, ow);
    const int64_t inside = ow >= inner.begin ? inner.end - ow : 0;
    if (inside >= Image::kColumns && !(channels && Image::kChannelsFirst)) {
      image.template cells<Image::kColumns, false>(oh, ow, rows, columns);
      ow += Image::kColumns;
    } else if (channels) {
      image.template cells<kTogether, true>(oh, ow++, rows, columns);
    } else if (inside >= kTogether) {
      image.template cells<kTogether, false>(oh, ow, rows, columns);
      ow += kTogether;
    } else {
      image.template cells<1, false>(oh, ow++, rows, columns);
    }
  }
}

template <class T, class P>
struct PoolLast {
  static constexpr int kColumns = kTogether;
  static constexpr bool kChannelsFirst = true;  // nothing is shared between columns
  const Geometry& d;
  int64_t C;
  const T* x;  // an image
  T* y;
  P* position;

  // V output cells from (oh, ow) on, or V vectors of channels of one, whose windows meet the cells rows x columns.
  template <int V, bool kChannels>
  TS_INLINE void cells(int64_t oh, int64_t ow, const Reach& rows, const Reach& columns) const {
    const int64_t o = (oh * d.OW + ow) * C;
    const int64_t x_step = kChannels ? kLanes<T> : d.SW * C, y_step = kChannels ? kLanes<T> : C;
    const int64_t window = ((oh * d.SH - d.PH) * d.W + ow * d.SW - d.PW) * C;
    const bool none = rows.begin == rows.end || columns.begin == columns.end;
    for_channels<T>(C, kChannels ? V * kLanes<T> : kLanes<T>, [&](int64_t c, int n) TS_LAMBDA {
      Best<T> best[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        best[v] = {splat<T>(kLowest<T>), everywhere<T>(none ? 0 : rows.begin * d.KW + columns.begin)};
      for (int64_t kh = rows.begin; kh < rows.end; ++kh)
        for (int64_t kw = columns.begin; kw < columns.end; ++kw) {
          const T* from = x + window + (kh * d.DH * d.W + kw * d.DW) * C + c;
          const Mask<T> at = everywhere<T>(kh * d.KW + kw);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) best[v].meet(load_some<T>(from + v * x_step, n), at);
        }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        store_some<T>(y + o + v * y_step + c, best[v].value, n);
        store_position<T, P>(position + o + v * y_step + c, best[v].at, n);
      }
    });
  }
};

template <class T, class P>
void pool_last(const Geometry& d, int64_t N, int64_t C, const T* x, T* y, P* position) {
  const int64_t work = d.OW * d.KH * d.KW * C, out = d.OH * d.OW * C;
  parallel(N * d.OH, ceil_div(kParallelWork, work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / d.OH;
      window_row<T>(PoolLast<T, P>{d, C, x + n * d.H * d.W * C, y + n * out, position + n * out}, i % d.OH);
    }
  });
}

// The windows that meet an input cell, in one dimension: output cell o by its window cell k.
struct Meeting {
  int32_t o, k;
};
struct Meetings {
  int64_t* first;  // of input cell i: list[first[i]] to list[first[i + 1]]
  Meeting* list;
  Meetings(int64_t in, int64_t out, int64_t K, int64_t S, int64_t P, int64_t D, Slot slot) {
    first = scratch<int64_t>(slot, in + 1 + out * K);
    list = reinterpret_cast<Meeting*>(first + in + 1);  // as large as an int64_t
    int64_t count = 0;
    for (int64_t i = 0; i < in; ++i) {
      first[i] = count;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t from = i + P - k * D;
        if (from >= 0 && from % S == 0 && from / S < out)
          list[count++] = {static_cast<int32_t>(from / S), static_cast<int32_t>(k)};
      }
    }
    first[in] = count;
  }
  const Meeting* begin(int64_t i) const { return list + first[i]; }
  const Meeting* end(int64_t i) const { return list + first[i + 1]; }
  // Whether the same window cells meet both.
  bool alike(int64_t i, int64_t other) const {
    return end(i) - begin(i) == end(other) - begin(other) && (begin(i) == end(i) || begin(i)->k == begin(other)->k);
  }
};
TS_INLINE Meetings row_meetings(const Geometry& d, Slot slot) { return {d.H, d.OH, d.KH, d.SH, d.PH, d.DH, slot}; }
TS_INLINE Meetings column_meetings(const Geometry& d, Slot slot) { return {d.W, d.OW, d.KW, d.SW, d.PW, d.DW, slot}; }

// A row of cells of dx: columns of one phase that the same window cells meet are taken together.
template <class T, class Image>
void gather_row(const Image& image, int64_t ih) {
  const Geometry& d = image.d;
  const bool channels = many_channels<T>(image.C);
  for (int64_t phase = 0; phase < min_of(d.SW, d.W); ++phase)
    for (int64_t iw = phase; iw < d.W;) {
      const auto together = [&](int64_t count) {
        const int64_t last = iw + (count - 1) * d.SW;
        return last < d.W && image.columns.alike(iw, last);
      };
      int64_t count = 1;
      if (!(channels && Image::kChannelsFirst) && together(Image::kColumns)) {
        image.template cells<Image::kColumns, false>(ih, iw);
        count = Image::kColumns;
      } else if (channels) {
        image.template cells<kTogether, true>(ih, iw);
      } else if (together(kTogether)) {
        image.template cells<kTogether, false>(ih, iw);
        count = kTogether;
      } else if (together(2)) {
        image.template cells<2, false>(ih, iw);
        count = 2;
      } else {
        image.template cells<1, false>(ih, iw);
      }
      iw += count * d.SW;
    }
}

// dx[cell] = sum of g over the windows that meet it and whose maximum it is: every cell is written once, by one thread.
template <class T, class P>
struct GatherLast {
  static constexpr int kColumns = kTogether;
  static constexpr bool kChannelsFirst = true;
  const Geometry& d;
  int64_t C;
  const T* g;  // an image
  const P* position;
  T* dx;
  const Meetings &rows, &columns;

  // Cells iw, iw + SW, …, each of which meets the windows of the one before moved by one; or vectors of channels of one.
  template <int V, bool kChannels>
  TS_INLINE void cells(int64_t ih, int64_t iw) const {
    const int64_t g_step = kChannels ? kLanes<T> : C, dx_step = kChannels ? kLanes<T> : d.SW * C;
    for_channels<T>(C, kChannels ? V * kLanes<T> : kLanes<T>, [&](int64_t c, int lanes) TS_LAMBDA {
      Vec<T> sum[V] = {};
      for (const Meeting* r = rows.begin(ih); r != rows.end(ih); ++r)
        for (const Meeting* m = columns.begin(iw); m != columns.end(iw); ++m) {
          const int64_t o = (r->o * d.OW + m->o) * C + c;
          const Mask<T> at = everywhere<T>(r->k * d.KW + m->k);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const Mask<T> here = load_position<T, P>(position + o + v * g_step, lanes) == at;
            sum[v] += here ? load_some<T>(g + o + v * g_step, lanes) : Vec<T>{};
          }
        }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store_some<T>(dx + (ih * d.W + iw) * C + v * dx_step + c, sum[v], lanes);
    });
  }
};

template <class T, class P>
void gather_last(const Geometry& d, int64_t N, int64_t C, const T* g, const P* position, T* dx) {
  const Meetings rows = row_meetings(d, Slot::cells), columns = column_meetings(d, Slot::rows);
  const int64_t out = d.OH * d.OW * C, work = d.W * C * ceil_div(d.KH * d.KW, d.SH * d.SW);
  parallel(N * d.H, ceil_div(kParallelWork, work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / d.H;
      gather_row<T>(GatherLast<T, P>{d, C, g + n * out, position + n * out, dx + n * d.H * d.W * C, rows, columns}, i % d.H);
    }
  });
}

// The same cell by cell, for windows so large that looking at each of their cells costs more.
template <class T, class P>
void scatter_last(const Geometry& d, int64_t N, int64_t C, const T* g, const P* position, T* dx) {
  const int64_t out = d.OH * d.OW * C, image = d.H * d.W * C;
  parallel(N, ceil_div(kParallelWork, out), [&](int64_t begin, int64_t end) {
    std::memset(dx + begin * image, 0, sizeof(T) * (end - begin) * image);
    for (int64_t n = begin; n < end; ++n)
      for (int64_t o = 0; o < out; ++o) {
        const int64_t cell = o / C, at = position[n * out + o];
        const int64_t row = cell / d.OW * d.SH - d.PH + at / d.KW * d.DH, column = cell % d.OW * d.SW - d.PW + at % d.KW * d.DW;
        if (row < 0 || row >= d.H || column < 0 || column >= d.W) continue;  // the window met no cell
        dx[n * image + (row * d.W + column) * C + o % C] += g[n * out + o];
      }
  });
}

// The same for 2x2 windows that cover the image: each output cell has four cells of its own.
template <class T, class P>
void unpool_last_pairs(const Geometry& d, int64_t N, int64_t C, const T* g, const P* position, T* dx) {
  parallel(N * d.OH, ceil_div(kParallelWork, 4 * d.OW * C), [&](int64_t begin, int64_t end) {
    const int64_t OW = d.OW, W = d.W;
    for (int64_t row = begin; row < end; ++row)
      for (int64_t ow = 0; ow < OW; ++ow) {
        const int64_t o = (row * OW + ow) * C;
        T* const to = dx + (2 * row * W + 2 * ow) * C;
        for_channels<T>(C, kLanes<T>, [&](int64_t c, int lanes) TS_LAMBDA {
          const Vec<T> v = load_some<T>(g + o + c, lanes), zero{};
          const Mask<T> at = load_position<T, P>(position + o + c, lanes);
          for (int k = 0; k < 4; ++k) store_some<T>(to + (k / 2 * W + k % 2) * C + c, at == k ? v : zero, lanes);
        });
      }
  });
}

// Four instructions for each window cell of a vector against about 16 for the divisions of an element.
template <class T, class P>
void unpool_last(const Geometry& d, int64_t N, int64_t C, const T* g, const P* position, T* dx) {
  if (covered_by_pairs(d)) unpool_last_pairs<T, P>(d, N, C, g, position, dx);
  else if (d.KH * d.KW <= 4 * kLanes<T>) gather_last<T, P>(d, N, C, g, position, dx);
  else scatter_last<T, P>(d, N, C, g, position, dx);
}

}  // namespace ts::TS_ISA
