// DLPack 1.x (dmlc.github.io/dlpack), as far as torch's exchange API (torch.Tensor.__dlpack_c_exchange_api__) is used here:
// tensors as plain structs, which no release of torch changes.
#pragma once

#include <cstdint>

namespace ts::dlpack {

enum : int32_t { kCPU = 1 };
enum : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Tensor {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

inline int64_t elements(const Tensor& t) {
  int64_t n = 1;
  for (int32_t d = 0; d < t.ndim; ++d) n *= t.shape[d];
  return n;
}

// A tensor with what frees it.
struct Managed {
  uint32_t major, minor;
  void* context;
  void (*deleter)(Managed* self);
  uint64_t flags;
  Tensor tensor;
};

struct ExchangeAPI {
  uint32_t major, minor;
  ExchangeAPI* previous;
  void *allocate, *from_object;
  int (*to_object)(Managed* tensor, void** object);  // takes the tensor over
  int (*look)(void* object, Tensor* out);            // sizes and strides belong to the object
  void* current_stream;
};

}  // namespace ts::dlpack
