// What the torch side of every CPU op needs beside glue/tensors.h. Only the baseline object includes it (TS_GLUE).
#pragma once

#include "../glue/direct.h"
#include "../glue/tensors.h"
#include "common.h"

namespace ts {

// What torch's operators do for a call; a direct call that would need one goes through torch (glue/view.h).
inline Tensor new_empty(const Tensor&, const Ints& sizes, const Ints& strides, ScalarType type) {
  return empty_strided(sizes, strides, type, aoti_torch_device_type_cpu(), 0);
}
inline View new_empty(const View& like, const Ints& sizes, const Ints& strides, ScalarType type) {
  return like.results().empty(sizes, strides, type);
}
inline Tensor cast(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}
inline View dense(const View& t) { return t.is_contiguous() ? t : copied(t, contiguous_strides(sizes_of(t))); }
inline View cast(const View& t, ScalarType type) {
  if (t.scalar_type() == type) return t;
  return converted(is_channels_last(t) ? t : dense(t), type);
}
inline View to_channels_last(const View& t) { return copied(t, channels_last_strides(sizes_of(t))); }
inline Tensor copied_to(Tensor to, const Tensor& from) { return torch::stable::copy_(to, from); }
inline View copied_to(const View& to, const View& from) { return dense(cast(from, to.scalar_type())); }

// For the call that `like` is an argument of.
template <class Tensor>
Tensor empty(const Tensor& like, const Ints& sizes, ScalarType type) {
  return new_empty(like, sizes, contiguous_strides(sizes), type);
}
// N, C, H, W with C innermost in memory where `last`.
template <class Tensor>
Tensor empty(const Tensor& like, const Ints& sizes, ScalarType type, bool last) {
  return new_empty(like, sizes, last ? channels_last_strides(sizes) : contiguous_strides(sizes), type);
}

// Kernels compute in float32 or float64; bfloat16 and float16 come in and go out through float32.
inline ScalarType compute_type(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
// The same for an op that has bf16 kernels: bfloat16 stays where avx512_bf16 or more is in use. An op asks once: the instruction
// set may be forced from another thread at any time.
inline ScalarType kernel_type(ScalarType t) {
  return t == ScalarType::BFloat16 && isa_active() >= Isa::avx512_bf16 ? t : compute_type(t);
}
// The operand as the kernels read it: contiguous, of the type they take.
template <class Tensor>
Tensor operand(const Tensor& t, ScalarType type) { return dense(cast(t, type)); }
// The same for a kernel of either layout.
template <class Tensor>
Tensor operand(const Tensor& t, ScalarType type, bool last) {
  if (!last) return operand(t, type);
  const Tensor x = cast(t, type);
  return is_channels_last(x) ? x : to_channels_last(x);
}
template <class Tensor>
Maybe<Tensor> operand(const Maybe<Tensor>& t, ScalarType type) {
  return t.has_value() ? Maybe<Tensor>(operand(*t, type)) : std::nullopt;
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
