// Tensor cores and asynchronous copies: every line of PTX there is. The host's side: tests/cuda_shim/mma_shim.h.
//
//   cp_async16(to, from, valid)   16 bytes from global to shared memory, of which `valid` are read and the rest are 0
//                                 (not on Turing, where kAsyncCopies is false)
//   cp_async_commit()             closes a group of copies;  cp_async_wait<n>()  waits for all groups but the latest n
//   ldmatrix_x4[_trans](r, row)   four 8x8 matrices of 16-bit elements, lane 8 i + j names row j of matrix i
//   mma<T>(c, a, b)               c[16, 8] += a[16, k] b[k, 8]; T = float is TF32 with k = 8; half, bfloat16 k = 16
//
// With g = lane / 4, t = lane % 4, and words of one TF32 or of two 16-bit elements next to each other along k:
//   a: register r holds row g + 8 (r % 2), word t + 4 (r / 2);   b: register r holds column g, word t + 4 r;
//   c: register r holds row g + 8 (r / 2), column 2 t + r % 2.
#pragma once

#include "platform.cuh"

#if !defined(__CUDACC__)
#include "mma_shim.h"
#else

namespace ts::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#if __CUDA_ARCH__ >= 800

constexpr bool kAsyncCopies = true;

// .cg: past L1, which has no use for data that goes to shared memory.
__device__ __forceinline__ void cp_async16(void* to, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#else

constexpr bool kAsyncCopies = false;
__device__ __forceinline__ void cp_async_commit() {}
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {}

#endif

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

#if __CUDA_ARCH__ >= 800

// To the nearest TF32, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float f) {
  uint32_t u;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(f));
  return u;
}

#define TS_MMA(shape_and_types)                                                                                    \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float>) TS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  else if constexpr (std::is_same_v<T, half>) TS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else TS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
#undef TS_MMA

#else

// Turing's tensor cores know half only, eight deep. bfloat16 is computed from the same fragments by shuffles: right, and
// about as slow as one expects bfloat16 to be there. TF32 is never planned for Turing (see gemm.cuh).
__device__ __forceinline__ uint32_t to_tf32(float f) { return __float_as_uint(f); }

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, half>) {
    for (int i = 0; i < 2; ++i)
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                   : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                   : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int word = 0; word < 8; ++word) {
      const int half_of = word / 4, from = word % 4;
      const uint32_t rows[2] = {__shfl_sync(kWholeWarp, half_of ? a[2] : a[0], 4 * g + from),
                                __shfl_sync(kWholeWarp, half_of ? a[3] : a[1], 4 * g + from)};
      for (int j = 0; j < 2; ++j) {
        const uint32_t column = __shfl_sync(kWholeWarp, half_of ? b[1] : b[0], 4 * (2 * t + j) + from);
        for (int i = 0; i < 2; ++i) {
          // A bfloat16 is the upper half of a float: the first of the two elements is shifted up, the second masked.
          c[2 * i + j] += __uint_as_float(rows[i] << 16) * __uint_as_float(column << 16);
          c[2 * i + j] += __uint_as_float(rows[i] & 0xffff0000u) * __uint_as_float(column & 0xffff0000u);
        }
      }
    }
  } else {
    __trap();
  }
}

#endif

}  // namespace ts::cuda
#endif
