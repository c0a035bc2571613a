// conv2d's tensors -> its Dims, with the checks, the same on every device.
#pragma once

#include "../contract/conv2d.h"
#include "tensors.h"

namespace ts::conv2d {

inline void add_pool(Dims& d, const Ints& pool) {
  if (pool.empty()) return;
  require(pool.size() == 6, "conv2d: pool is [] or [kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w]");
  d.pool = true;
  d.window = maxpool2d::geometry(d.OH, d.OW, pool[0], pool[1], pool[2], pool[3], pool[4], pool[5], 1, 1, false);
}

template <class Tensor>
Dims dims_of(const Tensor& input, const Tensor& weight, int64_t bias, const Ints& stride, const Ints& padding,
             const Ints& dilation, int64_t groups, bool relu, const Ints& pool) {
  require(input.dim() == 4 && weight.dim() == 4, "conv2d: input and weight need 4 dimensions");
  require(stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
          "conv2d: stride and dilation need 2 values, padding 4 (top, left, bottom, right)");
  Dims d = dims({input.size(0), input.size(1), input.size(2), input.size(3)},
                {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, bias, stride[0], stride[1],
                {padding[0], padding[1], padding[2], padding[3]}, dilation[0], dilation[1], groups, relu);
  add_pool(d, pool);
  return d;
}

inline Ints result_size(const Dims& d) {
  return d.pool ? Ints{d.N, d.K, d.window.OH, d.window.OW} : Ints{d.N, d.K, d.OH, d.OW};
}
// Without a pool the op returns an empty tensor of bytes.
inline ScalarType position_type(const Dims& d) {
  return !d.pool || maxpool2d::byte_position(d.window) ? ScalarType::Byte : ScalarType::Int;
}

template <class Tensor>
Dims forward_dims(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias, const Ints& stride, const Ints& padding,
                  const Ints& dilation, int64_t groups, bool relu, const Ints& pool) {
  check_types("conv2d", input, weight, bias);
  return dims_of(input, weight, size_of_bias(bias), stride, padding, dilation, groups, relu, pool);
}

template <class Tensor>
Dims backward_dims(const Tensor& grad, const Tensor& input, const Tensor& weight, const Maybe<Tensor>& output,
                   const Maybe<Tensor>& position, const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                   bool relu, const Ints& pool) {
  check_types("conv2d", input, grad, weight, output);
  const Dims d = dims_of(input, weight, -1, stride, padding, dilation, groups, relu, pool);
  require(sizes_of(grad) == result_size(d), "conv2d: the gradient does not have the output's shape");
  require(!relu || (output.has_value() && output->numel() == grad.numel()), "conv2d: relu needs the output");
  require(!d.pool || (position.has_value() && position->numel() == grad.numel() &&
                      position->scalar_type() == position_type(d)),
          "conv2d: pool needs the positions");
  return d;
}

}  // namespace ts::conv2d
