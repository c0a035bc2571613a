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
template <>
struct VectorOf<int32_t> {  // moved only: pairs of bf16 (bf16.h)
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
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

// Lanes whose bit is set; others are 0 and their memory is not read.
// LaneMask: the bits in the form that a load takes soonest, for masks that are used again and again.
#if defined(__AVX512F__)
template <class T>
using LaneMask = uint16_t;
template <class T>
TS_INLINE LaneMask<T> lane_mask(unsigned mask) { return static_cast<uint16_t>(mask); }
template <class T>
TS_INLINE Vec<T> load_masked(const T* p, unsigned mask) {
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)mask, p);
  else return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)mask, p);
}
#elif defined(__AVX2__)
template <class T>
using LaneMask = Mask<T>;
template <class T>
TS_INLINE LaneMask<T> lane_mask(unsigned mask) {
  Mask<T> bit;
  for (int i = 0; i < kLanes<T>; ++i) bit[i] = 1 << i;
  return (bit & static_cast<int>(mask)) != 0;
}
template <class T>
TS_INLINE Vec<T> load_masked(const T* p, Mask<T> lanes) {
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_maskload_ps(reinterpret_cast<const float*>(p), (__m256i)lanes);
  else return (Vec<T>)_mm256_maskload_pd(reinterpret_cast<const double*>(p), (__m256i)lanes);
}
template <class T>
TS_INLINE Vec<T> load_masked(const T* p, unsigned mask) { return load_masked<T>(p, lane_mask<T>(mask)); }
#else
template <class T>
using LaneMask = uint16_t;
template <class T>
TS_INLINE LaneMask<T> lane_mask(unsigned mask) { return static_cast<uint16_t>(mask); }
template <class T>
TS_INLINE Vec<T> load_masked(const T* p, unsigned mask) {
  T lanes[kLanes<T>] = {};
  for (int i = 0; i < kLanes<T>; ++i)
    if (mask >> i & 1) lanes[i] = p[i];
  return load<T>(lanes);
}
#endif

// The first n lanes (0 <= n <= kLanes); other lanes are 0, other memory is neither read nor written.
template <class T>
TS_INLINE Vec<T> load_n(const T* p, int n) {
#if defined(__AVX2__)  // AVX-512 too
  return load_masked<T>(p, (1u << n) - 1);
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
#elif defined(__AVX2__)  // by powers of two: a memcpy of n bytes would be a call, and masked stores are slow on some processors
  if constexpr (sizeof(T) == 4) {
    float* to = reinterpret_cast<float*>(p);
    if (n == 8) return _mm256_storeu_ps(to, (__m256)v);
    __m128 part = _mm256_castps256_ps128((__m256)v);
    if (n & 4) {
      _mm_storeu_ps(to, part);
      to += 4;
      part = _mm256_extractf128_ps((__m256)v, 1);
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(to), part);
      to += 2;
      part = _mm_movehl_ps(part, part);
    }
    if (n & 1) _mm_store_ss(to, part);
  } else {
    double* to = reinterpret_cast<double*>(p);
    if (n == 4) return _mm256_storeu_pd(to, (__m256d)v);
    __m128d part = _mm256_castpd256_pd128((__m256d)v);
    if (n & 2) {
      _mm_storeu_pd(to, part);
      to += 2;
      part = _mm256_extractf128_pd((__m256d)v, 1);
    }
    if (n & 1) _mm_store_sd(to, part);
  }
#else
  std::memcpy(p, &v, n * sizeof(T));
#endif
}

// The same where n is mostly kLanes.
template <class T>
TS_INLINE Vec<T> load_some(const T* p, int n) { return n == kLanes<T> ? load<T>(p) : load_n<T>(p, n); }
template <class T>
TS_INLINE void store_some(T* p, Vec<T> v, int n) {
  if (n == kLanes<T>) store<T>(p, v);
  else store_n<T>(p, v, n);
}

// Asks for a row before it is read: of a plane in parts, or of the next plane, which the processor does not foresee by itself.
// Planes that are not in the cache are pooled in a third of the time.
template <class T>
TS_INLINE void prefetch_row(const T* p, int64_t cells) {
  for (int64_t i = 0; i < cells; i += 64 / sizeof(T)) __builtin_prefetch(p + i);
}

// Lanes first .. last - 1 of p; other lanes are 0 and their memory is not read.
template <class T>
TS_INLINE Vec<T> load_between(const T* p, int first, int last) {
#if defined(__AVX2__)
  return load_masked<T>(p, ((1u << last) - 1) & ~((1u << first) - 1));
#else
  T lanes[kLanes<T>] = {};
  for (int i = first; i < last; ++i) lanes[i] = p[i];
  return load<T>(lanes);
#endif
}

// b, unless a is larger (smaller): b also where either is NaN and where both are zeros. x86 has instructions for just this,
// into which compilers do not make a comparison and a choice. (By masks of all lanes: GCC 12 warns of the plain intrinsics.)
#if defined(__AVX512F__)
TS_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
TS_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
TS_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b); }
TS_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b); }
#elif defined(__AVX2__)
TS_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b); }
TS_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b); }
TS_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b); }
TS_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b); }
#else
template <class V>
TS_INLINE V larger(V a, V b) { return a > b ? a : b; }
template <class V>
TS_INLINE V smaller(V a, V b) { return a < b ? a : b; }
#endif

// relu(NaN) = NaN and relu(-0.) = -0. as in torch: only what is < 0 changes.
template <class T>
TS_INLINE Vec<T> relu(Vec<T> v) {
  return larger(Vec<T>{}, v);
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

// Sums the lanes of L vectors at once: lane i of the result is the sum of v[i]. Each round halves the vectors.
template <class T>
TS_INLINE Vec<T> sum_each(Vec<T> (&v)[kLanes<T>]) {
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = zip_low<T>(v[i], v[i + half]) + zip_high<T>(v[i], v[i + half]);
  return v[0];
}

// Transposes a square of kLanes vectors in registers: log2(lanes) rounds of perfect shuffles.
template <class T>
TS_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {  // shuffles that cross the halves cost more here: within them first, then 8 that swap halves
    __m256 pair[8];
    __m256d quad[8];
    for (int i = 0; i < 8; i += 2) {
      pair[i] = _mm256_unpacklo_ps((__m256)rows[i], (__m256)rows[i + 1]);
      pair[i + 1] = _mm256_unpackhi_ps((__m256)rows[i], (__m256)rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
      for (int j = 0; j < 2; ++j) {
        quad[i + 2 * j] = _mm256_unpacklo_pd((__m256d)pair[i + j], (__m256d)pair[i + j + 2]);
        quad[i + 2 * j + 1] = _mm256_unpackhi_pd((__m256d)pair[i + j], (__m256d)pair[i + j + 2]);
      }
    for (int i = 0; i < 4; ++i) {
      rows[i] = (Vec<T>)_mm256_permute2f128_pd(quad[i], quad[i + 4], 0x20);
      rows[i + 4] = (Vec<T>)_mm256_permute2f128_pd(quad[i], quad[i + 4], 0x31);
    }
    return;
  }
#endif
  for (int round = 1; round < L; round *= 2) {
    Vec<T> next[L];
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = zip_low<T>(rows[i], rows[i + L / 2]);
      next[2 * i + 1] = zip_high<T>(rows[i], rows[i + L / 2]);
    }
    for (int i = 0; i < L; ++i) rows[i] = next[i];
  }
}

// dst[c * dst_stride + r] = lane c of row r, for r < rows, c < cols. row(r, c, n) gives n lanes of row r from c on.
template <class T, class Row>
TS_INLINE void transpose_rows(T* dst, int64_t dst_stride, int64_t rows, int64_t cols, const Row& row) {
  constexpr int L = kLanes<T>;
  for (int64_t r0 = 0; r0 < rows; r0 += L) {
    const int nr = rows - r0 < L ? static_cast<int>(rows - r0) : L;
    for (int64_t c0 = 0; c0 < cols; c0 += L) {
      const int nc = cols - c0 < L ? static_cast<int>(cols - c0) : L;
      Vec<T> block[L];
      if (nr == L && nc == L) {  // by constants alone, so that it stays in registers
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) block[i] = row(r0 + i, c0, L);
        transpose<T>(block);
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) store<T>(dst + (c0 + j) * dst_stride + r0, block[j]);
        continue;
      }
      for (int i = 0; i < L; ++i) block[i] = i >= nr ? Vec<T>{} : row(r0 + i, c0, nc);
      transpose<T>(block);
      for (int j = 0; j < nc; ++j) store_some<T>(dst + (c0 + j) * dst_stride + r0, block[j], nr);
    }
  }
}
// dst[c * dst_stride + r] = src[r * src_stride + c] for r < rows, c < cols.
template <class T>
void transpose_copy(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t rows, int64_t cols) {
  transpose_rows<T>(dst, dst_stride, rows, cols, [&](int64_t r, int64_t c, int n) { return load_some<T>(src + r * src_stride + c, n); });
}

// The same for a dst without gaps: dst_stride = rows. Whole vectors are stored, each column's over what lies beyond the one
// before, so up to kLanes elements behind dst are written.
template <class T>
void transpose_whole(T* dst, int64_t rows, const T* src, int64_t src_stride, int64_t cols) {
  constexpr int L = kLanes<T>;
  if (rows > L) return transpose_copy<T>(dst, rows, src, src_stride, rows, cols);
  for (int64_t c = 0; c < cols; c += L) {
    const int n = cols - c < L ? static_cast<int>(cols - c) : L;
    Vec<T> block[L];
    for (int i = 0; i < L; ++i) block[i] = i < rows ? load_some<T>(src + i * src_stride + c, n) : Vec<T>{};
    for (int i = 0; i < rows; ++i) __builtin_prefetch(src + (i + rows) * src_stride + c);  // where the next rows are
    transpose<T>(block);
    for (int j = 0; j < n; ++j) store<T>(dst + (c + j) * rows, block[j]);
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

}  // namespace ts::TS_ISA
