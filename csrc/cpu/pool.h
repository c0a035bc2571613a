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
  // kNumbers: no lane is a NaN. Else one wins, and the last one counts.
  template <bool kNumbers = false>
  TS_INLINE void meet(Vec<T> v, Mask<T> position) {
    const Mask<T> take = kNumbers ? v > value : (v > value) | (v != v);
    value = take ? v : value;
    at = take ? position : at;
  }
};
// Whether a lane of a or b is a NaN.
template <class T>
TS_INLINE Mask<T> unordered(Vec<T> a, Vec<T> b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Mask<T>)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q);
  else return (Mask<T>)_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_UNORD_Q);
#else
  return (a != a) | (b != b);
#endif
}
template <class T>
TS_INLINE bool any(Mask<T> m) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)m, (__m256i)m);
#else
  for (int i = 0; i < kLanes<T>; ++i)
    if (m[i]) return true;
  return false;
#endif
}
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

// Rows are read in parts and again, which the processor's own prefetching does not see through: asked for beforehand, planes
// that are not in the cache are pooled in a third of the time.
constexpr int64_t kRowsAhead = 4096;  // bytes
template <class T>
TS_INLINE void prefetch_row(const T* p, int64_t cells) {
  for (int64_t i = 0; i < cells; i += 64 / sizeof(T)) __builtin_prefetch(p + i);
}

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

// The even and the odd lanes of two vectors, in the order that in_order() undoes: AVX2 shuffles in halves of a vector in one
// instruction, across them in three.
template <class T>
TS_INLINE void even_odd(Vec<T> low, Vec<T> high, Vec<T>& even, Vec<T>& odd) {
#if defined(__clang__)
  constexpr int L = kLanes<T>;
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
  for (int i = 0; i < kLanes<T>; ++i) index[i] = 2 * i;
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

// Windows that overlap or reach over the edge, in two steps: along each row of x once, then down its rows for every
// output row that meets them. The first of equal cells along a row, then the first of equal rows, is the first of the
// window, and the same holds for the last NaN. Rows are copied between cells of -inf, which never win: `at` starts at the
// first cell inside. From the first NaN of a plane on, comparisons look for more.
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

TS_INLINE bool side_by_side(const Geometry& d) {  // 2x2 windows, none over an edge
  return d.KH == 2 && d.KW == 2 && d.SH == 2 && d.SW == 2 && d.PH == 0 && d.PW == 0 && d.DH == 1 && d.DW == 1 &&
         2 * d.OH <= d.H && 2 * d.OW <= d.W;
}

// The upper half of a vector in its lower half.
template <class T, class V>
TS_INLINE V upper_half(V v) {
#if defined(__clang__)
  V upper = v;
  for (int i = 0; i < kLanes<T> / 2; ++i) upper[i] = v[kLanes<T> / 2 + i];
  return upper;
#else
  Mask<T> index;
  for (int i = 0; i < kLanes<T>; ++i) index[i] = (i + kLanes<T> / 2) % kLanes<T>;
  return __builtin_shuffle(v, index);
#endif
}

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
