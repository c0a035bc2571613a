// What the torch side of every CPU op needs: allocation, layouts, dtypes. Only the baseline object includes it (TS_GLUE).
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common.h"

namespace ts {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;
using Ints = std::vector<int64_t>;

inline Tensor empty_strided(const Ints& sizes, const Ints& strides, ScalarType type) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor empty(const Ints& sizes, ScalarType type) {
  Ints strides(sizes.size(), 1);
  for (int d = static_cast<int>(sizes.size()) - 2; d >= 0; --d)
    strides[d] = strides[d + 1] * (sizes[d + 1] > 1 ? sizes[d + 1] : 1);
  return empty_strided(sizes, strides, type);
}

inline Ints sizes_of(const Tensor& t) { return Ints(t.sizes().begin(), t.sizes().end()); }
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// N, C, H, W in memory order N, H, W, C, and not also plain contiguous: the layout torch calls channels_last.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  const auto n = t.sizes(), s = t.strides();
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (n[d] != 1 && s[d] != expected) return false;
    expected *= n[d];
  }
  return true;
}
inline Tensor to_channels_last(const Tensor& t) {
  return torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
}

// Kernels compute in float32 or float64; bfloat16 and float16 come in and go out through float32.
inline ScalarType compute_type(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline Tensor cast(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}
// The operand as the kernels read it: contiguous, of the computing type.
inline Tensor operand(const Tensor& t, ScalarType type) { return dense(cast(t, compute_type(type))); }
inline Maybe operand(const Maybe& t, ScalarType type) {
  return t.has_value() ? Maybe(operand(*t, type)) : std::nullopt;
}

// Elements of a bias; -1 for none, -2 for one that is not a vector, which fits nothing.
inline int64_t size_of_bias(const Maybe& b) { return !b.has_value() ? -1 : b->dim() == 1 ? b->size(0) : -2; }

template <class T>
const T* in(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }
template <class T>
const T* in(const Maybe& t) { return t.has_value() ? in<T>(*t) : nullptr; }
template <class T>
T* out(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }
template <class T>
T* out_if(bool wanted, const Tensor& t) { return wanted ? out<T>(t) : nullptr; }

// Checks that every tensor has the dtype of the first: callers of torch.ops get an error, not misread memory.
template <class... Rest>
void check_types(const char* op, const Tensor& first, const Rest&... rest) {
  const ScalarType t = first.scalar_type();
  STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16 || t == ScalarType::Half,
                  op, ": float32, float64, bfloat16 or float16 expected, got dtype number ", static_cast<int>(t));
  [[maybe_unused]] auto same = [&](const auto& other) {
    if constexpr (std::is_same_v<std::decay_t<decltype(other)>, Maybe>) {
      if (other.has_value()) STD_TORCH_CHECK(other->scalar_type() == t, op, ": all arguments need one dtype");
    } else {
      STD_TORCH_CHECK(other.scalar_type() == t, op, ": all arguments need one dtype");
    }
  };
  (same(rest), ...);
}

// Calls f(T{}) with the computing type of a dtype.
template <class F>
void with_type(ScalarType type, const F& f) {
  if (type == ScalarType::Double) f(double{});
  else f(float{});
}

constexpr const char* kAllFloats = "float32,float64,bfloat16,float16";

}  // namespace ts
