// Where the cells of an image lie that a window meets, so that a product takes them by unit-stride loads only.
//
// The image is expanded in width: for each channel and window column kw, its rows with the cells that kw meets, OW of them
// and nothing else, padding written as zeros, rows of equal (row mod SH) together:
//   e[c][kw][row % SH][row / SH][ow] = x[c][row - PT][ow * SW + kw * DW - PL]
// Then window cell (c, kh, kw) of output cells j, j + 1, … is e at offset[c, kh, kw] + j, … : a plain vector load across
// output rows, for any stride, dilation and width, so that no lane is wasted on narrow images. It is KW / SW times the
// image instead of im2col's KH * KW / (SH * SW), and nothing at all for a 1 x 1 window.
//
// Where many panels of channels meet the same cells, those of a tile are copied side by side first (RightCells); from an image
// as wide as its output straight, without the expansion (RightLines).
#pragma once

#include "conv_lanes.h"
#include "gemm.h"
#include "pool.h"

namespace ts::TS_ISA {

// ceil_div for a stride, which mostly is 1: a division for every plane and window column would cost as much as small planes.
TS_INLINE int64_t steps_of(int64_t cells, int64_t stride) { return stride == 1 ? cells : ceil_div(cells, stride); }

// Geometry of an expansion.
struct Expansion {
  int64_t C, H, W;          // source planes
  int64_t top, left;        // padding before the first row and column (negative: source rows to drop)
  int64_t KH, KW, DH, DW, SH, SW;
  int64_t OH, OW;           // output cells
  int64_t phase_rows() const { return steps_of((OH - 1) * SH + (KH - 1) * DH + 1, SH); }
  int64_t plane() const { return SH * phase_rows() * OW; }
  int64_t size() const { return C * KW * plane(); }
  // Whether the source itself already is its expansion.
  bool trivial() const {
    return KH == 1 && KW == 1 && SH == 1 && SW == 1 && top == 0 && left == 0 && OH == H && OW == W;
  }
  // The expansion for `rows` output rows from `first` on alone: the same geometry for each `first`, zeros behind the image.
  Expansion band(int64_t first, int64_t rows) const {
    Expansion e = *this;
    e.top -= first * SH, e.OH = rows;
    return e;
  }
  // Where window cell (c, kh, kw) of output cell 0 lies.
  int64_t offset(int64_t c, int64_t kh, int64_t kw) const {
    return (c * KW + kw) * plane() + (kh * DH % SH * phase_rows() + kh * DH / SH) * OW;
  }
  void offsets(int64_t* at, int64_t channels) const {  // of all, in this order
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t kh = 0; kh < KH; ++kh)
        for (int64_t kw = 0; kw < KW; ++kw) *at++ = offset(c, kh, kw);
  }
};

// Output rows expanded at a time: what is made for them stays in a share of L2 until every window row has read it. Of a large
// image the whole would come from memory KH times over (16 channels of 224 x 224 took twice the time).
constexpr int64_t kBandBytes = 256 << 10;
template <class T>
TS_INLINE int64_t band_rows(const Expansion& e) {
  const int64_t row = e.C * e.KW * e.OW * static_cast<int64_t>(sizeof(T)), window = (e.KH - 1) * e.DH + 1;
  if (e.trivial() || row * e.SH * e.phase_rows() <= kBandBytes) return e.OH;
  const int64_t most = max_of(kBandBytes / row - window, 2 * window) / e.SH + 1;  // what two bands share is expanded twice
  return e.OH <= most ? e.OH : ceil_div(e.OH, ceil_div(e.OH, most));
}
// Planes of such a band at a time, where sums may wait in y for the next ones: of many channels even a few rows are too large.
template <class T>
TS_INLINE int64_t band_planes(const Expansion& band) {
  const int64_t bytes = band.KW * band.plane() * static_cast<int64_t>(sizeof(T));
  if (band.trivial() || band.C * bytes <= 2 * kBandBytes) return band.C;
  return ceil_div(band.C, ceil_div(band.C, max_of<int64_t>(1, kBandBytes / bytes)));
}

// The cells of a row that one window column meets: to[ow] = row[ow * stride + shift] for ow in [begin, end), else 0.
struct Column {
  int64_t shift, begin, end;
  Column(const Expansion& e, int64_t kw) : shift(kw * e.DW - e.left) {
    begin = min_of(e.OW, shift >= 0 ? 0 : steps_of(-shift, e.SW));
    end = max_of(begin, min_of(e.OW, e.W - shift <= 0 ? int64_t(0) : steps_of(e.W - shift, e.SW)));
  }
};

template <class T>
TS_INLINE void expand_row(T* to, const T* row, const Expansion& e, const Column& column) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < column.begin; ++i) to[i] = T(0);
  for (int64_t i = column.begin; i < column.end; i += L) {
    const int n = static_cast<int>(min_of<int64_t>(L, column.end - i));
    store_some<T>(to + i, load_strided<T>(row + i * e.SW + column.shift, e.SW, n), n);
  }
  for (int64_t i = column.end; i < e.OW; ++i) to[i] = T(0);
}

// Zeros in whole vectors, up to one beyond the end: memory that is written next, or slack. memset's call costs more here.
template <class T>
TS_INLINE T* zero_cells(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store<T>(to + i, Vec<T>{});
  return to + count;
}

// Stride 1: whole vectors by masks that hold for every row; what is stored beyond OW the next row overwrites.
template <class T>
T* expand_plain(T* to, const T* plane, const Expansion& e, const Column& column) {
  constexpr int L = kLanes<T>;
  const int64_t rows = e.phase_rows(), top = max_of<int64_t>(0, min_of(rows, e.top)), bottom = max_of(top, min_of(rows, e.H + e.top));
  const T* from = plane + (top - e.top) * e.W + column.shift;
  T* const first_row = zero_cells<T>(to, top * e.OW);
  for (int64_t i = 0; i < e.OW; i += L) {  // a column of vectors after the other: each overwrites only what lies right of it
    const int first = static_cast<int>(max_of<int64_t>(0, min_of<int64_t>(L, column.begin - i)));
    const int last = static_cast<int>(max_of<int64_t>(first, min_of<int64_t>(L, column.end - i)));
    T* row = first_row + i;
    const T* cells = from + i;
    if (i + L <= e.OW && first == 0 && last == L) {
      for (int64_t r = top; r < bottom; ++r, row += e.OW, cells += e.W) store<T>(row, load<T>(cells));
    } else if (e.OW <= L) {
      for (int64_t r = top; r < bottom; ++r, row += e.OW, cells += e.W) store<T>(row, load_between<T>(cells, first, last));
    } else {
      const int width = static_cast<int>(min_of<int64_t>(L, e.OW - i));
      for (int64_t r = top; r < bottom; ++r, row += e.OW, cells += e.W) store_n<T>(row, load_between<T>(cells, first, last), width);
    }
  }
  return zero_cells<T>(to + bottom * e.OW, (rows - bottom) * e.OW);
}

#if defined(__AVX2__)
// Output rows as long as the image's and shorter than a vector: the plane as one line, shifted, whole vectors across rows;
// cells that a window column meets outside are left out by masks, which all channels share.
constexpr int kMostMasks = 256;  // of all window columns together: 512 bytes on the stack
template <class T>
bool expand_lines(T* to, const T* x, const Expansion& e) {
  constexpr int L = kLanes<T>;
  const int64_t rows = e.phase_rows(), top = max_of<int64_t>(0, min_of(rows, e.top)), bottom = max_of(top, min_of(rows, e.H + e.top));
  const int64_t cells = (bottom - top) * e.W, vectors = ceil_div(cells, L);
  if (e.OW != e.W || e.W > L || vectors * e.KW > kMostMasks) return false;
  uint16_t masks[kMostMasks + 1] = {};  // and one for what is shifted out of the last, which is nothing
  for (int64_t kw = 0; kw < e.KW; ++kw) {
    const Column column(e, kw);
    for (int64_t i = column.begin; i < cells; i += e.W) {  // a row's cells lie in at most two vectors
      const unsigned run = ((1u << (column.end - column.begin)) - 1) << i % L;
      masks[kw * vectors + i / L] |= static_cast<uint16_t>(run & ((1u << L) - 1));
      masks[kw * vectors + i / L + 1] |= static_cast<uint16_t>(run >> L);
    }
  }
  for (int64_t c = 0; c < e.C; ++c)
    for (int64_t kw = 0; kw < e.KW; ++kw) {
      const T* from = x + c * e.H * e.W + (top - e.top) * e.W + kw * e.DW - e.left;
      to = zero_cells<T>(to, top * e.W);
      for (int64_t j = 0; j < vectors; ++j) store<T>(to + j * L, load_masked<T>(from + j * L, masks[kw * vectors + j]));
      to = zero_cells<T>(to + cells, (rows - bottom) * e.W);
    }
  return true;
}
#endif

template <class T>
void expand(T* to, const T* x, const Expansion& e) {
  const int64_t phase_rows = e.phase_rows();
  if (e.SH == 1 && e.SW == 1) {
#if defined(__AVX2__)
    if (expand_lines<T>(to, x, e)) return;
#endif
    for (int64_t c = 0; c < e.C; ++c)
      for (int64_t kw = 0; kw < e.KW; ++kw) to = expand_plain<T>(to, x + c * e.H * e.W, e, Column(e, kw));
    return;
  }
  for (int64_t c = 0; c < e.C; ++c)
    for (int64_t kw = 0; kw < e.KW; ++kw) {
      const Column column(e, kw);
      for (int64_t phase = 0; phase < e.SH; ++phase)
        for (int64_t q = 0; q < phase_rows; ++q, to += e.OW) {
          const int64_t row = q * e.SH + phase - e.top;
          if (row < 0 || row >= e.H) std::memset(to, 0, sizeof(T) * e.OW);
          else expand_row<T>(to, x + (c * e.H + row) * e.W, e, column);
        }
    }
}

// `count` images expanded into a scratch slot, or the images themselves where there is nothing to do.
template <class T>
const T* expanded(const T* x, int64_t count, const Expansion& e, Slot slot) {
  if (e.trivial()) return x;
  T* to = scratch<T>(slot, count * e.size());
  for (int64_t n = 0; n < count; ++n) expand<T>(to + n * e.size(), x + n * e.C * e.H * e.W, e);
  return to;
}

// Window cells of output cells as the right factor of a product (gemm.h). A panel is panel[k * kColumns + j].
template <class T>
struct RightCells {
  const T* e;
  const int64_t* offset;
  void panel(T* buffer, int64_t k0, int64_t depth, int64_t j0, int columns) const {
    constexpr int W = kColumns<T>, L = W / 2;
    const int low = min_of(columns, L);
    for (int64_t k = 0; k < depth; ++k, buffer += W) {
      const T* cells = e + offset[k0 + k] + j0;
      __builtin_prefetch(cells + 2 * W - 1);  // the next panel's line: planes apart, no hardware foresees it
      store<T>(buffer, load_some<T>(cells, low));
      store<T>(buffer + L, load_some<T>(cells + L, columns - low));
    }
  }
};

// The same straight from an image as wide as its output, with stride 1: there window cell (kh, kw) of all output cells is the
// image as one line, shifted. Lanes that meet padding are left out by masks, which all channels share.
constexpr int kLineTaps = 64;
#if defined(__AVX2__)
constexpr bool kMaskedLoads = true;
#else
constexpr bool kMaskedLoads = false;  // a load by a mask is a loop: images are expanded
#endif
template <class T>
struct RightLines {
  const T* x;
  const int64_t* offset;  // [depth], of output cell 0
  const int64_t* tap;     // [depth], kh * KW + kw
  const Expansion& e;
  static bool serves(const Expansion& e) {
    return kMaskedLoads && e.SH == 1 && e.SW == 1 && e.OW == e.W && e.KH * e.KW <= kLineTaps && !e.trivial();
  }
  // Offsets, then taps, of window cells in the order (c, kh, kw).
  static void offsets(const Expansion& e, int64_t* at, int64_t channels) {
    const int64_t area = e.KH * e.KW;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t kh = 0; kh < e.KH; ++kh)
        for (int64_t kw = 0; kw < e.KW; ++kw, ++at) {
          *at = (c * e.H + kh * e.DH - e.top) * e.W + kw * e.DW - e.left;
          at[channels * area] = kh * e.KW + kw;
        }
  }
  void panel(T* buffer, int64_t k0, int64_t depth, int64_t j0, int columns) const {
    constexpr int W = kColumns<T>, L = W / 2;
    constexpr unsigned whole = (1u << L) - 1;
    uint64_t row_meets[kLineTaps] = {}, column_meets[kLineTaps] = {};  // a bit for each of the panel's cells
    int64_t oh = j0 / e.OW, ow = j0 % e.OW;
    for (int j = 0; j < columns; ++j) {
      const uint64_t bit = uint64_t{1} << j;
      for (int64_t kh = 0, h = oh - e.top; kh < e.KH; ++kh, h += e.DH) row_meets[kh] |= h >= 0 && h < e.H ? bit : 0;
      for (int64_t kw = 0, w = ow - e.left; kw < e.KW; ++kw, w += e.DW) column_meets[kw] |= w >= 0 && w < e.W ? bit : 0;
      if (++ow == e.OW) ow = 0, ++oh;
    }
    uint64_t meets[kLineTaps];
    for (int64_t kh = 0; kh < e.KH; ++kh)
      for (int64_t kw = 0; kw < e.KW; ++kw) meets[kh * e.KW + kw] = row_meets[kh] & column_meets[kw];
    for (int64_t k = 0; k < depth; ++k, buffer += W) {
      const T* cells = x + offset[k0 + k] + j0;
      __builtin_prefetch(cells + 2 * W - 1);
      const uint64_t mask = meets[tap[k0 + k]];
      for (int half = 0; half < 2; ++half) {
        const unsigned lanes = static_cast<unsigned>(mask >> half * L) & whole;
        store<T>(buffer + half * L, lanes == whole ? load<T>(cells + half * L) : load_masked<T>(cells + half * L, lanes));
      }
    }
  }
};

}  // namespace ts::TS_ISA
