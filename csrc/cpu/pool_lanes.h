// What max pooling keeps of its windows: the best cell so far in each lane, and its position in memory as bytes.
#pragma once

#include "../contract/maxpool2d.h"
#include "lanes.h"

namespace ts::TS_ISA {

using maxpool2d::Geometry;

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
#if defined(__AVX2__)
    if constexpr (sizeof(P) == 1 && sizeof(T) == 4) return (Mask<T>)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
#endif
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

}  // namespace ts::TS_ISA
