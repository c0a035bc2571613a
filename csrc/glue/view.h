// A tensor as DLPack describes it, for calls of CPU ops that do without torch's dispatcher (direct.h). It answers what an op's
// glue asks of torch's Tensor, and is refused where that needs one of torch's operators: such a call goes through torch.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdlib>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "dlpack.h"

namespace ts {

struct Unfit {};  // thrown where a call has to go through torch

class Results;

class View {
 public:
  View(const dlpack::Tensor& t, Results& results) : t_(&t), results_(&results), numel_(dlpack::elements(t)) {}
  int64_t dim() const { return t_->ndim; }
  int64_t size(int64_t d) const { return t_->shape[d]; }
  int64_t stride(int64_t d) const { return t_->strides[d]; }
  std::span<const int64_t> sizes() const { return {t_->shape, static_cast<size_t>(t_->ndim)}; }
  std::span<const int64_t> strides() const { return {t_->strides, static_cast<size_t>(t_->ndim)}; }
  int64_t numel() const { return numel_; }
  bool is_cpu() const { return true; }
  bool is_contiguous() const {
    if (numel_ == 0) return true;
    int64_t expected = 1;
    for (int64_t d = dim(); d-- > 0; expected *= size(d))
      if (size(d) != 1 && stride(d) != expected) return false;
    return true;
  }
  torch::headeronly::ScalarType scalar_type() const {
    using torch::headeronly::ScalarType;
    switch (t_->code << 8 | t_->bits) {
      case dlpack::kFloat << 8 | 32: return ScalarType::Float;
      case dlpack::kFloat << 8 | 64: return ScalarType::Double;
      case dlpack::kFloat << 8 | 16: return ScalarType::Half;
      case dlpack::kBfloat << 8 | 16: return ScalarType::BFloat16;
      case dlpack::kInt << 8 | 64: return ScalarType::Long;
      case dlpack::kInt << 8 | 32: return ScalarType::Int;
      case dlpack::kUInt << 8 | 8: return ScalarType::Byte;
      default: throw Unfit{};
    }
  }
  const void* const_data_ptr() const { return t_->data; }
  void* mutable_data_ptr() const { return t_->data; }
  Results& results() const { return *results_; }
  const dlpack::Tensor* tensor() const { return t_; }
  int64_t element_size() const { return t_->bits / 8; }

 private:
  const dlpack::Tensor* t_;
  Results* results_;
  int64_t numel_;
};

// The tensors that one call makes. Those not taken are freed with it.
class Results {
 public:
  Results() = default;
  Results(const Results&) = delete;
  ~Results() {
    for (int i = 0; i < count_; ++i)
      if (made_[i]) made_[i]->deleter(made_[i]);
  }

  View empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, torch::headeronly::ScalarType type) {
    using torch::headeronly::ScalarType;
    constexpr int64_t kMostBytes = 1 << 24;
    const auto [code, bits] = [&]() -> std::pair<uint8_t, uint8_t> {
      switch (type) {
        case ScalarType::Double: return {dlpack::kFloat, 64};
        case ScalarType::Half: return {dlpack::kFloat, 16};
        case ScalarType::BFloat16: return {dlpack::kBfloat, 16};
        case ScalarType::Long: return {dlpack::kInt, 64};
        case ScalarType::Int: return {dlpack::kInt, 32};
        case ScalarType::Byte: return {dlpack::kUInt, 8};
        default: return {dlpack::kFloat, 32};
      }
    }();
    int64_t bytes = bits / 8;
    for (const int64_t n : sizes) bytes *= n;
    if (bytes > kMostBytes || sizes.size() > kMostDimensions || count_ == kMost) throw Unfit{};
    // One block: what describes the tensor, then its elements, on a line of their own as torch's allocator gives them.
    void* block = nullptr;
    if (posix_memalign(&block, kLine, sizeof(Block) + bytes)) throw Unfit{};
    auto* const b = static_cast<Block*>(block);
    b->managed = {1, 0, nullptr, [](dlpack::Managed* self) { std::free(self); }, 0,
                  {b + 1, dlpack::kCPU, 0, static_cast<int32_t>(sizes.size()), code, bits, 1, b->sizes, b->strides, 0}};
    for (size_t d = 0; d < sizes.size(); ++d) b->sizes[d] = sizes[d], b->strides[d] = strides[d];
    made_[count_++] = &b->managed;
    return View(b->managed.tensor, *this);
  }

  // The tensor behind a result; it is the caller's from now on.
  dlpack::Managed* take(const View& v) {
    for (int i = 0; i < count_; ++i)
      if (made_[i] && &made_[i]->tensor == v.tensor()) return std::exchange(made_[i], nullptr);
    throw Unfit{};  // an argument, or given twice
  }

 private:
  static constexpr size_t kMostDimensions = 8, kLine = 64;
  static constexpr int kMost = 64;
  struct alignas(kLine) Block {
    dlpack::Managed managed;  // first: the deleter frees its address
    int64_t sizes[kMostDimensions], strides[kMostDimensions];
  };
  dlpack::Managed* made_[kMost];
  int count_ = 0;
};

constexpr int64_t kMostCopied = 4096;  // torch copies more faster

// The same values, dense, in memory in the order of these strides.
inline View copied(const View& v, const std::vector<int64_t>& strides) {
  if (v.numel() > kMostCopied) throw Unfit{};
  const View to = v.results().empty({v.sizes().begin(), v.sizes().end()}, strides, v.scalar_type());
  const int64_t size = v.element_size();
  std::vector<int64_t> at(v.dim(), 0);
  auto* from = static_cast<const char*>(v.const_data_ptr());
  auto* out = static_cast<char*>(to.mutable_data_ptr());
  for (int64_t i = 0; i < v.numel(); ++i) {
    std::memcpy(out, from, size);
    for (int64_t d = v.dim(); d-- > 0;) {
      from += size * v.stride(d);
      out += size * strides[d];
      if (++at[d] < v.size(d)) break;
      from -= size * v.stride(d) * v.size(d);
      out -= size * strides[d] * v.size(d);
      at[d] = 0;
    }
  }
  return to;
}

// Values of a dense tensor as float, and back: what the kernels do not take as it is. Of any size: arguments are few, and what
// was computed is not thrown away.
inline View converted(const View& v, torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  const View to = v.results().empty({v.sizes().begin(), v.sizes().end()}, {v.strides().begin(), v.strides().end()}, type);
  const auto each = [&]<class To, class From>(To, From) {
    const auto* const from = static_cast<const From*>(v.const_data_ptr());
    auto* const out = static_cast<To*>(to.mutable_data_ptr());
    for (int64_t i = 0; i < v.numel(); ++i) out[i] = static_cast<To>(static_cast<float>(from[i]));
  };
  using torch::headeronly::BFloat16;
  using torch::headeronly::Half;
  const auto from = v.scalar_type();
  if (type == ScalarType::Float && from == ScalarType::Half) each(float{}, Half{});
  else if (type == ScalarType::Float && from == ScalarType::BFloat16) each(float{}, BFloat16{});
  else if (type == ScalarType::Half && from == ScalarType::Float) each(Half{}, float{});
  else if (type == ScalarType::BFloat16 && from == ScalarType::Float) each(BFloat16{}, float{});
  else throw Unfit{};
  return to;
}

}  // namespace ts
