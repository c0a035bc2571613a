// conv2d, +ReLU, +ReLU+maxpool on the CPU: an image at a time, expanded in width (conv_image.h). The pool runs over the
// finished image while it is in cache. Backward: conv_weights.h, pooled conv_sparse.h. Formulas and shapes: contract/conv2d.h.
#include "../contract/conv2d.h"

#include "conv_sparse.h"

namespace ts {
TS_DECLARE(conv2d_forward, conv2d::Forward)
TS_DECLARE(conv2d_backward, conv2d::Backward)
}  // namespace ts

namespace ts::TS_ISA {

using conv2d::Dims;

struct Sizes {  // what both directions compute from the dims
  int64_t Cg, Kg, window, cells, result;
  explicit Sizes(const Dims& d)
      : Cg(d.C / d.G), Kg(d.K / d.G), window(Cg * d.KH * d.KW), cells(d.OH * d.OW),
        result(d.pool ? d.window.OH * d.window.OW : cells) {}
};

TS_INLINE Expansion input_expansion(const Dims& d) {
  return {d.C, d.H, d.W, d.PT, d.PL, 1, 1, d.KH, d.KW, d.DH, d.DW, d.SH, d.SW, d.OH, d.OW};
}
TS_INLINE Expansion gradient_expansion(const Dims& d) {  // of dL/dy, whose windows are the flipped ones
  return {d.K, d.OH, d.OW, d.DH * (d.KH - 1) - d.PT, d.DW * (d.KW - 1) - d.PL, d.SH, d.SW, d.KH, d.KW, d.DH, d.DW, 1, 1, d.H, d.W};
}

// Images a thread, or all of them on one where a single image is work enough to be split inside.
TS_INLINE int64_t images_a_thread(const Dims& d, const Sizes& s) {
  if (d.N < threads()) return max_of<int64_t>(1, d.N);
  return max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, d.K * s.window * s.cells));
}

template <class T>
void pool_image(const Dims& d, const Sizes& s, const T* image, T* y, void* position, int64_t first_plane) {
  for (int64_t k = 0; k < d.K; ++k) {
    const int64_t at = (first_plane + k) * s.result;
    if (maxpool2d::byte_position(d.window))
      pool_plane<T, uint8_t>(d.window, image + k * s.cells, d.OW, y + at, static_cast<uint8_t*>(position) + at);
    else
      pool_plane<T, int32_t>(d.window, image + k * s.cells, d.OW, y + at, static_cast<int32_t*>(position) + at);
  }
}

template <class T>
void conv2d_forward(const conv2d::Forward<T>& p) {
  const Dims d = p.d;
  const Sizes s(d);
  const Expansion e = input_expansion(d);
  T* packed = scratch<T>(Slot::transposed, d.K * s.window);
  for (int64_t g = 0; g < d.G; ++g)
    pack_weights<T>(packed + g * s.Kg * s.window, s.Kg, s.window, p.w + g * s.Kg * s.window);
  int64_t* offset = scratch<int64_t>(Slot::cells, s.window);
  e.offsets(offset, s.Cg);
  parallel(d.N, images_a_thread(d, s), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* x = expanded<T>(p.x + n * d.C * d.H * d.W, 1, e, Slot::image);
      T* y = d.pool ? scratch<T>(Slot::pixels, d.K * s.cells) : p.y + n * d.K * s.cells;
      for (int64_t g = 0; g < d.G; ++g)
        ImageProduct<T>{x + g * s.Cg * d.KW * e.plane(), offset, s.Kg, s.window, s.cells,
                        packed + g * s.Kg * s.window, p.bias ? p.bias + g * s.Kg : nullptr, d.relu}
            .run(y + g * s.Kg * s.cells);
      if (d.pool) pool_image<T>(d, s, y, p.y, p.position, n * d.K);
    }
  });
}

// The gradient of image n at the convolution's own output, [K, cells]: unpooled and masked.
template <class T>
void image_gradient(const conv2d::Backward<T>& p, const Sizes& s, int64_t n, T* to) {
  const Dims& d = p.d;
  const T *g = p.g + n * d.K * s.result, *y = p.y ? p.y + n * d.K * s.result : nullptr;
  for (int64_t k = 0; k < d.K && d.pool; ++k) {
    const int64_t at = (n * d.K + k) * s.result, o = k * s.result;
    if (maxpool2d::byte_position(d.window))
      unpool_plane<T, uint8_t>(d.window, g + o, y ? y + o : y, static_cast<const uint8_t*>(p.position) + at,
                               to + k * s.cells);
    else
      unpool_plane<T, int32_t>(d.window, g + o, y ? y + o : y, static_cast<const int32_t*>(p.position) + at,
                               to + k * s.cells);
  }
  for (int64_t i = 0; i < d.K * s.cells && !d.pool; i += kLanes<T>) {
    const int lanes = static_cast<int>(min_of<int64_t>(kLanes<T>, d.K * s.cells - i));
    store_n<T>(to + i, relu_gradient<T>(load_n<T>(g + i, lanes), load_n<T>(y + i, lanes)), lanes);
  }
}

// Weights for the data gradient: [g][c][k, kh, kw] with the window flipped, packed.
template <class T>
void flip_weights(const Dims& d, const Sizes& s, const T* w, T* packed) {
  const int64_t area = d.KH * d.KW, depth = s.Kg * area;
  T* flipped = scratch<T>(Slot::batch, s.Cg * depth);
  for (int64_t g = 0; g < d.G; ++g) {
    for (int64_t k = 0; k < s.Kg; ++k)
      for (int64_t c = 0; c < s.Cg; ++c)
        for (int64_t i = 0; i < area; ++i)
          flipped[c * depth + k * area + i] = w[((g * s.Kg + k) * s.Cg + c) * area + area - 1 - i];
    pack_weights<T>(packed + g * s.Cg * depth, s.Cg, depth, flipped);
  }
}

// dx of one image: the flipped weights over the gradient with zeros inserted between its cells.
template <class T>
void data_gradient(const Dims& d, const Sizes& s, const T* g, const T* flipped, const int64_t* offset, T* dx) {
  const Expansion e = gradient_expansion(d);
  const T* expanded_g = expanded<T>(g, 1, e, Slot::image);
  const int64_t depth = s.Kg * d.KH * d.KW;
  for (int64_t group = 0; group < d.G; ++group)
    ImageProduct<T>{expanded_g + group * s.Kg * d.KW * e.plane(), offset, s.Cg, depth, d.H * d.W,
                    flipped + group * s.Cg * depth, nullptr, false}
        .run(dx + group * s.Cg * d.H * d.W);
}

template <class T>
void bias_gradient(const T* g, int64_t K, int64_t cells, T* sums) {
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> sum[2] = {};
    for_vectors<T>(cells, [&](int64_t i, int n) { sum[i / kLanes<T> % 2] += load_some<T>(g + k * cells + i, n); });
    sums[k] += sum_lanes<T>(sum[0] + sum[1]);
  }
}

struct Plan {  // of a backward pass: what every share of the images uses
  int64_t at_once, shares, share_size;  // images a group; shares of the batch; sums of a share: dw then db
  const int64_t *offset, *flipped_offset;
};

// All gradients of images [begin, end), added to one share's sums; a group of images at a time stays in cache.
template <class T>
void backward_images(const conv2d::Backward<T>& p, const Sizes& s, const Plan& plan, int64_t begin, int64_t end,
                     const T* flipped, T* sums) {
  const Dims& d = p.d;
  const Expansion e = input_expansion(d);
  const int64_t image = d.C * d.H * d.W, cells = d.K * s.cells;
  for (int64_t first = begin; first < end; first += plan.at_once) {
    const int64_t count = min_of(plan.at_once, end - first);
    const T* g = p.g + first * cells;
    if (d.pool || d.relu) {
      T* to = scratch<T>(Slot::gradient, count * cells);
      for (int64_t n = 0; n < count; ++n) image_gradient<T>(p, s, first + n, to + n * cells);
      g = to;
    }
    if (p.dw) {
      const T* x = expanded<T>(p.x + first * image, count, e, Slot::batch);
      for (int64_t group = 0; group < d.G; ++group)
        add_weight_gradient<T>(Taps<T>{g + group * s.Kg * s.cells, x + group * s.Cg * d.KW * e.plane(), cells, e.size(),
                                       count, s.cells, plan.offset},
                               s.Kg, s.window, sums + group * s.Kg * s.window);
    }
    for (int64_t n = 0; n < count; ++n) {
      if (p.db) bias_gradient<T>(g + n * cells, d.K, s.cells, sums + d.K * s.window);
      if (p.dx) data_gradient<T>(d, s, g + n * cells, flipped, plan.flipped_offset, p.dx + (first + n) * image);
    }
  }
}

// Images are summed in a number of shares that depends on the sizes alone, so that threads do not change the result:
// at most 16, of at most 8 MB of sums together, none below a group of images. A group's images take at most 1 MB.
template <class T>
Plan plan_of(const Dims& d, const Sizes& s, const int64_t* offset) {
  const int64_t bytes = sizeof(T), share_size = d.K * s.window + d.K;
  const int64_t image_bytes = bytes * (d.K * s.cells + input_expansion(d).size()) + 1;
  const int64_t group = ceil_div(kGroupVectors, max_of<int64_t>(1, ceil_div(s.cells, kLanes<T>)));
  const int64_t at_once = max_of<int64_t>(1, min_of(group, (int64_t{1} << 20) / image_bytes));
  const int64_t most = max_of<int64_t>(1, (int64_t{8} << 20) / (bytes * share_size + 1));
  const int64_t shares = min_of(min_of<int64_t>(16, most), max_of<int64_t>(1, d.N / at_once));
  return {at_once, shares, share_size, offset, offset + s.window};
}

template <class T>
void conv2d_backward(const conv2d::Backward<T>& p) {
  if (sparse_backward<T>(p)) return;
  const Dims d = p.d;
  const Sizes s(d);
  int64_t* offset = scratch<int64_t>(Slot::cells, s.window + s.Kg * d.KH * d.KW);
  input_expansion(d).offsets(offset, s.Cg);
  gradient_expansion(d).offsets(offset + s.window, s.Kg);
  const Plan plan = plan_of<T>(d, s, offset);
  T* flipped = p.dx ? scratch<T>(Slot::transposed, d.K * s.window) : nullptr;
  if (p.dx) flip_weights<T>(d, s, p.w, flipped);
  T* partial = scratch<T>(Slot::partial, plan.shares * plan.share_size);
  std::memset(partial, 0, sizeof(T) * plan.shares * plan.share_size);
  const int64_t grain = plan.shares < threads() ? plan.shares : ceil_div(images_a_thread(d, s) * plan.shares, max_of<int64_t>(1, d.N));
  parallel(plan.shares, grain, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share)
      backward_images<T>(p, s, plan, d.N * share / plan.shares, d.N * (share + 1) / plan.shares, flipped,
                         partial + share * plan.share_size);
  });
  for (int64_t share = 1; share < plan.shares; ++share)
    for (int64_t i = 0; i < plan.share_size; ++i) partial[i] += partial[share * plan.share_size + i];
  if (p.dw) std::memcpy(p.dw, partial, sizeof(T) * d.K * s.window);
  if (p.db) std::memcpy(p.db, partial + d.K * s.window, sizeof(T) * d.K);
}

TS_INSTANTIATE(conv2d_forward, conv2d::Forward)
TS_INSTANTIATE(conv2d_backward, conv2d::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "glue.h"

namespace ts {
namespace {

void add_pool(conv2d::Dims& d, const Ints& pool) {
  if (pool.empty()) return;
  require(pool.size() == 6, "conv2d: pool is [] or [kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w]");
  d.pool = true;
  d.window = maxpool2d::geometry(d.OH, d.OW, pool[0], pool[1], pool[2], pool[3], pool[4], pool[5], 1, 1, false);
}

conv2d::Dims dims_of(const Ints& x, const Tensor& weight, int64_t bias, const Ints& stride, const Ints& padding,
                     const Ints& dilation, int64_t groups, bool relu, const Ints& pool) {
  require(x.size() == 4 && weight.dim() == 4, "conv2d: input and weight need 4 dimensions");
  require(stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
          "conv2d: stride and dilation need 2 values, padding 4 (top, left, bottom, right)");
  conv2d::Dims d = conv2d::dims({x[0], x[1], x[2], x[3]},
                                {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, bias, stride[0],
                                stride[1], {padding[0], padding[1], padding[2], padding[3]}, dilation[0], dilation[1],
                                groups, relu);
  add_pool(d, pool);
  return d;
}

Ints result_size(const conv2d::Dims& d) {
  return d.pool ? Ints{d.N, d.K, d.window.OH, d.window.OW} : Ints{d.N, d.K, d.OH, d.OW};
}

std::tuple<Tensor, Tensor> conv2d_forward(const Tensor& input, const Tensor& weight, const Maybe& bias, const Ints& stride,
                                          const Ints& padding, const Ints& dilation, int64_t groups, bool relu,
                                          const Ints& pool) {
  check_types("conv2d", input, weight, bias);
  const auto type = input.scalar_type();
  const conv2d::Dims d = dims_of(sizes_of(input), weight, size_of_bias(bias), stride, padding,
                                 dilation, groups, relu, pool);
  const Tensor x = operand(input, type), w = operand(weight, type);
  const Maybe b = operand(bias, type);
  const Ints sizes = result_size(d);
  const Tensor y = empty(sizes, compute_type(type));
  const bool byte = d.pool && maxpool2d::byte_position(d.window);
  const Tensor position = empty(d.pool ? sizes : Ints{0}, byte || !d.pool ? ScalarType::Byte : ScalarType::Int);
  with_type(type, [&]<class T>(T) {
    const conv2d::Forward<T> p{d, in<T>(x), in<T>(w), in<T>(b), out<T>(y), position.mutable_data_ptr()};
    TS_CALL(conv2d_forward<T>, p);
  });
  const Tensor result = cast(y, type);
  return {is_channels_last(input) || is_channels_last(weight) ? to_channels_last(result) : result, position};
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const Maybe& output, const Maybe& position, const Ints& stride,
                                                   const Ints& padding, const Ints& dilation, int64_t groups, bool relu,
                                                   const Ints& pool, bool need_input, bool need_weight, bool need_bias) {
  check_types("conv2d", input, grad, weight, output);
  const auto type = input.scalar_type(), c = compute_type(type);
  const conv2d::Dims d = dims_of(sizes_of(input), weight, -1, stride, padding, dilation, groups, relu, pool);
  require(sizes_of(grad) == result_size(d), "conv2d: the gradient does not have the output's shape");
  require(!relu || (output.has_value() && output->numel() == grad.numel()), "conv2d: relu needs the output");
  require(!d.pool || (position.has_value() && position->numel() == grad.numel()), "conv2d: pool needs the positions");
  const Tensor g = operand(grad, type), x = operand(input, type), w = operand(weight, type);
  const Maybe y = operand(output, type);
  const Maybe at = d.pool ? Maybe(dense(*position)) : std::nullopt;
  const Tensor dx = empty(need_input ? sizes_of(input) : Ints{0}, c);
  const Tensor dw = empty(need_weight ? sizes_of(weight) : Ints{0}, c);
  const Tensor db = empty(need_bias ? Ints{d.K} : Ints{0}, c);
  with_type(type, [&]<class T>(T) {
    const conv2d::Backward<T> p{d,
                                in<T>(g),
                                in<T>(x),
                                in<T>(w),
                                relu ? in<T>(y) : nullptr,
                                d.pool ? at->const_data_ptr() : nullptr,
                                out_if<T>(need_input, dx),
                                out_if<T>(need_weight, dw),
                                out_if<T>(need_bias, db)};
    TS_CALL(conv2d_backward<T>, p);
  });
  const Tensor gx = cast(dx, type), gw = cast(dw, type);
  return {need_input && is_channels_last(input) ? to_channels_last(gx) : gx,
          need_weight && is_channels_last(weight) ? to_channels_last(gw) : gw, cast(db, type)};
}

}  // namespace
}  // namespace ts

STABLE_TORCH_LIBRARY_FRAGMENT(torchsmith, m) {
  m.def("conv2d_forward(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
        "int groups, bool relu, int[] pool) -> (Tensor, Tensor)");
  m.def("conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor? output, Tensor? position, int[] stride, "
        "int[] padding, int[] dilation, int groups, bool relu, int[] pool, bool need_input, bool need_weight, "
        "bool need_bias) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(torchsmith, CPU, m) {
  m.impl("conv2d_forward", TORCH_BOX(&ts::conv2d_forward));
  m.impl("conv2d_backward", TORCH_BOX(&ts::conv2d_backward));
}
static const ts::Registered forward{"conv2d_forward", "cpu", ts::kAllFloats};
static const ts::Registered backward{"conv2d_backward", "cpu", ts::kAllFloats};
#endif
