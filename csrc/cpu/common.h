// What every kernel body shares and what exists once: scratch memory, the parallel loop, and choosing among the bodies.
// No torch header and no std template here, so that it may be compiled for any instruction set (see isa.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../contract/types.h"
#include "isa.h"

namespace ts {

// Scratch memory of the calling thread: grows, is kept for the next call, 64-byte aligned, contents undefined.
// Each slot is one buffer; a function that calls another must not use the other's slots.
enum class Slot : int { pack_a, pack_b, image, pixels, gradient, transposed, partial, gates, state, batch, input, cells, sums, planes, pairs, wide, rows, count };
void* scratch_bytes(Slot slot, size_t bytes);

// Runs body(ctx, begin, end) over [0, n) on torch's threads, at least `grain` items a thread; nested calls run serially.
void parallel_ranges(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* ctx);
int threads();  // torch.get_num_threads(), or 1 inside a parallel loop

// Work (in multiply-adds or touched elements) below which a second thread costs more than it saves: the barrier of an
// OpenMP team takes 2-5 us here, in which one core does ~10^5 multiply-adds.
constexpr int64_t kParallelWork = 200000;

}  // namespace ts

// TS_DECLARE(fn, Args): declares template <class T> void fn(const Args<T>&) in the namespace of every instruction set.
// TS_INSTANTIATE(fn, Args): at the end of a body, makes its float and double versions.
// TS_INSTANTIATE_BF16(fn, Args): the same, and for avx512_bf16 the bf16 version.
// TS_CALL(fn<float>, args): calls the version for the active instruction set; for bf16 the only one there is.
#define TS_DECLARE_IN(isa, fn, Args) \
  namespace isa {                    \
  template <class T>                 \
  void fn(const Args<T>&);           \
  }
#if defined(__AVX512BF16__)
#define TS_INSTANTIATE(fn, Args)
#define TS_INSTANTIATE_BF16(fn, Args) template void fn<bf16>(const Args<bf16>&);
#else
#define TS_INSTANTIATE(fn, Args)               \
  template void fn<float>(const Args<float>&); \
  template void fn<double>(const Args<double>&);
#define TS_INSTANTIATE_BF16(fn, Args) TS_INSTANTIATE(fn, Args)
#endif

namespace ts {
template <template <class> class Args, class T>
constexpr bool is_bf16(const Args<T>*) { return sizeof(T) == 2; }
}  // namespace ts

#if defined(__x86_64__)
#define TS_DECLARE(fn, Args)      \
  TS_DECLARE_IN(base, fn, Args)   \
  TS_DECLARE_IN(avx2, fn, Args)   \
  TS_DECLARE_IN(avx512, fn, Args) \
  TS_DECLARE_IN(avx512_bf16, fn, Args)
#define TS_CALL(fn, args)                                                               \
  if constexpr (::ts::is_bf16(static_cast<decltype(&args)>(nullptr))) ::ts::avx512_bf16::fn(args); \
  else if (::ts::isa_active() >= ::ts::Isa::avx512) ::ts::avx512::fn(args);             \
  else if (::ts::isa_active() == ::ts::Isa::avx2) ::ts::avx2::fn(args);                 \
  else ::ts::base::fn(args)
#else
#define TS_DECLARE(fn, Args) TS_DECLARE_IN(base, fn, Args)
#define TS_CALL(fn, args) \
  if constexpr (!::ts::is_bf16(static_cast<decltype(&args)>(nullptr))) ::ts::base::fn(args)
#endif
