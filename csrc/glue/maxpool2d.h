// max_pool2d's tensors -> its Geometry, with the checks, the same on every device.
#pragma once

#include "../contract/maxpool2d.h"
#include "tensors.h"

namespace ts::maxpool2d {

inline Geometry geometry_of(int64_t H, int64_t W, const Ints& kernel, const Ints& stride, const Ints& padding,
                            const Ints& dilation, bool ceil_mode) {
  for (const Ints* v : {&kernel, &stride, &padding, &dilation}) require(v->size() == 2, "max_pool2d: pairs expected");
  return geometry(H, W, kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1],
                  ceil_mode);
}

template <class Tensor>
Geometry forward_geometry(const Tensor& input, const Ints& kernel, const Ints& stride, const Ints& padding,
                          const Ints& dilation, bool ceil_mode) {
  check_types("max_pool2d", input);
  require(input.dim() == 4 && input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0,
          "max_pool2d: input needs 4 dimensions (N, C, H, W), none but N empty");
  return geometry_of(input.size(2), input.size(3), kernel, stride, padding, dilation, ceil_mode);
}

template <class Tensor>
Geometry backward_geometry(const Tensor& grad, const Tensor& position, const Ints& input_size, const Ints& kernel,
                           const Ints& stride, const Ints& padding, const Ints& dilation, bool ceil_mode) {
  check_types("max_pool2d", grad);
  require(input_size.size() == 4 && grad.dim() == 4, "max_pool2d: 4 dimensions expected");
  const Geometry d = geometry_of(input_size[2], input_size[3], kernel, stride, padding, dilation, ceil_mode);
  require(grad.size(2) == d.OH && grad.size(3) == d.OW && grad.size(0) == input_size[0] &&
              grad.size(1) == input_size[1] && sizes_of(position) == sizes_of(grad),
          "max_pool2d: the gradient does not have the output's shape");
  return d;
}

inline ScalarType position_type(const Geometry& d) { return byte_position(d) ? ScalarType::Byte : ScalarType::Int; }

}  // namespace ts::maxpool2d
