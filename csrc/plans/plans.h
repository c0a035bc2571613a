// The launches of one call of a native op, on a device that need not be there.
//
// csrc/plans/<row>.cpp registers, for each native op of a row, a function that reads the op's arguments (their shapes), runs
// the row's own launchers, and says what each launch computes and moves. The build finds the files; nothing else lists them.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../cuda/launch.cuh"

namespace ts::plans {

using Ints = std::vector<int64_t>;

struct Shape {  // of a tensor
  Ints sizes, strides;
  std::string dtype;  // torch's name of it: "float32"
  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    return n;
  }
};
using Shapes = std::vector<Shape>;

// Of four dimensions, as the glue decides it: with one channel, or one cell, the two orders are the same and count as planes.
inline bool is_channels_last(const Shape& s) {
  const auto dense_in = [&](const std::vector<int>& order) {
    int64_t expected = 1;
    for (const int d : order) {
      if (s.sizes[d] != 1 && s.strides[d] != expected) return false;
      expected *= s.sizes[d];
    }
    return true;
  };
  return s.sizes.size() == 4 && !dense_in({3, 2, 1, 0}) && dense_in({1, 3, 2, 0});
}
using Value = std::variant<std::monostate, bool, int64_t, double, Ints, Shape, Shapes>;

// The arguments in the order of the op's schema. A wrong index or kind throws.
struct Call {
  std::vector<Value> arguments;
  template <class T>
  const T& get(size_t i) const { return std::get<T>(arguments.at(i)); }
  const Shape& tensor(size_t i) const { return get<Shape>(i); }
  const Ints& ints(size_t i) const { return get<Ints>(i); }
  bool flag(size_t i) const { return get<bool>(i); }
  bool has(size_t i) const { return !std::holds_alternative<std::monostate>(arguments.at(i)); }
};

// What one launch does: floating-point operations, by what kind of arithmetic ("fp64", "fp32", "tf32", "fp16", "bf16"; the
// last three on tensor cores), and bytes that must cross the device's memory: every operand read once, every result written.
struct Work {
  std::string arithmetic;
  int64_t flops, bytes;
  std::string product = {};  // where it is not that of the others
};
struct Step {
  std::string product;  // "y", "dx", ...
  shim::Launched launch;
  Work work;
};

class Steps {
 public:
  // Runs `launches`, which makes as many launches as there are works, in their order.
  template <class F>
  void add(const std::string& product, const std::vector<Work>& works, const F& launches) {
    std::vector<shim::Launched> log;
    shim::log = &log;
    try {
      launches();
    } catch (...) {
      shim::log = nullptr;
      throw;
    }
    shim::log = nullptr;
    if (log.size() != works.size())
      throw std::logic_error(product + ": " + std::to_string(log.size()) + " launches, described are " + std::to_string(works.size()));
    for (size_t i = 0; i < log.size(); ++i) {
      const Work& work = works[i];
      all.push_back({work.product.empty() ? product : work.product, std::move(log[i]), work});
    }
  }
  std::vector<Step> all;
};

using Explain = void (*)(const Call&, const cuda::Device&, Steps&);
inline std::map<std::string, Explain>& table() {
  static std::map<std::string, Explain> all;
  return all;
}
struct Registered {
  Registered(const char* op, Explain explain) { table()[op] = explain; }
};

// Calls f(T{}) with the kernels' type for torch's dtype.
template <class F>
void with_element(const std::string& dtype, const F& f) {
  if (dtype == "float32") f(float{});
  else if (dtype == "float64") f(double{});
  else if (dtype == "float16") f(cuda::half{});
  else if (dtype == "bfloat16") f(cuda::bfloat16{});
  else throw std::invalid_argument("no kernel for " + dtype);
}

// A pointer that is not null and as aligned as torch's own. Nobody reads from it.
template <class T>
T* somewhere() { return reinterpret_cast<T*>(uintptr_t(1) << 20); }

template <class T>
const char* cores() { return sizeof(cuda::SumOf<T>) == 8 ? "fp64" : "fp32"; }

}  // namespace ts::plans
