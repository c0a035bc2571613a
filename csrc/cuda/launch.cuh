// The one way to launch a kernel, and what a launch plan may know of the device.
//
//   launch<gemm_kernel<...>>({.grid = .., .block = .., .shared = bytes, .stream = stream}, arguments...);
//
// Every launch is checked; a refused one raises. No <<<>>> elsewhere: the tests' host build replaces this function.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "platform.cuh"
#if defined(__CUDACC__)
#include <cooperative_groups.h>
#endif

namespace ts::cuda {

struct Device {
  int sm;            // compute capability, 10 * major + minor
  int sms;           // multiprocessors
  int shared_limit;  // bytes of shared memory that a block may ask for
};

struct Launch {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = {};
  bool cooperative = false;  // all blocks at once: grid_sync() is allowed; the plan has to see that they fit
};

#if defined(__CUDACC__)

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // said here; the next check is not to find it again
    throw std::runtime_error(std::string("torchsmith: ") + what + ": " + cudaGetErrorString(error));
  }
}

inline Device device(int index) {
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, index), "cudaDeviceGetAttribute");
    return value;
  };
  return {10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor),
          ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

// What a block may have without asking.
constexpr size_t kSharedByDefault = 48 * 1024;

template <auto kernel, class... P>
void launch_checked(void (*)(P...), const Launch& l, std::type_identity_t<P>... args) {
  if (l.shared > kSharedByDefault)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.shared)),
          "asking for shared memory");
  void* pointers[] = {static_cast<void*>(&args)..., nullptr};  // one more: a kernel may take no argument
  const auto function = reinterpret_cast<const void*>(kernel);
  check(l.cooperative ? cudaLaunchCooperativeKernel(function, l.grid, l.block, pointers, l.shared, l.stream)
                      : cudaLaunchKernel(function, l.grid, l.block, pointers, l.shared, l.stream),
        "launch of a kernel");
}

__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

#else

inline Device device(int) { return {shim::settings.sm, shim::settings.sms, shim::settings.shared_limit}; }
template <auto kernel, class... P>
void launch_checked(void (*signature)(P...), const Launch& l, std::type_identity_t<P>... args) {
  shim::launch<kernel>(signature, l.grid, l.block, l.shared, l.cooperative, args...);
}
inline void grid_sync(shim::Site site = shim::Site::current()) { shim::grid_barrier(site); }

#endif

// `args` are converted to the kernel's parameters.
template <auto kernel, class... Args>
void launch(const Launch& l, const Args&... args) {
  launch_checked<kernel>(kernel, l, args...);
}

}  // namespace ts::cuda
