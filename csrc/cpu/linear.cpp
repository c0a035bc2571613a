// linear, linear+ReLU on the CPU: three GEMMs with fused epilogues; a few rows straight from W. Formulas and shapes: contract/linear.h.
#include "../contract/linear.h"

#include "project.h"
#include "sum_rows.h"

namespace ts {
TS_DECLARE(linear_forward, linear::Forward)
TS_DECLARE(linear_backward, linear::Backward)
}  // namespace ts

namespace ts::TS_ISA {

template <class T>
void linear_forward(const linear::Forward<T>& p) {
  project<T>(p.d.M, p.d.K, p.d.N, p.x, p.w, p.bias, p.d.relu, p.y);
}

template <class T>
void linear_backward(const linear::Backward<T>& p) {
  using W = Wide<T>;
  const auto [M, K, N, relu] = p.d;
  const T* g = p.g;
  if (relu) {
    T* masked = scratch<T>(Slot::gradient, M * N);
    parallel(M, max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, N)), [&](int64_t begin, int64_t end) {
      const T *const from = p.g + begin * p.d.N, *const y = p.y + begin * p.d.N;  // not read again after each store
      T* const to = masked + begin * p.d.N;
      for_vectors<W>((end - begin) * p.d.N, [&](int64_t i, int n) {
        store_wide(to + i, relu_gradient<W>(load_wide(from + i, n), load_wide(y + i, n)), n);
      });
    });
    g = masked;
  }
  if (p.dx) project_back<T>(M, K, N, g, p.w, p.dx, false);
  if (p.dw) weight_gradient<T>(M, K, N, g, p.x, p.dw);
  if (p.db) sum_rows(g, M, N, p.db);
}

TS_INSTANTIATE_BF16(linear_forward, linear::Forward)
TS_INSTANTIATE_BF16(linear_backward, linear::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "../glue/linear.h"
#include "glue.h"

namespace ts {
namespace {

// allow_tf32 concerns CUDA alone.
template <class Tensor>
Tensor linear_forward(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias, bool relu, bool /*allow_tf32*/) {
  const linear::Dims d = linear::forward_dims(input, weight, bias, relu);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Tensor x = operand(input, c), w = operand(weight, c);
  const Maybe<Tensor> b = operand(bias, c);
  Ints sizes = sizes_of(input);
  sizes.back() = d.N;
  const Tensor y = empty(input, sizes, c);
  with_kernel_type(c, [&]<class T>(T) {
    const linear::Forward<T> p{d, in<T>(x), in<T>(w), in<T>(b), out<T>(y)};
    TS_CALL(linear_forward<T>, p);
  });
  return cast(y, type);
}

template <class Tensor>
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const Maybe<Tensor>& output, bool relu, bool need_input, bool need_weight,
                                                   bool need_bias, bool /*allow_tf32*/) {
  const linear::Dims d = linear::backward_dims(grad, input, weight, output, relu);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Tensor g = operand(grad, c), x = operand(input, c), w = operand(weight, c);
  const Maybe<Tensor> y = operand(output, c);
  const Tensor dx = empty(input, need_input ? sizes_of(input) : Ints{0}, c);
  const Tensor dw = empty(input, need_weight ? Ints{d.N, d.K} : Ints{0}, c);
  const Tensor db = empty(input, need_bias ? Ints{d.N} : Ints{0}, c);
  with_kernel_type(c, [&]<class T>(T) {
    const linear::Backward<T> p{d,
                                in<T>(g),
                                in<T>(x),
                                in<T>(w),
                                in<T>(y),
                                out_if<T>(need_input, dx),
                                out_if<T>(need_weight, dw),
                                out_if<T>(need_bias, db)};
    TS_CALL(linear_backward<T>, p);
  });
  return {cast(dx, type), cast(dw, type), cast(db, type)};
}

}  // namespace
}  // namespace ts

STABLE_TORCH_LIBRARY_FRAGMENT(torchsmith, m) {
  m.def("linear_forward(Tensor input, Tensor weight, Tensor? bias, bool relu, bool allow_tf32=False) -> Tensor");
  m.def("linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor? output, bool relu, bool need_input, "
        "bool need_weight, bool need_bias, bool allow_tf32=False) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(torchsmith, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&ts::linear_forward<ts::Tensor>));
  m.impl("linear_backward", TORCH_BOX(&ts::linear_backward<ts::Tensor>));
}
static const ts::Registered forward{"linear_forward", "cpu", ts::kAllFloats};
static const ts::Registered backward{"linear_backward", "cpu", ts::kAllFloats};
static const ts::Direct<&ts::linear_forward<ts::View>> direct_forward{"linear_forward"};
static const ts::Direct<&ts::linear_backward<ts::View>> direct_backward{"linear_backward"};
#endif
