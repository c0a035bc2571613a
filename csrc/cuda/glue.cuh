// What the torch side of every CUDA op needs beside glue/tensors.h: the device and its stream, allocation, dtypes,
// registration. In the tests' host build the same functions run on CPU tensors, as torch.ops.torchsmith_host.*
#pragma once

#include "../glue/tensors.h"
#include "launch.cuh"

#if defined(__CUDACC__)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace ts::cuda {

// For the length of a call: the tensor's device is current, and work goes to its current stream.
class OnDevice {
 public:
#if defined(__CUDACC__)
  explicit OnDevice(const Tensor& t) : index_(t.get_device_index()), guard_(index_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  Device device() const {
    // Asked once a device: five queries of the driver cost more than a small kernel.
    constexpr int kDevices = 64;
    thread_local Device known[kDevices] = {};
    if (index_ >= kDevices) return cuda::device(index_);
    if (known[index_].sms == 0) known[index_] = cuda::device(index_);
    return known[index_];
  }
  // From torch's caching allocator, which knows the stream: safe under graph capture, and freed without waiting.
  Tensor empty(const Ints& sizes, ScalarType type) const { return empty_strided(sizes, contiguous_strides(sizes), type); }
  Tensor empty_strided(const Ints& sizes, const Ints& strides, ScalarType type) const {
    return ts::empty_strided(sizes, strides, type, aoti_torch_device_type_cuda(), index_);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#else
  explicit OnDevice(const Tensor&) {}
  Device device() const { return cuda::device(0); }
  Tensor empty(const Ints& sizes, ScalarType type) const { return empty_strided(sizes, contiguous_strides(sizes), type); }
  // Full of NaN, so that a cell no kernel writes is seen.
  Tensor empty_strided(const Ints& sizes, const Ints& strides, ScalarType type) const {
    const Tensor t = ts::empty_strided(sizes, strides, type, aoti_torch_device_type_cpu(), 0);
    if (t.numel() > 0) std::memset(t.mutable_data_ptr(), 0xff, t.numel() * t.element_size());
    return t;
  }

 private:
#endif
 public:
  cudaStream_t stream() const { return stream_; }
  Tensor workspace(int64_t bytes) const { return empty({bytes}, ScalarType::Byte); }

 private:
  cudaStream_t stream_ = {};
};

// All on one device: a kernel that is given another's address would stop the whole context.
template <class... Rest>
void check_devices(const char* op, const Tensor& first, const Rest&... rest) {
  for_each_tensor(
      [&](const Tensor& other) {
        STD_TORCH_CHECK(other.get_device_index() == first.get_device_index() && other.is_cuda() == first.is_cuda(), op,
                        ": all arguments need to be on one device");
      },
      rest...);
}

// Calls f(T{}) with the element type of a dtype.
template <class F>
void with_element(ScalarType type, const F& f) {
  if (type == ScalarType::Double) f(double{});
  else if (type == ScalarType::Half) f(half{});
  else if (type == ScalarType::BFloat16) f(bfloat16{});
  else f(float{});
}

// A tensor of rows as kernels read it in place: [.., columns], elements of a row next to each other, rows evenly apart. What is
// neither dense nor such a matrix is copied.
struct Rows {
  Tensor tensor;
  int64_t pitch;
};
inline Rows rows_of(const Tensor& t) {
  if (t.dim() == 2 && t.stride(1) == 1) return {t, t.stride(0)};
  return {dense(t), t.dim() == 0 ? 1 : t.size(t.dim() - 1)};
}
inline Maybe<Tensor> dense(const Maybe<Tensor>& t) { return t.has_value() ? Maybe<Tensor>(ts::dense(*t)) : std::nullopt; }

}  // namespace ts::cuda

#if defined(__CUDACC__)
extern "C" void ts_register(const char* op, const char* backend, const char* dtypes);  // of _cpu.so
namespace ts::cuda {
struct Registered {
  explicit Registered(const char* op) { ts_register(op, "cuda", kAllFloats); }
};
}  // namespace ts::cuda
// TS_CUDA_KERNELS(m) { m.impl(...); }
#define TS_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(torchsmith, CUDA, m)
#else
namespace ts::cuda {
struct Registered {
  explicit Registered(const char*) {}
};
}  // namespace ts::cuda
#define TS_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(torchsmith_host, CPU, m)

// What the tests ask of a host build.
extern "C" __attribute__((visibility("default"))) void ts_shim_set(int order, int sm, int sms) {
  shim::settings.order = order, shim::settings.seed = 1, shim::settings.sm = sm, shim::settings.sms = sms;
}
// The kernels that the library can launch, a line each: launches so far, the most threads and shared bytes of one, the name.
extern "C" __attribute__((visibility("default"))) const char* ts_shim_kernels() {
  static std::string text;
  text.clear();
  for (const auto& k : shim::kernels())
    text += std::to_string(k.launches) + " " + std::to_string(k.threads) + " " + std::to_string(k.shared) + " " + k.name + "\n";
  return text.c_str();
}
#endif
