// What the torch side of every op needs on every device: aliases, layouts, dtypes, pointers, checks. Stable ABI only.
// Where `Tensor` is a template's parameter, it is torch's or, on the CPU, the View of a direct call (view.h).
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../contract/check.h"

namespace ts {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
template <class Tensor>
using Maybe = std::optional<Tensor>;
using Ints = std::vector<int64_t>;

inline Tensor empty_strided(const Ints& sizes, const Ints& strides, ScalarType type, int32_t device_type,
                            int32_t device_index) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type, device_index, &handle));
  return Tensor(handle);
}

// Strides of dense sizes whose dimensions lie in memory in this order, outermost first.
inline Ints strides_in_order(const Ints& sizes, const Ints& order) {
  Ints strides(sizes.size(), 1);
  for (int i = static_cast<int>(order.size()) - 2; i >= 0; --i)
    strides[order[i]] = strides[order[i + 1]] * (sizes[order[i + 1]] > 1 ? sizes[order[i + 1]] : 1);
  return strides;
}
inline Ints contiguous_strides(const Ints& sizes) {
  Ints strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i > 1; --i) strides[i - 2] = strides[i - 1] * (sizes[i - 1] > 1 ? sizes[i - 1] : 1);
  return strides;
}
inline Ints channels_last_strides(const Ints& sizes) { return strides_in_order(sizes, {0, 2, 3, 1}); }

template <class Tensor>
Ints sizes_of(const Tensor& t) { return Ints(t.sizes().begin(), t.sizes().end()); }
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// N, C, H, W in memory order N, H, W, C, and not also plain contiguous: the layout torch calls channels_last.
template <class Tensor>
bool is_channels_last(const Tensor& t) {
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

// Elements of a bias; -1 for none, -2 for one that is not a vector, which fits nothing.
template <class Tensor>
int64_t size_of_bias(const Maybe<Tensor>& b) { return !b.has_value() ? -1 : b->dim() == 1 ? b->size(0) : -2; }

template <class T, class Tensor>
const T* in(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }
template <class T, class Tensor>
const T* in(const Maybe<Tensor>& t) { return t.has_value() ? in<T>(*t) : nullptr; }
template <class T, class Tensor>
T* out(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }
template <class T, class Tensor>
T* out_if(bool wanted, const Tensor& t) { return wanted ? out<T>(t) : nullptr; }

// Calls f(tensor) for each tensor among tensors and optional ones.
template <class F, class... Tensors>
void for_each_tensor(const F& f, const Tensors&... tensors) {
  [[maybe_unused]] const auto one = [&](const auto& t) {
    if constexpr (requires { t.has_value(); }) {
      if (t.has_value()) f(*t);
    } else {
      f(t);
    }
  };
  (one(tensors), ...);
}

// Checks that every tensor has the dtype of the first: callers of torch.ops get an error, not misread memory.
template <class Tensor, class... Rest>
void check_types(const char* op, const Tensor& first, const Rest&... rest) {
  const ScalarType t = first.scalar_type();
  STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16 || t == ScalarType::Half,
                  op, ": float32, float64, bfloat16 or float16 expected, got dtype number ", static_cast<int>(t));
  for_each_tensor([&](const Tensor& other) { STD_TORCH_CHECK(other.scalar_type() == t, op, ": all arguments need one dtype"); },
                  rest...);
}

constexpr const char* kAllFloats = "float32,float64,bfloat16,float16";

}  // namespace ts
