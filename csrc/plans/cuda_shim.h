// What csrc/cuda/platform.cuh includes here: launches are written down, and nothing is ever executed.
//
// csrc/plans/<row>.cpp calls a row's launchers as its glue does, so that `torchsmith explain` shows the very launches a GPU
// would get, without a GPU or a CUDA toolkit. Kernels are compiled for their names alone; the linker drops their bodies.
// What they call does nothing. (tests/cuda_shim/ has the same names and executes them.)
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using cudaStream_t = void*;

struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };
inline float __half2float(__half) { return 0; }
inline __half __float2half_rn(float) { return {}; }
inline float __bfloat162float(__nv_bfloat16) { return 0; }
inline __nv_bfloat16 __float2bfloat16_rn(float) { return {}; }
inline uint64_t __umul64hi(uint64_t, uint64_t) { return 0; }

inline void __syncthreads() {}
inline void __syncwarp(unsigned = 0) {}
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T>
T __shfl_sync(unsigned, T v, int) { return v; }
template <class T>
T __shfl_xor_sync(unsigned, T v, int) { return v; }
template <class T>
T __shfl_down_sync(unsigned, T v, unsigned) { return v; }
template <class T>
T __shfl_up_sync(unsigned, T v, unsigned) { return v; }
inline unsigned __ballot_sync(unsigned, bool) { return 0; }
inline bool __any_sync(unsigned, bool) { return false; }
inline bool __all_sync(unsigned, bool) { return false; }

namespace shim {

struct Site {
  static Site current() { return {}; }
};
inline void grid_barrier(Site) {}

struct Block {
  dim3 index;
  char* shared = nullptr;
};
struct Thread {
  dim3 index;
  Block* block = nullptr;
};
inline Thread& self() {
  static Block block;
  static Thread thread{{}, &block};
  return thread;
}
struct Running {
  dim3 grid, block;
};
inline Running running;

// A device as launch.cuh asks for it; the plans here are told theirs.
struct Settings {
  int sm = 90, sms = 132, shared_limit = 232448;
};
inline Settings settings;

// ---------------------------------------------------------------------------------------------- launches, written down

struct Launched {
  std::string kernel;
  dim3 grid, block;
  size_t shared;
  bool cooperative;
};
inline thread_local std::vector<Launched>* log = nullptr;

template <auto kernel>
std::string name_of() {
  // g++: "... [with auto kernel = ts::cuda::f<...>; std::string = ...]", clang++: "... [kernel = &ts::cuda::f<...>]"
  std::string name = __PRETTY_FUNCTION__;
  name = name.substr(name.find("kernel = ") + 9);
  name = name.substr(0, name.rfind(']'));
  name = name.substr(0, name.find("; std::"));
  return name.empty() || name[0] != '&' ? name : name.substr(1);
}

template <auto kernel, class... P>
void launch(void (*)(P...), dim3 grid, dim3 block, size_t shared, bool cooperative, const std::type_identity_t<P>&...) {
  if (log) log->push_back({name_of<kernel>(), grid, block, shared, cooperative});
}

}  // namespace shim

#define threadIdx (::shim::self().index)
#define blockIdx (::shim::self().block->index)
#define blockDim (::shim::running.block)
#define gridDim (::shim::running.grid)
