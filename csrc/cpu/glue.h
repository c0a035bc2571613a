// What the torch side of every CPU op needs beside glue/tensors.h. Only the baseline object includes it (TS_GLUE).
#pragma once

#include "../glue/tensors.h"
#include "common.h"

namespace ts {

inline Tensor empty_strided(const Ints& sizes, const Ints& strides, ScalarType type) {
  return empty_strided(sizes, strides, type, aoti_torch_device_type_cpu(), 0);
}
inline Tensor empty(const Ints& sizes, ScalarType type) { return empty_strided(sizes, contiguous_strides(sizes), type); }
// N, C, H, W with C innermost in memory where `last`.
inline Tensor empty(const Ints& sizes, ScalarType type, bool last) {
  return empty_strided(sizes, last ? channels_last_strides(sizes) : contiguous_strides(sizes), type);
}

// Kernels compute in float32 or float64; bfloat16 and float16 come in and go out through float32.
inline ScalarType compute_type(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
// The same for an op that has bf16 kernels: bfloat16 stays where avx512_bf16 is in use. An op asks once: the instruction
// set may be forced from another thread at any time.
inline ScalarType kernel_type(ScalarType t) {
  return t == ScalarType::BFloat16 && isa_active() == Isa::avx512_bf16 ? t : compute_type(t);
}
inline Tensor cast(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}
// The operand as the kernels read it: contiguous, of the type they take.
inline Tensor operand(const Tensor& t, ScalarType type) { return dense(cast(t, type)); }
// The same for a kernel of either layout.
inline Tensor operand(const Tensor& t, ScalarType type, bool last) {
  if (!last) return operand(t, type);
  const Tensor x = cast(t, type);
  return is_channels_last(x) ? x : to_channels_last(x);
}
inline Maybe operand(const Maybe& t, ScalarType type) {
  return t.has_value() ? Maybe(operand(*t, type)) : std::nullopt;
}

// Calls f(T{}) for the type that compute_type gave.
template <class F>
void with_type(ScalarType type, const F& f) {
  if (type == ScalarType::Double) f(double{});
  else f(float{});
}
// The same for kernel_type.
template <class F>
void with_kernel_type(ScalarType type, const F& f) {
  if (type == ScalarType::BFloat16) f(bf16{});
  else with_type(type, f);
}

}  // namespace ts
