// What csrc/cuda/mma.cuh includes here: the names of its instructions, which do nothing (see cuda_shim.h).
#pragma once

namespace ts::cuda {

constexpr bool kAsyncCopies = true;
inline void cp_async16(void*, const void*, int) {}
inline void cp_async_commit() {}
template <int kPending>
void cp_async_wait() {}
inline void ldmatrix_x4(uint32_t (&)[4], const void*) {}
inline void ldmatrix_x4_trans(uint32_t (&)[4], const void*) {}
inline uint32_t to_tf32(float) { return 0; }
template <class T>
void mma(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) {}

}  // namespace ts::cuda
