// max_pool2d on the CPU, a plane at a time. Formula, ties and shapes: contract/maxpool2d.h; the planes: pool.h.
#include "../contract/maxpool2d.h"

#include "pool.h"

namespace ts {
TS_DECLARE(maxpool2d_forward, maxpool2d::Forward)
TS_DECLARE(maxpool2d_backward, maxpool2d::Backward)
}  // namespace ts

namespace ts::TS_ISA {

TS_INLINE int64_t planes_a_thread(const Geometry& d) {
  return max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, d.OH * d.OW * d.KH * d.KW));
}

template <class T, class P>
void pool_planes(const maxpool2d::Forward<T>& p) {
  const Geometry d = p.d;
  parallel(p.planes, planes_a_thread(d), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      pool_plane<T, P>(d, p.x + i * d.H * d.W, d.W, p.y + i * d.OH * d.OW,
                       static_cast<P*>(p.position) + i * d.OH * d.OW);
  });
}

template <class T>
void maxpool2d_forward(const maxpool2d::Forward<T>& p) {
  if (maxpool2d::byte_position(p.d)) pool_planes<T, uint8_t>(p);
  else pool_planes<T, int32_t>(p);
}

template <class T, class P>
void unpool_planes(const maxpool2d::Backward<T>& p) {
  const Geometry d = p.d;
  parallel(p.planes, planes_a_thread(d), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      unpool_plane<T, P>(d, p.g + i * d.OH * d.OW, nullptr, static_cast<const P*>(p.position) + i * d.OH * d.OW,
                         p.dx + i * d.H * d.W);
  });
}

template <class T>
void maxpool2d_backward(const maxpool2d::Backward<T>& p) {
  if (maxpool2d::byte_position(p.d)) unpool_planes<T, uint8_t>(p);
  else unpool_planes<T, int32_t>(p);
}

TS_INSTANTIATE(maxpool2d_forward, maxpool2d::Forward)
TS_INSTANTIATE(maxpool2d_backward, maxpool2d::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "glue.h"

namespace ts {
namespace {

maxpool2d::Geometry geometry_of(int64_t H, int64_t W, const Ints& kernel, const Ints& stride, const Ints& padding,
                     const Ints& dilation, bool ceil_mode) {
  for (const Ints* v : {&kernel, &stride, &padding, &dilation}) require(v->size() == 2, "max_pool2d: pairs expected");
  return maxpool2d::geometry(H, W, kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1], dilation[0],
                             dilation[1], ceil_mode);
}

std::tuple<Tensor, Tensor> maxpool2d_forward(const Tensor& input, const Ints& kernel, const Ints& stride,
                                             const Ints& padding, const Ints& dilation, bool ceil_mode) {
  check_types("max_pool2d", input);
  require(input.dim() == 4 && input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0,
          "max_pool2d: input needs 4 dimensions (N, C, H, W), none but N empty");
  const auto type = input.scalar_type();
  const maxpool2d::Geometry d = geometry_of(input.size(2), input.size(3), kernel, stride, padding, dilation, ceil_mode);
  const Tensor x = operand(input, type);
  const Ints sizes{input.size(0), input.size(1), d.OH, d.OW};
  const Tensor y = empty(sizes, compute_type(type));
  const Tensor position = empty(sizes, maxpool2d::byte_position(d) ? ScalarType::Byte : ScalarType::Int);
  with_type(type, [&]<class T>(T) {
    const maxpool2d::Forward<T> p{d, sizes[0] * sizes[1], in<T>(x), out<T>(y), position.mutable_data_ptr()};
    TS_CALL(maxpool2d_forward<T>, p);
  });
  const Tensor result = cast(y, type);
  return {is_channels_last(input) ? to_channels_last(result) : result, position};
}

Tensor maxpool2d_backward(const Tensor& grad, const Tensor& position, const Ints& input_size, const Ints& kernel,
                          const Ints& stride, const Ints& padding, const Ints& dilation, bool ceil_mode) {
  check_types("max_pool2d", grad);
  require(input_size.size() == 4 && grad.dim() == 4, "max_pool2d: 4 dimensions expected");
  const auto type = grad.scalar_type();
  const maxpool2d::Geometry d = geometry_of(input_size[2], input_size[3], kernel, stride, padding, dilation, ceil_mode);
  require(grad.size(2) == d.OH && grad.size(3) == d.OW && grad.size(0) == input_size[0] &&
              grad.size(1) == input_size[1] && position.numel() == grad.numel(),
          "max_pool2d: the gradient does not have the output's shape");
  const Tensor g = operand(grad, type), at = dense(position);
  const Tensor dx = empty(input_size, compute_type(type));
  with_type(type, [&]<class T>(T) {
    const maxpool2d::Backward<T> p{d, input_size[0] * input_size[1], in<T>(g), at.const_data_ptr(), out<T>(dx)};
    TS_CALL(maxpool2d_backward<T>, p);
  });
  const Tensor result = cast(dx, type);
  return is_channels_last(grad) ? to_channels_last(result) : result;
}

}  // namespace
}  // namespace ts

STABLE_TORCH_LIBRARY_FRAGMENT(torchsmith, m) {
  m.def("maxpool2d_forward(Tensor input, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) "
        "-> (Tensor, Tensor)");
  m.def("maxpool2d_backward(Tensor grad, Tensor position, SymInt[] input_size, int[] kernel, int[] stride, "
        "int[] padding, int[] dilation, bool ceil_mode) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(torchsmith, CPU, m) {
  m.impl("maxpool2d_forward", TORCH_BOX(&ts::maxpool2d_forward));
  m.impl("maxpool2d_backward", TORCH_BOX(&ts::maxpool2d_backward));
}
static const ts::Registered forward{"maxpool2d_forward", "cpu", ts::kAllFloats};
static const ts::Registered backward{"maxpool2d_backward", "cpu", ts::kAllFloats};
#endif
