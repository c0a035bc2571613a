// conv2d, + ReLU, + ReLU + max pool on CUDA tensors: the torch side of conv2d.cuh.
#include "../glue/conv2d.h"

#include "conv2d.cuh"
#include "glue.cuh"

namespace ts::cuda {
namespace {

ImageStrides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// Dense, in planes or with channels innermost.
Tensor empty_image(const OnDevice& on, const Ints& sizes, ScalarType type, bool last) {
  return on.empty_strided(sizes, last ? channels_last_strides(sizes) : contiguous_strides(sizes), type);
}

std::tuple<Tensor, Tensor> conv2d_forward_cuda(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias,
                                               const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                               bool relu, const Ints& pool, bool allow_tf32) {
  const conv2d::Dims d = conv2d::forward_dims(input, weight, bias, stride, padding, dilation, groups, relu, pool);
  check_devices("conv2d", input, weight, bias);
  const OnDevice on(input);
  const Tensor w = ts::dense(weight);  // small beside images: a copy where it is not
  const Maybe<Tensor> b = dense(bias);
  const Ints sizes = conv2d::result_size(d);
  const bool last = is_channels_last(input) || is_channels_last(weight);
  const Tensor y = empty_image(on, sizes, input.scalar_type(), last);
  const Tensor position = on.empty(d.pool ? sizes : Ints{0}, conv2d::position_type(d));
  with_element(input.scalar_type(), [&]<class T>(T) {
    with_math<T>(allow_tf32, on.device(), [&]<class Math>(Math) {
      const ConvForwardPlan plan = plan_conv_forward<Math>(d, on.device());
      const Tensor workspace = on.workspace(plan.workspace);
      const conv2d::Forward<T> p{d, in<T>(input), in<T>(w), in<T>(b), out<T>(y), out<void>(position)};
      conv2d_forward<Math>(p, {strides_of(input), {}, {}, last, false}, plan, out<void>(workspace), on.stream());
    });
  });
  return {y, position};
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        const Maybe<Tensor>& output, const Maybe<Tensor>& position,
                                                        const Ints& stride, const Ints& padding, const Ints& dilation,
                                                        int64_t groups, bool relu, const Ints& pool, bool need_input,
                                                        bool need_weight, bool need_bias, bool allow_tf32) {
  const conv2d::Dims d =
      conv2d::backward_dims(grad, input, weight, output, position, stride, padding, dilation, groups, relu, pool);
  check_devices("conv2d", grad, input, weight, output, position);
  require(!relu || sizes_of(*output) == sizes_of(grad), "conv2d: relu needs the output");
  const OnDevice on(grad);
  const Tensor w = ts::dense(weight);
  const Maybe<Tensor> at = d.pool ? dense(position) : std::nullopt;  // dense where it is forward's
  const auto type = grad.scalar_type();
  const bool last = is_channels_last(input);
  const Tensor dx = empty_image(on, need_input ? sizes_of(input) : Ints{0, 0, 0, 0}, type, last);
  const Tensor dw = on.empty(need_weight ? sizes_of(weight) : Ints{0}, type);
  const Tensor db = on.empty(need_bias ? Ints{d.K} : Ints{0}, type);
  with_element(type, [&]<class T>(T) {
    with_math<T>(allow_tf32, on.device(), [&]<class Math>(Math) {
      const ConvBackwardPlan plan = plan_conv_backward<Math>(d, need_input, need_weight, need_bias, on.device());
      const Tensor workspace = on.workspace(plan.workspace);
      const conv2d::Backward<T> p{d,
                                  in<T>(grad),
                                  in<T>(input),
                                  in<T>(w),
                                  relu ? in<T>(output) : nullptr,
                                  in<void>(at),
                                  out_if<T>(need_input, dx),
                                  out_if<T>(need_weight, dw),
                                  out_if<T>(need_bias, db)};
      const ConvStrides s{strides_of(input), strides_of(grad), relu ? strides_of(*output) : ImageStrides{}, false, last};
      conv2d_backward<Math>(p, s, plan, out<void>(workspace), on.stream());
    });
  });
  return {need_input ? dx : on.empty({0}, type), need_weight && is_channels_last(weight) ? to_channels_last(dw) : dw, db};
}

}  // namespace
}  // namespace ts::cuda

TS_CUDA_KERNELS(m) {
  m.impl("conv2d_forward", TORCH_BOX(&ts::cuda::conv2d_forward_cuda));
  m.impl("conv2d_backward", TORCH_BOX(&ts::cuda::conv2d_backward_cuda));
}
static const ts::cuda::Registered forward{"conv2d_forward"};
static const ts::cuda::Registered backward{"conv2d_backward"};
