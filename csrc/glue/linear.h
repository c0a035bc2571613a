// linear's tensors -> its Dims, with the checks, the same on every device.
#pragma once

#include "../contract/linear.h"
#include "tensors.h"

namespace ts::linear {

template <class Tensor>
Dims dims_of(const Tensor& input, const Tensor& weight, int64_t bias, bool relu) {
  require(weight.dim() == 2, "linear: weight needs 2 dimensions, got " + std::to_string(weight.dim()));
  require(input.dim() >= 1, "linear: input needs at least 1 dimension");
  const int64_t features = input.size(input.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < input.dim(); ++d) rows *= input.size(d);
  return dims(rows, features, weight.size(0), weight.size(1), bias, relu);
}

template <class Tensor>
Dims forward_dims(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias, bool relu) {
  check_types("linear", input, weight, bias);
  return dims_of(input, weight, size_of_bias(bias), relu);
}

template <class Tensor>
Dims backward_dims(const Tensor& grad, const Tensor& input, const Tensor& weight, const Maybe<Tensor>& output, bool relu) {
  check_types("linear", input, grad, weight, output);
  const Dims d = dims_of(input, weight, -1, relu);
  require(grad.numel() == d.M * d.N, "linear: the gradient does not have the output's shape");
  require(!relu || (output.has_value() && output->numel() == grad.numel()), "linear: relu needs the output");
  return d;
}

}  // namespace ts::linear
