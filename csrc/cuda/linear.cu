// linear, linear+ReLU on CUDA tensors: the torch side of linear.cuh.
#include "../glue/linear.h"

#include "glue.cuh"
#include "linear.cuh"

namespace ts::cuda {
namespace {

Tensor linear_forward_cuda(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias, bool relu, bool allow_tf32) {
  const linear::Dims d = linear::forward_dims(input, weight, bias, relu);
  check_devices("linear", input, weight, bias);
  const OnDevice on(input);
  const Rows x = rows_of(input), w = rows_of(weight);
  const Maybe<Tensor> b = dense(bias);
  Ints sizes = sizes_of(input);
  sizes.back() = d.N;
  const Tensor y = on.empty(sizes, input.scalar_type());
  with_element(input.scalar_type(), [&]<class T>(T) {
    with_math<T>(allow_tf32, on.device(), [&]<class Math>(Math) {
      const LinearForwardPlan plan = plan_linear_forward<Math>(d, on.device());
      const Tensor workspace = on.workspace(plan.gemm.workspace);
      const linear::Forward<T> p{d, in<T>(x.tensor), in<T>(w.tensor), in<T>(b), out<T>(y)};
      linear_forward<Math>(p, {x.pitch, w.pitch, 0, 0}, plan, out<void>(workspace), on.stream());
    });
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        const Maybe<Tensor>& output, bool relu, bool need_input,
                                                        bool need_weight, bool need_bias, bool allow_tf32) {
  const linear::Dims d = linear::backward_dims(grad, input, weight, output, relu);
  check_devices("linear", grad, input, weight, output);
  const OnDevice on(grad);
  const Rows g = rows_of(grad), x = rows_of(input), w = rows_of(weight);
  const Maybe<Tensor> y = relu ? dense(output) : std::nullopt;
  const auto type = grad.scalar_type();
  const Tensor dx = on.empty(need_input ? sizes_of(input) : Ints{0}, type);
  const Tensor dw = on.empty(need_weight ? Ints{d.N, d.K} : Ints{0}, type);
  const Tensor db = on.empty(need_bias ? Ints{d.N} : Ints{0}, type);
  with_element(type, [&]<class T>(T) {
    with_math<T>(allow_tf32, on.device(), [&]<class Math>(Math) {
      const LinearBackwardPlan plan = plan_linear_backward<Math>(d, need_input, need_weight, need_bias, on.device());
      const Tensor workspace = on.workspace(plan.workspace);
      const linear::Backward<T> p{d,
                                  in<T>(g.tensor),
                                  in<T>(x.tensor),
                                  in<T>(w.tensor),
                                  in<T>(y),
                                  out_if<T>(need_input, dx),
                                  out_if<T>(need_weight, dw),
                                  out_if<T>(need_bias, db)};
      linear_backward<Math>(p, {x.pitch, w.pitch, g.pitch, d.N}, plan, out<void>(workspace), on.stream());
    });
  });
  return {dx, dw, db};
}

}  // namespace
}  // namespace ts::cuda

TS_CUDA_KERNELS(m) {
  m.impl("linear_forward", TORCH_BOX(&ts::cuda::linear_forward_cuda));
  m.impl("linear_backward", TORCH_BOX(&ts::cuda::linear_backward_cuda));
}
static const ts::cuda::Registered forward{"linear_forward"};
static const ts::cuda::Registered backward{"linear_backward"};
