// The one place that knows which compiler reads a kernel: nvcc, for the device, or the host's, with tests/cuda_shim (which
// executes) or csrc/plans (which only writes launches down).
// Also what kernels need of numbers: conversions, 16-byte chunks, division.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_shim.h"
#endif

namespace ts::cuda {

using half = __half;
using bfloat16 = __nv_bfloat16;

constexpr int kWarpSize = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Dynamic shared memory of the block, as much as its launch asked for: the only kind kernels use. 16-byte aligned.
template <class T>
__device__ __forceinline__ T* shared() {
#if defined(__CUDACC__)
  extern __shared__ uint4 pool[];
  return reinterpret_cast<T*>(pool);
#else
  return reinterpret_cast<T*>(shim::self().block->shared);
#endif
}

// ---------------------------------------------------------------------------------------------- numbers

// Sums are kept in float, of float64 in double.
template <class T>
struct Sum { using Type = float; };
template <>
struct Sum<double> { using Type = double; };
template <class T>
using SumOf = typename Sum<T>::Type;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(half v) { return __half2float(v); }
__device__ __forceinline__ float widen(bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T narrow(SumOf<T> v) {
  if constexpr (sizeof(T) > 2) return v;
  else if constexpr (std::is_same_v<T, half>) return __float2half_rn(v);
  else return __float2bfloat16_rn(v);
}

// relu(NaN) = NaN, relu(-0.) = -0.; its gradient at 0 is 0 and at NaN it is 1: as ATen.
template <class S>
__device__ __forceinline__ S relu(S v) { return v < S(0) ? S(0) : v; }
template <class T>
__device__ __forceinline__ bool relu_passes(T y) { return !(widen(y) <= SumOf<T>(0)); }

template <class A, class B>
__host__ __device__ constexpr auto ceil_div(A a, B b) { return (a + b - 1) / b; }

// Division by a number known at launch. One of 64-bit numbers is a subroutine of ~100 instructions; this is the upper half of a
// product: with 2^(l-1) < d <= 2^l and m = floor(2^(63+l) / d) + 1, m d exceeds 2^(63+l) by at most 2^l, so that
// n m >> (63 + l) = n / d for every 0 <= n < 2^63.
struct Divisor {
  int64_t d;
  uint64_t multiplier;
  int shift;  // of the upper 64 bits; -1: d = 1

  Divisor(int64_t d) : d(d), multiplier(0), shift(-1) {
    if (d <= 1) return;
    int l = 1;
    while (l < 63 && (int64_t(1) << l) < d) ++l;
    multiplier = static_cast<uint64_t>((static_cast<unsigned __int128>(1) << (63 + l)) / d) + 1;
    shift = l - 1;
  }
  __device__ __forceinline__ int64_t divide(int64_t n) const {
    return shift < 0 ? n : static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(n), multiplier) >> shift);
  }
  // n = divide(n) * d + the remainder: returns the remainder, n becomes the quotient.
  __device__ __forceinline__ int64_t split(int64_t& n) const {
    const int64_t quotient = divide(n), remainder = n - quotient * d;
    n = quotient;
    return remainder;
  }
};

// ---------------------------------------------------------------------------------------------- 16 bytes at a time

// N elements that are loaded and stored by one instruction: N * sizeof(T) is 4, 8 or 16, and the address a multiple of it.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T v[N];
  __device__ __forceinline__ T& operator[](int i) { return v[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};
template <class T>
constexpr int kPerChunk = 16 / sizeof(T);
template <class T>
using Chunk = Vector<T, kPerChunk<T>>;

template <class T, int N>
__device__ __forceinline__ Vector<T, N> load(const T* p) {
  Vector<T, N> v;
  if constexpr (sizeof v == 16) {
    const uint4 bits = *reinterpret_cast<const uint4*>(p);
    memcpy(&v, &bits, 16);
  } else if constexpr (sizeof v == 8) {
    const uint2 bits = *reinterpret_cast<const uint2*>(p);
    memcpy(&v, &bits, 8);
  } else {
    for (int i = 0; i < N; ++i) v[i] = p[i];
  }
  return v;
}
template <class T, int N>
__device__ __forceinline__ void store(T* p, const Vector<T, N>& v) {
  if constexpr (sizeof v == 16) {
    uint4 bits;
    memcpy(&bits, &v, 16);
    *reinterpret_cast<uint4*>(p) = bits;
  } else if constexpr (sizeof v == 8) {
    uint2 bits;
    memcpy(&bits, &v, 8);
    *reinterpret_cast<uint2*>(p) = bits;
  } else if constexpr (sizeof v == 4) {
    unsigned bits;
    memcpy(&bits, &v, 4);
    *reinterpret_cast<unsigned*>(p) = bits;
  } else {
    for (int i = 0; i < N; ++i) p[i] = v[i];
  }
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace ts::cuda
