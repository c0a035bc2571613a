// Lanes in another order: every second element of memory, even and odd lanes apart and together again, halves of vectors. What
// pooling and strided convolutions read with.
#pragma once

#include "simd.h"

namespace ts::TS_ISA {

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

// Both halves of a vector from the lower halves of two.
template <class T, class V>
TS_INLINE V halves(V lower, V upper) {
#if defined(__clang__)
  for (int i = 0; i < kLanes<T> / 2; ++i) lower[kLanes<T> / 2 + i] = upper[i];
  return lower;
#else
  Mask<T> index;
  for (int i = 0; i < kLanes<T>; ++i) index[i] = i < kLanes<T> / 2 ? i : i + kLanes<T> / 2;
  return __builtin_shuffle(lower, upper, index);
#endif
}
// The lanes of two vectors in turn; what in_order() does undoes itself, so it comes before as it comes after even_odd().
template <class T>
TS_INLINE void in_turn(Vec<T> even, Vec<T> odd, Vec<T>& low, Vec<T>& high) {
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__clang__)
  if constexpr (sizeof(T) == 4) {
    low = (Vec<T>)_mm256_unpacklo_ps((__m256)even, (__m256)odd);
    high = (Vec<T>)_mm256_unpackhi_ps((__m256)even, (__m256)odd);
  } else {
    low = (Vec<T>)_mm256_unpacklo_pd((__m256d)even, (__m256d)odd);
    high = (Vec<T>)_mm256_unpackhi_pd((__m256d)even, (__m256d)odd);
  }
#else
  low = zip_low<T>(even, odd), high = zip_high<T>(even, odd);
#endif
}

}  // namespace ts::TS_ISA
