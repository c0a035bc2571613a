// The data gradient of a convolution as S_H * S_W convolutions of stride 1, without a multiplication by an inserted zero.
//
// Along one dimension dx[i] = sum over k of w[k] * g[(i + P - k * D) / S], for the k that divide. Cells i = a, a + S, … all
// meet the same window cells k = tap, tap + step, …: a convolution of g with that part of the window, flipped, whose results
// go to every S-th cell of dx. The window is ordered (kh, k, kw), so that rows of it in the padding can be left out;
// where images are read in lines (k, kh, kw), so that it meets a plane at a time.
#pragma once

#include "../contract/conv2d.h"
#include "conv_image.h"

namespace ts::TS_ISA {

// The cells a, a + S, … of a dimension of dx.
struct Phase {
  int64_t count;            // cells
  int64_t taps, tap, step;  // window cells tap + j * step, j < taps
  int64_t dilation, shift;  // cell q meets g[q + shift + j * dilation] through the window's tap taps - 1 - j
  Phase(int64_t a, int64_t in, int64_t K, int64_t S, int64_t P, int64_t D)
      : count(a < in ? ceil_div(in - a, S) : 0), taps(0), tap(0), step(1), dilation(1), shift(0) {
    const int64_t rest = (a + P) % S;
    int64_t last = 0;
    for (int64_t k = 0; k < K; ++k) {
      if (k * D % S != rest) continue;
      if (taps == 0) tap = k;
      if (taps == 1) step = k - tap, dilation = step * D / S;
      last = k;
      ++taps;
    }
    shift = (a + P - last * D) / S;  // divides where there are taps
  }
};
TS_INLINE Phase row_phase(const conv2d::Dims& d, int64_t a) { return {a, d.H, d.KH, d.SH, d.PT, d.DH}; }
TS_INLINE Phase column_phase(const conv2d::Dims& d, int64_t b) { return {b, d.W, d.KW, d.SW, d.PL, d.DW}; }

// to[i] = from[i % S][i / S], null rows being zeros.
template <class T>
void interleave(T* to, const T* const* from, int64_t S, int64_t count) {
  constexpr int L = kLanes<T>;
  if (S == 2) {
    for (int64_t i = 0; i < count; i += 2 * L) {
      const int cells = static_cast<int>(min_of<int64_t>(2 * L, count - i)), odd = cells / 2;
      const Vec<T> a = from[0] ? load_n<T>(from[0] + i / 2, cells - odd) : Vec<T>{};
      const Vec<T> b = from[1] ? load_n<T>(from[1] + i / 2, odd) : Vec<T>{};
      store_n<T>(to + i, zip_low<T>(a, b), min_of(cells, L));
      store_n<T>(to + i + L, zip_high<T>(a, b), max_of(cells - L, 0));
    }
    return;
  }
  for (int64_t b = 0; b < S; ++b)
    for (int64_t i = b, q = 0; i < count; i += S, ++q) to[i] = from[b] ? from[b][q] : T(0);
}

// What all images share: the parts of the window, packed, and where their cells lie. Made by one thread, used by all.
template <class T>
struct DataGradient {
  const conv2d::Dims& d;
  int64_t Cg, Kg, planes;  // planes of lanes: Kg, or with pairs of channels half as many
  Lane<T>* packed;         // [SH][SW] parts of [G][Cg][window], in panels
  int64_t* offset;         // [SH][SW] parts of [window], each followed by its taps (RightLines)

  // Of a part of the window, of one group: its tiles on a matrix unit; lanes of its packed weights.
  static UnitTiles tiles_of(const conv2d::Dims& d, const Phase& columns) {
    return unit_tiles<T>(d.C / d.G, lanes_of<T>(d.K / d.G) * columns.taps);
  }
  static int64_t size(const conv2d::Dims& d, const Phase& rows, const Phase& columns) {
    const UnitTiles unit = tiles_of(d, columns);
    return unit.rows ? unit_weights(unit, d.C / d.G, rows.taps) : d.C / d.G * lanes_of<T>(d.K / d.G) * rows.taps * columns.taps;
  }
  static int64_t size(const conv2d::Dims& d) {  // of `packed`
    int64_t all = 0;
    for (int64_t a = 0; a < min_of(d.SH, d.H); ++a)
      for (int64_t b = 0; b < min_of(d.SW, d.W); ++b) all += d.G * size(d, row_phase(d, a), column_phase(d, b));
    return all;
  }

  // w: [K, Cg, KH, KW]. `offset` has room for 2 * planes * KH * KW.
  DataGradient(const conv2d::Dims& dims, const T* w, Lane<T>* packed_to, int64_t* offset_to)
      : d(dims), Cg(d.C / d.G), Kg(d.K / d.G), planes(lanes_of<T>(Kg)), packed(packed_to), offset(offset_to) {
    each_phase([&](const Phase& rows, const Phase& columns, int64_t, Lane<T>* to, int64_t* at) {
      pack(w, rows, columns, to);
      const Expansion whole = expansion(rows, columns), e = whole.band(0, band_rows<Lane<T>>(whole));
      if (lined(whole)) return RightLines<T>::offsets(whole, at, planes);
      if (const UnitTiles unit = tiles_of(d, columns); unit.rows) return unit_offsets(at, unit, e);
      for (int64_t kh = 0; kh < e.KH; ++kh)
        for (int64_t k = 0; k < planes; ++k)
          for (int64_t kw = 0; kw < e.KW; ++kw) *at++ = e.offset(k, kh, kw);
    });
  }

  bool lined(const Expansion& e) const { return copies_cells<T>(Cg) && RightLines<T>::serves(e); }

  Expansion expansion(const Phase& rows, const Phase& columns) const {
    return {d.G * planes, d.OH, d.OW, -rows.shift, -columns.shift, rows.taps, columns.taps, rows.dilation,
            columns.dilation, 1, 1, rows.count, columns.count};
  }

  // f(rows, columns, column phase, its packed weights, its offsets), where these begin; moves on to those of the next a.
  template <class F>
  void each_column_phase(int64_t a, Lane<T>*& to, int64_t*& at, const F& f) const {
    const Phase rows = row_phase(d, a);
    for (int64_t b = 0; b < min_of(d.SW, d.W); ++b) {
      const Phase columns = column_phase(d, b);
      f(rows, columns, b, to, at);
      to += d.G * size(d, rows, columns);
      at += 2 * planes * rows.taps * columns.taps;
    }
  }
  template <class F>
  void each_phase(const F& f) const {
    Lane<T>* to = packed;
    int64_t* at = offset;
    for (int64_t a = 0; a < min_of(d.SH, d.H); ++a) each_column_phase(a, to, at, f);
  }

  // The part of output channel k's window for R input channels from c on (w: of the first), to its place in their panel.
  template <int R>
  void pack_channel(int64_t k, const T* w, const Phase& rows, const Phase& columns, bool by_plane, T* panel) const {
    for (int64_t jh = 0; jh < rows.taps; ++jh) {
      const T* from = w + (rows.tap + (rows.taps - 1 - jh) * rows.step) * d.KW + columns.tap + (columns.taps - 1) * columns.step;
      T* cell = panel + (by_plane ? k * rows.taps + jh : jh * Kg + k) * columns.taps * R;
      for (int64_t jw = 0; jw < columns.taps; ++jw, from -= columns.step, cell += R)
        for (int i = 0; i < R; ++i) cell[i] = from[i * d.KH * d.KW];
    }
  }
  template <int R = kRows>
  void pack_channel(int count, int64_t k, const T* w, const Phase& rows, const Phase& columns, bool by_plane, T* panel) const {
    if constexpr (R > 0) {
      if (count == R) pack_channel<R>(k, w, rows, columns, by_plane, panel);
      else pack_channel<R - 1>(count, k, w, rows, columns, by_plane, panel);
    }
  }

  void pack(const T* w, const Phase& rows, const Phase& columns, Lane<T>* to) const {
    const int64_t elements = Kg * rows.taps * columns.taps, depth = planes * rows.taps * columns.taps;
    if constexpr (kPair<T> == 1) {
      const bool by_plane = lined(expansion(rows, columns));
      const int64_t panel = panel_rows(Cg);
      for (int64_t g = 0; g < d.G; ++g)
        for (int64_t k = 0; k < Kg; ++k)  // w is read in its order
          for (int64_t c = 0; c < Cg; c += panel)
            pack_channel(static_cast<int>(min_of(panel, Cg - c)), k, w + ((g * Kg + k) * Cg + c) * d.KH * d.KW, rows, columns, by_plane,
                         to + (g * Cg + c) * depth);
      return;
    }
    T* part = scratch<T>(Slot::batch, Cg * elements);
    for (int64_t g = 0; g < d.G; ++g) {
      Lane<T>* const of_group = to + g * size(d, rows, columns);
      [[maybe_unused]] const UnitTiles unit = tiles_of(d, columns);
      if constexpr (kUnit<T>)
        if (unit.rows && depth > 0 && d.KH * d.KW == 1) {
          pack_turned_weights(of_group, unit, w + g * Kg * Cg, Cg, Kg);
          continue;
        }
      for (int64_t c = 0; c < Cg; ++c) {
        T* cell = part + c * elements;
        for (int64_t jh = rows.taps - 1; jh >= 0; --jh)
          for (int64_t k = 0; k < Kg; ++k) {
            const T* from = w + (((g * Kg + k) * Cg + c) * d.KH + rows.tap + jh * rows.step) * d.KW + columns.tap;
            for (int64_t jw = columns.taps - 1; jw >= 0; --jw) *cell++ = from[jw * columns.step];
          }
      }
      if (depth == 0) continue;
      const Lane<T>* lanes = lane_planes<T>(part, Cg * rows.taps, Kg, columns.taps, Slot::planes);
      if constexpr (kUnit<T>)
        if (unit.rows) {
          pack_tiles(of_group, unit, lanes, Cg, rows.taps);
          continue;
        }
      pack_lanes<T>(of_group, Cg, depth, lanes);
    }
  }

  // g: as planes of lanes. Y: T or Wide<T>.
  template <class Y>
  void product(const Lane<T>* g, const Phase& rows, const Phase& columns, const Lane<T>* weights, const int64_t* at, Y* to) const {
    const Expansion e = expansion(rows, columns);
    const bool in_lines = lined(e);
    const int64_t at_once = in_lines ? e.OH : band_rows<Lane<T>>(e), row_depth = planes * e.KW, depth = row_depth * e.KH, cells = e.OH * e.OW;
    for_bands(e.OH == 0 ? 0 : ceil_div(e.OH, at_once), [&](int64_t number) {
      const int64_t row = number * at_once;
      const Expansion band = e.band(row, at_once);
      const Lane<T>* source = in_lines ? g : expanded<Lane<T>>(g, 1, band, Slot::image);
      const int64_t group_size = planes * (in_lines ? e.H * e.W : e.KW * band.plane());
      const WindowRows window = in_lines ? WindowRows{} : WindowRows{e.OW, band.top, e.H, e.KH, e.DH, row_depth};
      for (int64_t group = 0; group < d.G; ++group)
        ImageProduct<T>{.e = source + group * group_size,
                        .offset = at,
                        .M = Cg,
                        .depth = depth,
                        .cells = min_of(at_once, e.OH - row) * e.OW,
                        .pitch = cells,
                        .packed = weights + group * size(d, rows, columns),
                        .lined = in_lines ? &e : nullptr,
                        .window = window,
                        .unit = tiles_of(d, columns),
                        .plane = band.plane(),
                        .KH = e.KH}
            .run(to + group * Cg * cells + row * e.OW);
    });
  }

  // dx of one image [C, H, W] from its g [K, OH, OW].
  void image(const T* gradient, T* dx) const {
    using W = Wide<T>;
    const Lane<T>* g = lane_planes<T>(gradient, d.G, Kg, d.OH * d.OW, Slot::planes);
    if (d.SH == 1 && d.SW == 1)
      return each_phase([&](const Phase& rows, const Phase& columns, int64_t, const Lane<T>* weights, const int64_t* at) {
        product(g, rows, columns, weights, at, dx);
      });
    const int64_t most_rows = ceil_div(d.H, d.SH);
    W* parts = scratch<W>(Slot::pixels, d.C * most_rows * d.W);
    const W** row = scratch<const W*>(Slot::rows, d.SW);
    Lane<T>* part = packed;
    int64_t* at_part = offset;
    for (int64_t a = 0; a < min_of(d.SH, d.H); ++a) {
      const Phase rows = row_phase(d, a);
      W* to = parts;
      each_column_phase(a, part, at_part,
                        [&](const Phase&, const Phase& columns, int64_t, const Lane<T>* weights, const int64_t* at) {
                          if (rows.taps * columns.taps > 0) product(g, rows, columns, weights, at, to);
                          to += d.C * rows.count * columns.count;
                        });
      for (int64_t i = 0; i < d.C * rows.count; ++i) {
        const W* from = parts;
        for (int64_t b = 0; b < d.SW; ++b) {
          const Phase columns = column_phase(d, b);
          row[b] = rows.taps * columns.taps > 0 && columns.count > 0 ? from + i * columns.count : nullptr;
          from += d.C * rows.count * columns.count;
        }
        T* const dx_row = dx + (i / rows.count * d.H + a + i % rows.count * d.SH) * d.W;
        W* const made = wide_room(dx_row, d.W, Slot::wide);
        interleave<W>(made, row, d.SW, d.W);
        rounded(dx_row, made, d.W);
      }
    }
  }
};

}  // namespace ts::TS_ISA
