// What the launches of one GEMM do: the product, and where k is cut into shares the kernel that adds them up.
#pragma once

#include "../cuda/gemm.cuh"
#include "plans.h"

namespace ts::plans {

template <class Math>
struct ArithmeticOf;
template <class T>
struct ArithmeticOf<cuda::Simt<T>> {
  static const char* name() { return cores<T>(); }
};
template <class T>
struct ArithmeticOf<cuda::Mma<T>> {
  static const char* name() { return sizeof(T) == 4 ? "tf32" : std::is_same_v<T, cuda::half> ? "fp16" : "bf16"; }
};

// more_in, more_out: bytes that the operands' sources read, and the epilogue reads or writes, beside A, B and C
// (negative where an operand is gathered from less memory than it has elements, as the patches of a convolution are).
template <class Math>
std::vector<Work> gemm_work(const cuda::GemmPlan& p, int64_t more_in, int64_t more_out) {
  using T = typename Math::Element;
  if (p.M == 0 || (p.N == 0 && !p.row_sums)) return {};
  const char* arithmetic = ArithmeticOf<Math>::name();
  if (p.shares == 1) return {{arithmetic, p.flops, p.bytes + more_in + more_out}};
  const int64_t result = p.M * p.N * int64_t(sizeof(T)), sums = p.workspace / int64_t(sizeof(cuda::SumOf<T>));
  return {{arithmetic, p.flops, p.bytes - result + more_in + p.workspace}, {cores<T>(), sums, p.workspace + result + more_out}};
}

}  // namespace ts::plans
