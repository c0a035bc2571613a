// max_pool2d on CUDA tensors: the torch side of maxpool2d.cuh.
#include "../glue/maxpool2d.h"

#include "glue.cuh"
#include "maxpool2d.cuh"

namespace ts::cuda {
namespace {

Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// Dense, in the memory order of `like`. With one channel, or one cell, the orders are the same and count as contiguous.
Tensor empty_like_layout(const OnDevice& on, const Ints& sizes, ScalarType type, const Tensor& like) {
  return on.empty_strided(sizes, is_channels_last(like) ? channels_last_strides(sizes) : contiguous_strides(sizes), type);
}
// A dimension of size 1 may have any stride: whether channels are innermost is asked of the tensor we made.
Strides dense_strides(const Tensor& t, bool channels_last) {
  const int64_t C = t.size(1), H = t.size(2), W = t.size(3);
  return channels_last ? Strides{C * H * W, 1, W * C, C} : Strides{C * H * W, H * W, W, 1};
}

std::tuple<Tensor, Tensor> maxpool2d_forward_cuda(const Tensor& input, const Ints& kernel, const Ints& stride,
                                                  const Ints& padding, const Ints& dilation, bool ceil_mode) {
  const Geometry d = maxpool2d::forward_geometry(input, kernel, stride, padding, dilation, ceil_mode);
  const OnDevice on(input);
  const Ints sizes{input.size(0), input.size(1), d.OH, d.OW};
  const Tensor y = empty_like_layout(on, sizes, input.scalar_type(), input);
  const Tensor position = empty_like_layout(on, sizes, maxpool2d::position_type(d), input);
  with_element(input.scalar_type(), [&]<class T>(T) {
    const PoolForward<T> p{d,      sizes[0],  sizes[1],          in<T>(input),
                           out<T>(y), out<void>(position), strides_of(input), dense_strides(y, is_channels_last(input))};
    pool_forward(p, plan_pool_forward(p), on.stream());
  });
  return {y, position};
}

Tensor maxpool2d_backward_cuda(const Tensor& grad, const Tensor& position, const Ints& input_size, const Ints& kernel,
                               const Ints& stride, const Ints& padding, const Ints& dilation, bool ceil_mode) {
  const Geometry d =
      maxpool2d::backward_geometry(grad, position, input_size, kernel, stride, padding, dilation, ceil_mode);
  check_devices("max_pool2d", grad, position);
  require(position.scalar_type() == maxpool2d::position_type(d) && sizes_of(position) == sizes_of(grad),
          "max_pool2d: the positions are not of the forward pass with these parameters");
  const OnDevice on(grad);
  const Tensor dx = empty_like_layout(on, input_size, grad.scalar_type(), position);  // whose layout was the input's
  with_element(grad.scalar_type(), [&]<class T>(T) {
    const PoolBackward<T> p{d,         input_size[0],     input_size[1],        in<T>(grad),
                            in<void>(position), out<T>(dx), strides_of(grad), strides_of(position),
                            dense_strides(dx, is_channels_last(position))};
    pool_backward(p, plan_pool_backward(p), on.stream());
  });
  return dx;
}

}  // namespace
}  // namespace ts::cuda

TS_CUDA_KERNELS(m) {
  m.impl("maxpool2d_forward", TORCH_BOX(&ts::cuda::maxpool2d_forward_cuda));
  m.impl("maxpool2d_backward", TORCH_BOX(&ts::cuda::maxpool2d_backward_cuda));
}
static const ts::cuda::Registered forward{"maxpool2d_forward"};
static const ts::cuda::Registered backward{"maxpool2d_backward"};
