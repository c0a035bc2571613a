// A vector of the widest register of the instruction set this file is compiled for, as a GCC/Clang vector extension:
// + - * / and comparisons work lane by lane, a * b + c becomes one FMA (-ffp-contract=fast), and the same kernel body
// serves AVX-512, AVX2, SSE2 and NEON. Everything lives in the namespace of its instruction set (see isa.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define TS_INLINE inline __attribute__((always_inline))

namespace ts::TS_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
using Mask = typename VectorOf<T>::mask;  // an integer of the lane's width: 0 or -1 from a comparison
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T>
TS_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
TS_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
TS_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // minus: -0. + 0. would lose the sign
}

// The first n lanes (0 <= n <= kLanes); other lanes are 0, other memory is neither read nor written.
template <class T>
TS_INLINE Vec<T> load_n(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
  else return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#else
  Vec<T> v{};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
#endif
}
template <class T>
TS_INLINE void store_n(T* p, Vec<T> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
  else _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
  std::memcpy(p, &v, n * sizeof(T));
#endif
}

// Lanes first .. last - 1 of p; other lanes are 0 and their memory is not read.
template <class T>
TS_INLINE Vec<T> load_between(const T* p, int first, int last) {
#if defined(__AVX512F__)
  const unsigned mask = ((1u << last) - 1) & ~((1u << first) - 1);
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)mask, p);
  else return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)mask, p);
#else
  T lanes[kLanes<T>] = {};
  for (int i = first; i < last; ++i) lanes[i] = p[i];
  return load<T>(lanes);
#endif
}

// relu(NaN) = NaN and relu(-0.) = -0. as in torch: only what is < 0 changes.
template <class T>
TS_INLINE Vec<T> relu(Vec<T> v) {
  return v < Vec<T>{} ? Vec<T>{} : v;
}
// Its gradient: 0 where y <= 0, g elsewhere, so a NaN in y lets g pass.
template <class T>
TS_INLINE Vec<T> relu_gradient(Vec<T> g, Vec<T> y) {
  return y <= Vec<T>{} ? Vec<T>{} : g;
}

template <class T>
TS_INLINE T sum_lanes(Vec<T> v) {
  T s[kLanes<T>];
  std::memcpy(s, &v, sizeof v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}

// Interleaves the lower (upper) halves: a0 b0 a1 b1 …
template <class T>
TS_INLINE Vec<T> zip_low(Vec<T> a, Vec<T> b) {
  Mask<T> index;
  for (int i = 0; i < kLanes<T>; ++i) index[i] = i / 2 + (i % 2) * kLanes<T>;
#if defined(__clang__)
  Vec<T> out;
  for (int i = 0; i < kLanes<T>; ++i) out[i] = i % 2 ? b[i / 2] : a[i / 2];
  return out;
#else
  return __builtin_shuffle(a, b, index);
#endif
}
template <class T>
TS_INLINE Vec<T> zip_high(Vec<T> a, Vec<T> b) {
  Mask<T> index;
  for (int i = 0; i < kLanes<T>; ++i) index[i] = i / 2 + kLanes<T> / 2 + (i % 2) * kLanes<T>;
#if defined(__clang__)
  Vec<T> out;
  for (int i = 0; i < kLanes<T>; ++i) out[i] = i % 2 ? b[i / 2 + kLanes<T> / 2] : a[i / 2 + kLanes<T> / 2];
  return out;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Transposes a square of kLanes vectors in registers: log2(lanes) rounds of perfect shuffles.
template <class T>
TS_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  for (int round = 1; round < L; round *= 2) {
    Vec<T> next[L];
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = zip_low<T>(rows[i], rows[i + L / 2]);
      next[2 * i + 1] = zip_high<T>(rows[i], rows[i + L / 2]);
    }
    for (int i = 0; i < L; ++i) rows[i] = next[i];
  }
}

// dst[c * dst_stride + r] = src[r * src_stride + c] for r < rows, c < cols.
template <class T>
void transpose_copy(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t rows, int64_t cols) {
  constexpr int L = kLanes<T>;
  for (int64_t r0 = 0; r0 < rows; r0 += L) {
    const int nr = rows - r0 < L ? static_cast<int>(rows - r0) : L;
    for (int64_t c0 = 0; c0 < cols; c0 += L) {
      const int nc = cols - c0 < L ? static_cast<int>(cols - c0) : L;
      Vec<T> block[L];
      for (int i = 0; i < L; ++i)
        block[i] = i >= nr ? Vec<T>{} : load_n<T>(src + (r0 + i) * src_stride + c0, nc);
      transpose<T>(block);
      for (int j = 0; j < nc; ++j) store_n<T>(dst + (c0 + j) * dst_stride + r0, block[j], nr);
    }
  }
}

template <class T>
TS_INLINE T* scratch(Slot slot, int64_t count) {
  return static_cast<T*>(scratch_bytes(slot, count * sizeof(T) + 2 * kVectorBytes));  // slack: whole vectors at the end
}

// parallel(n, grain, [&](int64_t begin, int64_t end) { … })
template <class F>
void parallel(int64_t n, int64_t grain, const F& body) {
  parallel_ranges(
      n, grain, [](void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); },
      const_cast<F*>(&body));
}

TS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class I>
TS_INLINE I min_of(I a, I b) { return a < b ? a : b; }
template <class I>
TS_INLINE I max_of(I a, I b) { return a > b ? a : b; }

// Calls body(offset, lanes) for whole vectors of [0, n) and once for the rest.
template <class T, class F>
TS_INLINE void for_vectors(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(i, kLanes<T>);
  if (i < n) body(i, static_cast<int>(n - i));
}
template <class T>
TS_INLINE Vec<T> load_some(const T* p, int n) { return n == kLanes<T> ? load<T>(p) : load_n<T>(p, n); }
template <class T>
TS_INLINE void store_some(T* p, Vec<T> v, int n) {
  if (n == kLanes<T>) store<T>(p, v);
  else store_n<T>(p, v, n);
}

}  // namespace ts::TS_ISA
