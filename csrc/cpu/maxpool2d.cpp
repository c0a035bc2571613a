// max_pool2d on the CPU. Formula, ties and shapes: contract/maxpool2d.h; planes: pool.h; channels last: pool_last.h.
#include "../contract/maxpool2d.h"

#include "pool_last.h"

namespace ts {
TS_DECLARE(maxpool2d_forward, maxpool2d::Forward)
TS_DECLARE(maxpool2d_backward, maxpool2d::Backward)
}  // namespace ts

namespace ts::TS_ISA {

TS_INLINE int64_t planes_a_thread(const Geometry& d) {
  return max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, d.OH * d.OW * d.KH * d.KW));
}

template <class T, class P>
void pool_all(const maxpool2d::Forward<T>& p) {
  const Geometry d = p.d;
  P* position = static_cast<P*>(p.position);
  if (p.channels_last) return pool_last<T, P>(d, p.N, p.C, p.x, p.y, position);
  parallel(p.N * p.C, planes_a_thread(d), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      pool_plane<T, P>(d, p.x + i * d.H * d.W, d.W, p.y + i * d.OH * d.OW, position + i * d.OH * d.OW);
  });
}

template <class T>
void maxpool2d_forward(const maxpool2d::Forward<T>& p) {
  if (maxpool2d::byte_position(p.d)) pool_all<T, uint8_t>(p);
  else pool_all<T, int32_t>(p);
}

template <class T, class P>
void unpool_all(const maxpool2d::Backward<T>& p) {
  const Geometry d = p.d;
  const P* position = static_cast<const P*>(p.position);
  if (p.channels_last) return unpool_last<T, P>(d, p.N, p.C, p.g, position, p.dx);
  parallel(p.N * p.C, planes_a_thread(d), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      unpool_plane<T, P>(d, p.g + i * d.OH * d.OW, nullptr, position + i * d.OH * d.OW, p.dx + i * d.H * d.W);
  });
}

template <class T>
void maxpool2d_backward(const maxpool2d::Backward<T>& p) {
  if (maxpool2d::byte_position(p.d)) unpool_all<T, uint8_t>(p);
  else unpool_all<T, int32_t>(p);
}

TS_INSTANTIATE(maxpool2d_forward, maxpool2d::Forward)
TS_INSTANTIATE(maxpool2d_backward, maxpool2d::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "../glue/maxpool2d.h"
#include "glue.h"

namespace ts {
namespace {

template <class Tensor>
std::tuple<Tensor, Tensor> maxpool2d_forward(const Tensor& input, const Ints& kernel, const Ints& stride,
                                             const Ints& padding, const Ints& dilation, bool ceil_mode) {
  const maxpool2d::Geometry d = maxpool2d::forward_geometry(input, kernel, stride, padding, dilation, ceil_mode);
  const auto type = input.scalar_type(), c = compute_type(type);
  const bool last = is_channels_last(input);
  const Tensor x = operand(input, c, last);
  const Ints sizes{input.size(0), input.size(1), d.OH, d.OW};
  const Tensor y = empty(input, sizes, c, last);
  const Tensor position = empty(input, sizes, maxpool2d::position_type(d), last);
  with_type(c, [&]<class T>(T) {
    const maxpool2d::Forward<T> p{d, sizes[0], sizes[1], last, in<T>(x), out<T>(y), position.mutable_data_ptr()};
    TS_CALL(maxpool2d_forward<T>, p);
  });
  return {cast(y, type), position};
}

template <class Tensor>
Tensor maxpool2d_backward(const Tensor& grad, const Tensor& position, const Ints& input_size, const Ints& kernel,
                          const Ints& stride, const Ints& padding, const Ints& dilation, bool ceil_mode) {
  const maxpool2d::Geometry d =
      maxpool2d::backward_geometry(grad, position, input_size, kernel, stride, padding, dilation, ceil_mode);
  const auto type = grad.scalar_type(), c = compute_type(type);
  const bool last = is_channels_last(position);  // the layout of the input; grad's may differ
  const Tensor g = operand(grad, c, last), at = last ? position : dense(position);
  const Tensor dx = empty(grad, input_size, c, last);
  with_type(c, [&]<class T>(T) {
    const maxpool2d::Backward<T> p{d, input_size[0], input_size[1], last, in<T>(g), at.const_data_ptr(), out<T>(dx)};
    TS_CALL(maxpool2d_backward<T>, p);
  });
  return cast(dx, type);
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
  m.impl("maxpool2d_forward", TORCH_BOX(&ts::maxpool2d_forward<ts::Tensor>));
  m.impl("maxpool2d_backward", TORCH_BOX(&ts::maxpool2d_backward<ts::Tensor>));
}
static const ts::Registered forward{"maxpool2d_forward", "cpu", ts::kAllFloats};
static const ts::Registered backward{"maxpool2d_backward", "cpu", ts::kAllFloats};
static const ts::Direct<&ts::maxpool2d_forward<ts::View>> direct_forward{"maxpool2d_forward"};
static const ts::Direct<&ts::maxpool2d_backward<ts::View>> direct_backward{"maxpool2d_backward"};
#endif
