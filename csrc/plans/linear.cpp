// linear, linear+ReLU: the launches of linear.cuh. Arguments as in the schemas of csrc/cpu/linear.cpp.
#include "../cuda/linear.cuh"

#include "gemm_work.h"

namespace ts::plans {
namespace {

// A matrix of rows: [*, columns]. Elements of a row lie side by side, or the glue copies them so that they do.
int64_t pitch(const Shape& s) {
  const size_t n = s.sizes.size();
  return n == 2 && s.strides[1] == 1 && s.strides[0] > s.sizes[1] ? s.strides[0] : s.sizes[n - 1];
}

linear::Dims dims_of(const Shape& input, const Shape& weight, bool relu) {
  const int64_t features = input.sizes.at(input.sizes.size() - 1);
  return linear::dims(features ? input.numel() / features : 0, features, weight.sizes.at(0), weight.sizes.at(1), -1, relu);
}

void forward(const Call& call, const cuda::Device& device, Steps& steps) {
  const Shape &x = call.tensor(0), &w = call.tensor(1);
  const bool bias = call.has(2);
  const linear::Dims d = dims_of(x, w, call.flag(3));
  with_element(x.dtype, [&]<class T>(T) {
    cuda::with_math<T>(call.flag(4), device, [&]<class Math>(Math) {
      const auto plan = cuda::plan_linear_forward<Math>(d, device);
      const int64_t bias_bytes = bias ? d.N * int64_t(sizeof(T)) : 0;
      std::vector<Work> works;
      if (d.M > 0 && d.N > 0 && plan.few_rows) works = {{cores<T>(), plan.gemm.flops, plan.gemm.bytes + bias_bytes}};
      else works = gemm_work<Math>(plan.gemm, 0, bias_bytes);
      const linear::Forward<T> p{d, somewhere<T>(), somewhere<T>(), bias ? somewhere<T>() : nullptr, somewhere<T>()};
      steps.add("y", works, [&] { cuda::linear_forward<Math>(p, {pitch(x), pitch(w), 0, 0}, plan, somewhere<void>(), {}); });
    });
  });
}

void backward(const Call& call, const cuda::Device& device, Steps& steps) {
  const Shape &g = call.tensor(0), &x = call.tensor(1), &w = call.tensor(2);
  const bool relu = call.flag(4), dx = call.flag(5), dw = call.flag(6), db = call.flag(7);
  const linear::Dims d = dims_of(x, w, relu);
  with_element(g.dtype, [&]<class T>(T) {
    cuda::with_math<T>(call.flag(8), device, [&]<class Math>(Math) {
      const auto plan = cuda::plan_linear_backward<Math>(d, dx, dw, db, device);
      const int64_t mask = relu ? d.M * d.N * int64_t(sizeof(T)) : 0, sums = db ? d.N * int64_t(sizeof(T)) : 0;
      const cuda::LinearPitches pitches{pitch(x), pitch(w), pitch(g), d.N};
      linear::Backward<T> p{d, somewhere<T>(), somewhere<T>(), somewhere<T>(), relu ? somewhere<T>() : nullptr, nullptr, nullptr, nullptr};
      const auto run = [&] { cuda::linear_backward<Math>(p, pitches, plan, somewhere<void>(), {}); };
      if (dx) {
        p.dx = somewhere<T>();
        steps.add("dx", gemm_work<Math>(plan.dx, mask, 0), run);
        p.dx = nullptr;
      }
      if (dw || db) {
        p.dw = dw ? somewhere<T>() : nullptr, p.db = db ? somewhere<T>() : nullptr;
        steps.add(!dw ? "db" : db ? "dw, db" : "dw", gemm_work<Math>(plan.dw, mask, sums), run);
      }
    });
  });
}

const Registered registered_forward("linear_forward", &forward);
const Registered registered_backward("linear_backward", &backward);

}  // namespace
}  // namespace ts::plans
