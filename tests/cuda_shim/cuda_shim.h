// CUDA C++ for the host: the names a kernel uses, on top of grid.h. Included by csrc/cuda/platform.cuh when g++ compiles.
//
// Not modelled: the order in which memory operations become visible to other threads, blocks that run at the same time
// (save in a cooperative launch), occupancy, fast-math. `__shared__` is missing on purpose: kernels take their shared
// memory from shared<T>() (platform.cuh), which here is a heap block of exactly the size the launch asked for.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "grid.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

#define threadIdx (::shim::self().index)
#define blockIdx (::shim::self().block->index)
#define blockDim (::shim::running.block)
#define gridDim (::shim::running.grid)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

using cudaStream_t = void*;

// ---------------------------------------------------------------------------------------------- 16-bit types

struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };

inline float __half2float(__half h) { return static_cast<float>(std::bit_cast<_Float16>(h.bits)); }
inline __half __float2half_rn(float f) { return {std::bit_cast<uint16_t>(static_cast<_Float16>(f))}; }
inline float __bfloat162float(__nv_bfloat16 b) { return std::bit_cast<float>(static_cast<uint32_t>(b.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if (f != f) return {0x7fff};
  return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

// ---------------------------------------------------------------------------------------------- barriers

inline void __syncthreads(shim::Site site = shim::Site::current()) { shim::block_barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, shim::Site site = shim::Site::current()) {
  shim::meet(mask, [](void**, unsigned) {}, nullptr, site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---------------------------------------------------------------------------------------------- shuffles and votes

namespace shim {

template <class T>
struct Shuffle {
  T value;
  unsigned source;
  T result;
};

template <class T>
void exchange(void** arguments, unsigned mask) {
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    auto* mine = static_cast<Shuffle<T>*>(arguments[__builtin_ctz(rest)]);
    if (!(mask >> mine->source & 1)) fail("shuffle from lane %u, which the mask %08x does not name", mine->source, mask);
    mine->result = static_cast<Shuffle<T>*>(arguments[mine->source])->value;
  }
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const Site& site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  Shuffle<T> s{value, source, value};
  meet(mask, &exchange<T>, &s, site);
  return s.result;
}

struct Vote {
  bool holds;
  unsigned ballot;
};
inline void count_votes(void** arguments, unsigned mask) {
  unsigned ballot = 0;
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    const unsigned i = __builtin_ctz(rest);
    ballot |= static_cast<unsigned>(static_cast<Vote*>(arguments[i])->holds) << i;
  }
  for (unsigned rest = mask; rest; rest &= rest - 1) static_cast<Vote*>(arguments[__builtin_ctz(rest)])->ballot = ballot;
}
inline unsigned lane() { return self().number % kWarp; }

}  // namespace shim

template <class T>
T __shfl_sync(unsigned mask, T v, int source, shim::Site site = shim::Site::current()) {
  return shim::shuffle(mask, v, static_cast<unsigned>(source) % 32, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int with, shim::Site site = shim::Site::current()) {
  return shim::shuffle(mask, v, (shim::lane() ^ static_cast<unsigned>(with)) % 32, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, shim::Site site = shim::Site::current()) {
  return shim::shuffle(mask, v, shim::lane() + by < 32 ? shim::lane() + by : shim::lane(), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, shim::Site site = shim::Site::current()) {
  return shim::shuffle(mask, v, shim::lane() >= by ? shim::lane() - by : shim::lane(), site);
}
inline unsigned __ballot_sync(unsigned mask, bool holds, shim::Site site = shim::Site::current()) {
  shim::Vote v{holds, 0};
  shim::meet(mask, &shim::count_votes, &v, site);
  return v.ballot;
}
inline bool __any_sync(unsigned mask, bool holds, shim::Site site = shim::Site::current()) {
  return __ballot_sync(mask, holds, site) != 0;
}
inline bool __all_sync(unsigned mask, bool holds, shim::Site site = shim::Site::current()) {
  return __ballot_sync(mask, holds, site) == mask;
}

// ---------------------------------------------------------------------------------------------- what was launched

namespace shim {

// Every kernel a library can launch adds itself here when the library is loaded; a launch adds to the count.
struct Kernel {
  std::string name;
  long launches = 0;
  size_t threads = 0, shared = 0;  // the most of any launch
};
inline std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

template <auto kernel>
struct Entry {
  static size_t add() {
    // "... [with auto kernel = ts::cuda::gemm_kernel<...>]"
    std::string name = __PRETTY_FUNCTION__;
    const size_t from = name.find("kernel = ") + 9;
    name = name.substr(from, name.rfind(']') - from);
    name = name.substr(0, name.find("; size_t"));
    kernels().push_back({name});
    return kernels().size() - 1;
  }
  static inline const size_t number = add();
};

template <auto kernel, class... P>
void launch(void (*)(P...), dim3 grid, dim3 block, size_t shared, bool cooperative, std::type_identity_t<P>... args) {
  Kernel& k = kernels()[Entry<kernel>::number];
  ++k.launches;
  k.threads = std::max<size_t>(k.threads, block.x * block.y * block.z);
  k.shared = std::max(k.shared, shared);
  const std::string name = k.name;
  run(name.c_str(), grid, block, shared, cooperative, [&] { kernel(args...); });
}

}  // namespace shim
