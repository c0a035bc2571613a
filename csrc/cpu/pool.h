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

#if !defined(__AVX512F__)
// The first n of at most 8 bytes, n mostly being `whole`; a copy of variable length is a call or a loop.
TS_INLINE void store_first(char* p, uint64_t bytes, int n, int whole) {
  if (n == whole) {
    std::memcpy(p, &bytes, whole);
    return;
  }
  if (n & 4) std::memcpy(p, &bytes, 4), p += 4, bytes >>= 32;
  if (n & 2) std::memcpy(p, &bytes, 2), p += 2, bytes >>= 16;
  if (n & 1) std::memcpy(p, &bytes, 1);
}
TS_INLINE uint64_t load_first(const char* p, int n, int whole) {
  uint64_t bytes = 0, part = 0;
  if (n == whole) {
    std::memcpy(&bytes, p, whole);
    return bytes;
  }
  int shift = 0;
  if (n & 4) std::memcpy(&part, p, 4), bytes = part, p += 4, shift = 32;
  part = 0;
  if (n & 2) std::memcpy(&part, p, 2), bytes |= part << shift, p += 2, shift += 16;
  part = 0;
  if (n & 1) std::memcpy(&part, p, 1), bytes |= part << shift;
  return bytes;
}
// Lanes as P, the first in the lowest bits. GCC takes lanes out one by one where two instructions narrow them.
template <class T, class P>
TS_INLINE uint64_t narrow_bits(Mask<T> position) {
#if defined(__AVX2__)
  if constexpr (sizeof(P) == 1) {
    const __m256i v = (__m256i)position;
    __m128i words;  // four or eight 16-bit values
    if constexpr (sizeof(T) == 4) {
      words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    } else {
      const __m256i low = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
      words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_castsi256_si128(low));
    }
    return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
  }
#endif
  typedef P Narrow __attribute__((vector_size(kLanes<T> * sizeof(P))));
  const Narrow narrow = __builtin_convertvector(position, Narrow);
  uint64_t bits = 0;
  std::memcpy(&bits, &narrow, sizeof narrow);
  return bits;
}
#endif

// Positions of the first n lanes. Where the window fits a byte P is uint8_t, else int32_t.
template <class T, class P>
TS_INLINE void store_position(P* p, Mask<T> position, int n) {
#if defined(__AVX512F__)
  const __m512i v = (__m512i)position;
  const unsigned mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 4 && sizeof(P) == 1) _mm512_mask_cvtepi32_storeu_epi8(p, (__mmask16)mask, v);
  else if constexpr (sizeof(T) == 4) _mm512_mask_storeu_epi32(p, (__mmask16)mask, v);
  else if constexpr (sizeof(P) == 1) _mm512_mask_cvtepi64_storeu_epi8(p, (__mmask8)mask, v);
  else _mm512_mask_cvtepi64_storeu_epi32(p, (__mmask8)mask, v);
#else
  typedef P Narrow __attribute__((vector_size(kLanes<T> * sizeof(P))));
  if constexpr (sizeof(Narrow) <= sizeof(uint64_t)) {
    const uint64_t bytes = narrow_bits<T, P>(position);
    store_first(reinterpret_cast<char*>(p), bytes, n * static_cast<int>(sizeof(P)), static_cast<int>(sizeof(Narrow)));
  } else {
    const Narrow narrow = __builtin_convertvector(position, Narrow);
    if (n == kLanes<T>) std::memcpy(p, &narrow, sizeof narrow);
    else std::memcpy(p, &narrow, n * sizeof(P));
  }
#endif
}
template <class T, class P>
TS_INLINE Mask<T> load_position(const P* p, int n) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 4 && sizeof(P) == 1) return (Mask<T>)_mm512_maskz_cvtepu8_epi32((__mmask16)mask, _mm_maskz_loadu_epi8((__mmask16)mask, p));
  else if constexpr (sizeof(T) == 4) return (Mask<T>)_mm512_maskz_loadu_epi32((__mmask16)mask, p);
  else if constexpr (sizeof(P) == 1) return (Mask<T>)_mm512_maskz_cvtepu8_epi64((__mmask8)mask, _mm_maskz_loadu_epi8((__mmask16)mask, p));
  else return (Mask<T>)_mm512_maskz_cvtepi32_epi64((__mmask8)mask, _mm256_maskz_loadu_epi32((__mmask8)mask, p));
#else
  typedef P Narrow __attribute__((vector_size(kLanes<T> * sizeof(P))));
  Narrow narrow{};
  if constexpr (sizeof(Narrow) <= sizeof(uint64_t)) {
    const uint64_t bytes = load_first(reinterpret_cast<const char*>(p), n * static_cast<int>(sizeof(P)), static_cast<int>(sizeof(Narrow)));
    std::memcpy(&narrow, &bytes, sizeof narrow);
  } else {
    if (n == kLanes<T>) std::memcpy(&narrow, p, sizeof narrow);
    else std::memcpy(&narrow, p, n * sizeof(P));
  }
  return __builtin_convertvector(narrow, Mask<T>);
#endif
}

// The maximum so far and its position in each lane.
template <class T>
struct Best {
  Vec<T> value;
  Mask<T> at;
  TS_INLINE void meet(Vec<T> v, Mask<T> position) {
    const Mask<T> take = (v > value) | (v != v);  // v != v: a NaN wins, the last one counts
    value = take ? v : value;
    at = take ? position : at;
  }
};
template <class T>
TS_INLINE Mask<T> everywhere(int64_t position) {
  return Mask<T>{} + static_cast<int>(position);
}
template <class T>
constexpr T kLowest = -__builtin_inf();

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
// first cell inside.
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

  // KW and SW known at compile time, or 0.
  template <int kKW, int kSW>
  void along(const T* x, T* to) const {
    const int64_t KW = kKW ? kKW : d.KW, SW = kSW ? kSW : d.SW;
    for_vectors<T>(d.W, [&](int64_t i, int n) { store_some<T>(line + d.PW + i, load_some<T>(x + i, n), n); });
    for (int64_t ow = 0; ow < width; ow += kLanes<T>) {
      Best<T> best{splat<T>(kLowest<T>), (Mask<T>)load<T>(first + ow)};
      for (int64_t kw = 0; kw < KW; ++kw)
        best.meet(load_strided<T>(line + ow * SW + kw * d.DW, SW, kLanes<T>), everywhere<T>(kw));
      store<T>(to + ow, best.value);
      store<T>(to + width + ow, (Vec<T>)best.at);
    }
  }

  template <class P>
  void down(int64_t oh, T* y, P* position) const {
    const Reach reach = row_reach(d, oh);
    for (int64_t ow = 0; ow < d.OW; ow += kLanes<T>) {
      const int n = static_cast<int>(min_of<int64_t>(kLanes<T>, d.OW - ow));
      Best<T> best{splat<T>(kLowest<T>), {}};
      for (int64_t kh = reach.begin; kh < reach.end; ++kh) {
        const T* from = row(oh * d.SH - d.PH + kh * d.DH) + ow;
        const Mask<T> at = (Mask<T>)load<T>(from + width) + static_cast<int>(kh * d.KW);
        if (kh == reach.begin) best = {load<T>(from), at};
        else best.meet(load<T>(from), at);
      }
      store_n<T>(y + ow, best.value, n);
      store_position<T, P>(position + ow, best.at, n);
    }
  }

  template <class P, int kKW, int kSW>
  void plane(const T* x, int64_t pitch, T* y, P* position) const {
    int64_t next = 0;  // rows of x before it are done, or met by no window
    for (int64_t oh = 0; oh < d.OH; ++oh) {
      const int64_t top = oh * d.SH - d.PH;
      next = max_of(next, top);
      for (const int64_t end = min_of(d.H, top + kept); next < end; ++next) along<kKW, kSW>(x + next * pitch, row(next));
      down<P>(oh, y + oh * d.OW, position + oh * d.OW);
    }
  }
};

// Lanes i of even: p[2 i], of odd: p[2 i + 1], i < n, in the order that in_order() undoes: AVX2 shuffles in halves of a vector
// in one instruction, across them in three.
template <class T>
TS_INLINE void load_even_odd(const T* p, int first, int second, Vec<T>& even, Vec<T>& odd) {
  constexpr int L = kLanes<T>;
  const Vec<T> low = load_n<T>(p, first), high = second ? load_n<T>(p + L, second) : Vec<T>{};
#if defined(__clang__)
  for (int i = 0; i < L; ++i) even[i] = 2 * i < L ? low[2 * i] : high[2 * i - L], odd[i] = 2 * i < L ? low[2 * i + 1] : high[2 * i + 1 - L];
#elif defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    even = (Vec<T>)_mm256_shuffle_ps((__m256)low, (__m256)high, 0x88);
    odd = (Vec<T>)_mm256_shuffle_ps((__m256)low, (__m256)high, 0xdd);
  } else {
    even = (Vec<T>)_mm256_unpacklo_pd((__m256d)low, (__m256d)high);
    odd = (Vec<T>)_mm256_unpackhi_pd((__m256d)low, (__m256d)high);
  }
#else
  Mask<T> index;
  for (int i = 0; i < L; ++i) index[i] = 2 * i;
  even = __builtin_shuffle(low, high, index);
  odd = __builtin_shuffle(low, high, index + 1);
#endif
}
template <class V>
TS_INLINE V in_order(V v) {
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__clang__)
  return (V)_mm256_permute4x64_epi64((__m256i)v, 0xd8);  // the middle quarters exchanged
#else
  return v;
#endif
}

TS_INLINE bool side_by_side(const Geometry& d) {  // 2x2 windows, none over an edge
  return d.KH == 2 && d.KW == 2 && d.SH == 2 && d.SW == 2 && d.PH == 0 && d.PW == 0 && d.DH == 1 && d.DW == 1 &&
         2 * d.OH <= d.H && 2 * d.OW <= d.W;
}

// Such windows. Columns outside, rows inside: the masks of a column's vectors hold for all rows.
template <class T, class P>
void pool_pairs(const Geometry& d, const T* x, int64_t pitch, T* y, P* position) {
  constexpr int L = kLanes<T>;
  for (int64_t ow = 0; ow < d.OW; ow += L) {
    const int n = static_cast<int>(min_of<int64_t>(L, d.OW - ow)), first = min_of(2 * n, L), second = 2 * n - first;
    const T* row = x + 2 * ow;
    for (int64_t o = ow; o < d.OH * d.OW; o += d.OW, row += 2 * pitch) {
      Vec<T> cell[4];
      load_even_odd<T>(row, first, second, cell[0], cell[1]);
      load_even_odd<T>(row + pitch, first, second, cell[2], cell[3]);
      Best<T> best{cell[0], {}};
#pragma GCC unroll 4
      for (int k = 1; k < 4; ++k) best.meet(cell[k], everywhere<T>(k));
      store_n<T>(y + o, in_order(best.value), n);
      store_position<T, P>(position + o, in_order(best.at), n);
    }
  }
}

// x: H rows of W cells, `pitch` apart. y, position: OH x OW, dense.
template <class T, class P>
void pool_plane(const Geometry& d, const T* x, int64_t pitch, T* y, P* position) {
  if (side_by_side(d)) return pool_pairs<T, P>(d, x, pitch, y, position);
  const Inner rows = inner_rows(d), columns = inner_columns(d);
  const bool inside = d.PH == 0 && d.PW == 0 && rows.end == d.OH && columns.end == d.OW;
  if (inside && d.SH > (d.KH - 1) * d.DH) return pool_apart<T, P>(d, x, pitch, y, position);
  const RowMaxima<T> maxima(d);
  if (d.KW == 3 && d.SW == 1) maxima.template plane<P, 3, 1>(x, pitch, y, position);
  else if (d.KW == 3 && d.SW == 2) maxima.template plane<P, 3, 2>(x, pitch, y, position);
  else maxima.template plane<P, 0, 0>(x, pitch, y, position);
}

// dx[cell at position] += g, or where `y` is given (ReLU before or after the pool: the same) only where !(y <= 0).
// dx: H x W dense, overwritten.
template <class T, class P>
void unpool_plane(const Geometry& d, const T* g, const T* y, const P* position, T* dx) {
  if (!side_by_side(d) || d.H != 2 * d.OH || d.W != 2 * d.OW) {
    std::memset(dx, 0, sizeof(T) * d.H * d.W);
    for (int64_t oh = 0; oh < d.OH; ++oh)
      for (int64_t ow = 0; ow < d.OW; ++ow) {
        const int64_t o = oh * d.OW + ow, at = position[o];
        const int64_t row = oh * d.SH - d.PH + at / d.KW * d.DH, column = ow * d.SW - d.PW + at % d.KW * d.DW;
        if ((y && y[o] <= T(0)) || row < 0 || row >= d.H || column < 0 || column >= d.W) continue;  // outside: no cell met
        dx[row * d.W + column] += g[o];
      }
    return;
  }
  // Every cell of dx is written once, two rows at a time; columns outside as in pool_pairs.
  constexpr int L = kLanes<T>;
  for (int64_t ow = 0; ow < d.OW; ow += L) {
    const int n = static_cast<int>(min_of<int64_t>(L, d.OW - ow)), first = min_of(2 * n, L), second = 2 * n - first;
    T* row = dx + 2 * ow;
    for (int64_t o = ow; o < d.OH * d.OW; o += d.OW) {
      Vec<T> v = load_n<T>(g + o, n);
      if (y) v = relu_gradient<T>(v, load_n<T>(y + o, n));
      const Mask<T> at = load_position<T, P>(position + o, n);
      for (int kh = 0; kh < 2; ++kh, row += d.W) {
        const Vec<T> zero{}, even = at == 2 * kh ? v : zero, odd = at == 2 * kh + 1 ? v : zero;
        store_n<T>(row, zip_low<T>(even, odd), first);
        if (second) store_n<T>(row + L, zip_high<T>(even, odd), second);
      }
    }
  }
}

}  // namespace ts::TS_ISA
