// conv2d, +ReLU, +ReLU+maxpool on the CPU: an image at a time, as a GEMM whose right factor is cut out of the image
// (conv_image.h). The pool runs over the finished image while it is in cache. Formulas and shapes: contract/conv2d.h.
#include "../contract/conv2d.h"

#include "conv_image.h"

namespace ts {
TS_DECLARE(conv2d_forward, conv2d::Forward)
TS_DECLARE(conv2d_backward, conv2d::Backward)
}  // namespace ts

namespace ts::TS_ISA {

using conv2d::Dims;

struct Sizes {  // what both directions compute from the dims
  int64_t Cg, Kg, window, cells, padded_h, padded_w, result;
  bool padded;
  explicit Sizes(const Dims& d)
      : Cg(d.C / d.G), Kg(d.K / d.G), window(Cg * d.KH * d.KW), cells(d.OH * d.OW), padded_h(d.H + d.PT + d.PB),
        padded_w(d.W + d.PL + d.PR), result(d.pool ? d.window.OH * d.window.OW : cells),
        padded(d.PT || d.PL || d.PB || d.PR) {}
};

// Images a thread, or all of them on one where a single image is work enough to be split inside the GEMM.
TS_INLINE int64_t images_a_thread(const Dims& d, const Sizes& s) {
  if (d.N < threads()) return max_of<int64_t>(1, d.N);
  return max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, d.K * s.window * s.cells));
}

template <class T>
const T* padded_image(const Dims& d, const Sizes& s, const T* x, Slot slot) {
  if (!s.padded) return x;
  T* to = scratch<T>(slot, d.C * s.padded_h * s.padded_w);
  place<T>(to, s.padded_h, s.padded_w, x, d.C, d.H, d.W, d.PT, d.PL, 1, 1);
  return to;
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

// Where each cell (c, kh, kw) of a window lies from its first, in an image of the given plane and pitch.
inline void window_cells(int64_t* cell, int64_t channels, const Dims& d, int64_t plane, int64_t pitch) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t kh = 0; kh < d.KH; ++kh)
      for (int64_t kw = 0; kw < d.KW; ++kw) *cell++ = c * plane + kh * d.DH * pitch + kw * d.DW;
}

template <class T>
void conv2d_forward(const conv2d::Forward<T>& p) {
  const Dims d = p.d;
  const Sizes s(d);
  const bool direct = ImageProduct<T>::can_be_direct(d.SW, d.OW);
  T* packed = scratch<T>(Slot::transposed, d.K * s.window);
  for (int64_t g = 0; g < d.G; ++g)
    LeftPacked<T>::pack(packed + g * s.Kg * s.window, s.Kg, s.window, p.w + g * s.Kg * s.window,
                        direct ? s.window : kDepth);
  const int64_t plane = s.padded_h * s.padded_w;
  int64_t* cell = scratch<int64_t>(Slot::cells, s.window);
  window_cells(cell, s.Cg, d, plane, s.padded_w);
  parallel(d.N, images_a_thread(d, s), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* x = padded_image(d, s, p.x + n * d.C * d.H * d.W, Slot::image);
      T* y = d.pool ? scratch<T>(Slot::pixels, d.K * s.cells) : p.y + n * d.K * s.cells;
      for (int64_t g = 0; g < d.G; ++g) {
        const Image<T> image{x + g * s.Cg * plane, plane, s.padded_w, d.KH, d.KW, d.DH, d.DW, d.SH, d.SW, d.OW};
        ImageProduct<T>{image, s.Kg, s.window, s.cells, cell, direct}.run(
            packed + g * s.Kg * s.window, y + g * s.Kg * s.cells, p.bias ? p.bias + g * s.Kg : nullptr, d.relu);
      }
      if (d.pool) pool_image<T>(d, s, y, p.y, p.position, n * d.K);
    }
  });
}

// The gradient at the convolution's own output, [K, cells]: unpooled and masked.
template <class T>
const T* image_gradient(const conv2d::Backward<T>& p, const Sizes& s, int64_t n) {
  const Dims& d = p.d;
  const T *g = p.g + n * d.K * s.result, *y = p.y ? p.y + n * d.K * s.result : nullptr;
  if (!d.pool && !d.relu) return g;
  T* to = scratch<T>(Slot::gradient, d.K * s.cells);
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
  return to;
}

// dx of one image: the flipped weights over the gradient with zeros inserted between its cells.
template <class T>
void data_gradient(const Dims& d, const Sizes& s, const T* g, const T* flipped, const int64_t* cell, T* dx) {
  const int64_t height = d.H + d.DH * (d.KH - 1), width = d.W + d.DW * (d.KW - 1);
  T* placed = nullptr;
  if (height != d.OH || width != d.OW || d.PT != d.DH * (d.KH - 1) || d.PL != d.DW * (d.KW - 1) || d.SH != 1 ||
      d.SW != 1) {
    placed = scratch<T>(Slot::image, d.K * height * width);
    place<T>(placed, height, width, g, d.K, d.OH, d.OW, d.DH * (d.KH - 1) - d.PT, d.DW * (d.KW - 1) - d.PL, d.SH, d.SW);
  }
  for (int64_t group = 0; group < d.G; ++group) {
    const int64_t depth = s.Kg * d.KH * d.KW;
    const Image<T> image{(placed ? placed : g) + group * s.Kg * height * width, height * width, width, d.KH, d.KW, d.DH,
                         d.DW, 1, 1, d.W};
    ImageProduct<T>{image, s.Cg, depth, d.H * d.W, cell, ImageProduct<T>::can_be_direct(1, d.W)}.run(
        flipped + group * s.Cg * depth, dx + group * s.Cg * d.H * d.W, nullptr, false);
  }
}

// Adds one image's share to sums[G][window][channels], channels being Kg rounded up to whole vectors.
template <class T>
void weight_gradient(const Dims& d, const Sizes& s, const T* g, const T* x, T* sums, int64_t channels) {
  constexpr int L = kLanes<T>;
  const int64_t plane = s.padded_h * s.padded_w;
  T* gt = scratch<T>(Slot::pixels, s.cells * channels);
  const int tall = channels == L ? kTallRows : kRows;
  const int rows = static_cast<int>(ceil_div(s.window, ceil_div(s.window, tall)));
  for (int64_t group = 0; group < d.G; ++group) {
    transpose_copy<T>(gt, channels, g + group * s.Kg * s.cells, s.cells, s.Kg, s.cells);
    const T* planes = x + group * s.Cg * plane;
    T* to = sums + group * s.window * channels;
    const int64_t tiles = ceil_div(s.window, rows);
    parallel(tiles, max_of<int64_t>(1, kParallelWork / (s.cells * channels * rows + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin * rows; k < min_of(s.window, end * rows); k += rows) {
        const int r = static_cast<int>(min_of<int64_t>(rows, s.window - k));
        int64_t offset[kTallRows];
        for (int i = 0; i < r; ++i) {
          const int64_t kw = (k + i) % d.KW, kh = (k + i) / d.KW % d.KH, c = (k + i) / (d.KW * d.KH);
          offset[i] = c * plane + kh * d.DH * s.padded_w + kw * d.DW;
        }
        for (int64_t co = 0; co < channels; co += 2 * L) {
          const int vectors = channels - co > L ? 2 : 1;
          weight_tile_for<T>(r, vectors)(planes, offset, d.SH * s.padded_w, d.SW, gt + co, channels, d.OH, d.OW,
                                         to + k * channels + co, channels);
        }
      }
    });
  }
}

// Images are summed in a number of shares that depends on the sizes alone, so that threads do not change the result.
template <class T>
int64_t shares_of(const Dims& d, int64_t weights) {
  const int64_t most = max_of<int64_t>(1, (int64_t{8} << 20) / static_cast<int64_t>(sizeof(T)) / max_of<int64_t>(1, weights));
  return min_of(max_of<int64_t>(1, d.N), min_of<int64_t>(16, most));
}

template <class T>
void flip_weights(const Dims& d, const Sizes& s, const T* w, T* packed) {
  const int64_t area = d.KH * d.KW, depth = s.Kg * area;
  T* flipped = scratch<T>(Slot::batch, s.Cg * depth);
  for (int64_t g = 0; g < d.G; ++g) {
    for (int64_t k = 0; k < s.Kg; ++k)
      for (int64_t c = 0; c < s.Cg; ++c)
        for (int64_t i = 0; i < area; ++i)
          flipped[c * depth + k * area + i] = w[((g * s.Kg + k) * s.Cg + c) * area + area - 1 - i];
    LeftPacked<T>::pack(packed + g * s.Cg * depth, s.Cg, depth, flipped,
                        ImageProduct<T>::can_be_direct(1, d.W) ? depth : kDepth);
  }
}

template <class T>
void conv2d_backward(const conv2d::Backward<T>& p) {
  const Dims d = p.d;
  const Sizes s(d);
  const int64_t channels = ceil_div(s.Kg, kLanes<T>) * kLanes<T>, weights = d.G * s.window * channels;
  const int64_t share_size = weights + d.K, shares = shares_of<T>(d, share_size);
  T* partial = scratch<T>(Slot::partial, shares * share_size);
  std::memset(partial, 0, sizeof(T) * shares * share_size);
  T* flipped = p.dx ? scratch<T>(Slot::transposed, d.K * s.window) : nullptr;
  int64_t* cell = scratch<int64_t>(Slot::cells, s.Kg * d.KH * d.KW);
  if (p.dx) {
    flip_weights<T>(d, s, p.w, flipped);
    const int64_t height = d.H + d.DH * (d.KH - 1), width = d.W + d.DW * (d.KW - 1);
    window_cells(cell, s.Kg, d, height * width, width);
  }
  const int64_t grain = shares < threads() ? shares : ceil_div(images_a_thread(d, s) * shares, max_of<int64_t>(1, d.N));
  parallel(shares, grain, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      T *sums = partial + share * share_size, *bias = sums + weights;
      for (int64_t n = d.N * share / shares; n < d.N * (share + 1) / shares; ++n) {
        const T* g = image_gradient<T>(p, s, n);
        for (int64_t k = 0; k < d.K && p.db; ++k) {
          Vec<T> sum{};
          for (int64_t i = 0; i < s.cells; i += kLanes<T>)
            sum += load_n<T>(g + k * s.cells + i, static_cast<int>(min_of<int64_t>(kLanes<T>, s.cells - i)));
          bias[k] += sum_lanes<T>(sum);
        }
        if (p.dw) weight_gradient<T>(d, s, g, padded_image(d, s, p.x + n * d.C * d.H * d.W, Slot::batch), sums, channels);
        if (p.dx) data_gradient<T>(d, s, g, flipped, cell, p.dx + n * d.C * d.H * d.W);
      }
    }
  });
  for (int64_t share = 1; share < shares; ++share)
    for (int64_t i = 0; i < share_size; ++i) partial[i] += partial[share * share_size + i];
  if (p.dw)
    for (int64_t g = 0; g < d.G; ++g)
      transpose_copy<T>(p.dw + g * s.Kg * s.window, s.window, partial + g * s.window * channels, channels, s.window, s.Kg);
  if (p.db) std::memcpy(p.db, partial + weights, sizeof(T) * d.K);
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
  const conv2d::Dims d = dims_of(sizes_of(input), weight, bias.has_value() ? bias->numel() : -1, stride, padding,
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
