// bfloat16 beside float and double, for kernel bodies that serve all three.
//
// In memory a tensor of T; in registers and sums Wide<T> (float for bf16): load_wide, store_wide. In a product the factors
// are lanes: float and double are their own, and for bf16 a 32-bit lane holds a pair of neighbours along the dimension that
// is summed over, whose products one instruction (vdpbf16ps) adds to a float:
//   multiply_add(sum, a, b)[i] = sum[i] + a[i].low * b[i].low + a[i].high * b[i].high
// Whatever only moves lanes (panels, expanded images) takes a pair as an int32_t and needs no version of its own. A pair
// that is cut by the end of the dimension has a zero in its high half. The instruction reads and writes denormals as zeros.
// Pairs are made from bf16, or from float rounded on the way.
#pragma once

#include "../contract/types.h"
#include "simd.h"

namespace ts::TS_ISA {

template <class T>
struct LaneOf {
  using type = T;
  static constexpr int kElements = 1;
};
template <>
struct LaneOf<bf16> {
  using type = int32_t;
  static constexpr int kElements = 2;
};
template <class T>
using Lane = typename LaneOf<T>::type;
template <class T>
constexpr int kPair = LaneOf<T>::kElements;  // elements in a lane
template <class T>
TS_INLINE int64_t lanes_of(int64_t elements) { return (elements + kPair<T> - 1) / kPair<T>; }

// n elements (at most kLanes<Wide<T>>) of memory as a vector of Wide<T>, and back.
template <class T>
TS_INLINE Vec<T> load_wide(const T* p, int n) { return load_some<T>(p, n); }
template <class T>
TS_INLINE void store_wide(T* p, Vec<T> v, int n) { store_some<T>(p, v, n); }

TS_INLINE Vec<float> multiply_add(Vec<float> sum, Vec<float> a, Vec<float> b) { return sum + a * b; }
TS_INLINE Vec<double> multiply_add(Vec<double> sum, Vec<double> a, Vec<double> b) { return sum + a * b; }

#if defined(__AVX512BF16__)
TS_INLINE Vec<float> multiply_add(Vec<float> sum, Vec<int32_t> a, Vec<int32_t> b) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// Each of n 16-bit values as the lower half of a lane.
TS_INLINE Vec<int32_t> load_low(const bf16* p, int n) {
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
  Half half;
  if (n == kLanes<float>) std::memcpy(&half, p, sizeof half);
  else half = (Half)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
  return __builtin_convertvector(half, Vec<int32_t>);
}
TS_INLINE Vec<int32_t> load_low(const float* p, int n) {
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
  return __builtin_convertvector((Half)_mm512_cvtneps_pbh((__m512)load_some<float>(p, n)), Vec<int32_t>);
}
TS_INLINE Vec<float> load_wide(const bf16* p, int n) { return (Vec<float>)(load_low(p, n) << 16); }
TS_INLINE void store_wide(bf16* p, Vec<float> v, int n) {
  const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)v);  // to the nearest, ties to even
  if (n == kLanes<float>) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
  else _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), half);
}

// n elements (at most 2 * kLanes) that lie side by side, as pairs.
TS_INLINE Vec<int32_t> load_pairs(const bf16* p, int n) {
  return n == 2 * kLanes<float> ? load<int32_t>(reinterpret_cast<const int32_t*>(p))
                                : (Vec<int32_t>)_mm512_maskz_loadu_epi16((__mmask32)((uint64_t{1} << n) - 1), p);
}
TS_INLINE Vec<int32_t> load_pairs(const float* p, int n) {
  constexpr int L = kLanes<float>;
  const Vec<float> low = load_some<float>(p, min_of(n, L)), high = n > L ? load_some<float>(p + L, n - L) : Vec<float>{};
  return (Vec<int32_t>)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}
// Pairs of low[i] and high[i], i < n; high may be null: zeros.
template <class S>
TS_INLINE Vec<int32_t> zip_pairs(const S* low, const S* high, int n) {
  const Vec<int32_t> pairs = load_low(low, n);
  return high ? pairs | load_low(high, n) << 16 : pairs;
}
#endif

// One row of a register tile of R rows: sum[v] += *factor times b[v], of all v. With AVX-512 a multiply-add may take its factor
// from memory and spread it over the lanes itself: one micro-operation a sum, without one for the factor. Where a neighbour on
// the same core leaves a thread half of the decoders' slots, those are the bound (14 rows of 2 vectors: 1.16 times as fast on
// Intel's Emerald Rapids; alone on the core the same). A compiler loads a factor that it meets twice once, hence asm. Each
// sum then costs a load, of which there are two a cycle: the last 2 V rows load theirs the plain way, which keeps all below.
#if defined(__AVX512F__)
TS_INLINE Vec<float> add_spread(Vec<float> sum, const float* factor, Vec<float> b) {
  asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*factor));
  return sum;
}
TS_INLINE Vec<double> add_spread(Vec<double> sum, const double* factor, Vec<double> b) {
  asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*factor));
  return sum;
}
#if defined(__AVX512BF16__)
TS_INLINE Vec<float> add_spread(Vec<float> sum, const int32_t* factor, Vec<int32_t> b) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*factor));
  return sum;
}
#endif
#endif
template <int R, class Sum, class Cell, int V>
TS_INLINE void add_row([[maybe_unused]] int row, Sum (&sum)[V], const Cell* factor, const Vec<Cell> (&b)[V]) {
#if defined(__AVX512F__)
  if (V > 1 && row < R - 2 * V) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[v] = add_spread(sum[v], factor, b[v]);
    return;
  }
#endif
  const Vec<Cell> spread = splat<Cell>(*factor);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) sum[v] = multiply_add(sum[v], spread, b[v]);
}

// Lanes from n (at most kPair * kLanes) elements side by side.
template <class T>
TS_INLINE Vec<Lane<T>> load_lanes(const T* p, int n) {
  if constexpr (kPair<T> == 1) return load_some<T>(p, n);
  else return load_pairs(p, n);
}

// dst[c * dst_stride + r] = lane c of row r, for rows of `elements` elements of S from src: transpose_copy, of pairs.
template <class S>
void transpose_pairs(int32_t* dst, int64_t dst_stride, const S* src, int64_t src_stride, int64_t rows, int64_t elements) {
  transpose_rows<int32_t>(dst, dst_stride, rows, lanes_of<bf16>(elements), [&](int64_t r, int64_t c, int n) {
    return load_pairs(src + r * src_stride + 2 * c, static_cast<int>(min_of<int64_t>(2 * n, elements - 2 * c)));
  });
}

template <class T>
TS_INLINE Wide<T> widened(const T* p) {
  if constexpr (kPair<T> == 1) return *p;
  else return load_wide(p, 1)[0];
}
template <class T>
TS_INLINE void put(T* p, Wide<T> x) { store_wide(p, splat<Wide<T>>(x), 1); }

// to[i] (+)= from[i], rounded or widened as the types ask.
template <class To, class From>
void add_as(To* to, const From* from, int64_t count, bool accumulate) {
  for_vectors<Wide<To>>(count, [&](int64_t i, int n) {
    const auto v = load_wide(from + i, n);
    store_wide(to + i, accumulate ? load_wide(to + i, n) + v : v, n);
  });
}
template <class To, class From>
void copy_as(To* to, const From* from, int64_t count) { add_as(to, from, count, false); }

// x in full width: x itself, or for bf16 a copy in a scratch slot.
template <class T>
const Wide<T>* widened(const T* x, int64_t count, Slot slot) {
  if constexpr (kPair<T> == 1) return x;
  else {
    Wide<T>* const to = scratch<Wide<T>>(slot, count);
    copy_as(to, x, count);
    return to;
  }
}
// Where values of full width are made that end in y: y itself, or for bf16 a scratch slot; `rounded` moves them.
template <class T>
Wide<T>* wide_room(T* y, int64_t count, Slot slot) {
  if constexpr (kPair<T> == 1) return y;
  else return y ? scratch<Wide<T>>(slot, count) : nullptr;
}
template <class T>
void rounded(T* y, const Wide<T>* made, int64_t count) {
  if constexpr (kPair<T> > 1)
    if (y) copy_as(y, made, count);
}

}  // namespace ts::TS_ISA
