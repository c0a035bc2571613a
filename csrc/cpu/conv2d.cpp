// conv2d, +ReLU, +ReLU+maxpool on the CPU: an image at a time, expanded in width, a large one in bands of rows, or, for many
// channels, read in lines (conv_cells.h). The pool runs over the finished image while it is in cache. Backward: conv_weights.h,
// conv_phases.h, 1 x 1 of few cells conv_pointwise.h, pooled conv_sparse.h. Formulas and shapes: contract/conv2d.h.
#include "../contract/conv2d.h"

#include "conv_depthwise_last.h"
#include "conv_depthwise_lines.h"
#include "conv_phases.h"
#include "conv_pointwise.h"
#include "conv_sparse.h"

namespace ts {
TS_DECLARE(conv2d_forward, conv2d::Forward)
TS_DECLARE(conv2d_backward, conv2d::Backward)
}  // namespace ts

namespace ts::TS_ISA {

using conv2d::Dims;

struct Sizes {  // what both directions compute from the dims
  int64_t Cg, Kg, area, window, cells, result;
  explicit Sizes(const Dims& d)
      : Cg(d.C / d.G), Kg(d.K / d.G), area(d.KH * d.KW), window(Cg * area), cells(d.OH * d.OW),
        result(d.pool ? d.window.OH * d.window.OW : cells) {}
};

// Expansions of `planes` planes: the channels, or with pairs of channels half as many.
TS_INLINE Expansion input_expansion(const Dims& d, int64_t planes) {
  return {planes, d.H, d.W, d.PT, d.PL, d.KH, d.KW, d.DH, d.DW, d.SH, d.SW, d.OH, d.OW};
}

// Images a thread, or all of them on one where a single image is work enough to be split inside.
TS_INLINE int64_t images_a_thread(const Dims& d, const Sizes& s) {
  if (d.N < threads()) return max_of<int64_t>(1, d.N);
  return max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, d.K * s.window * s.cells));
}

template <class T>
void pool_image(const Dims& d, const Sizes& s, const Wide<T>* image, T* y, void* position, int64_t first_plane) {
  using W = Wide<T>;
  for (int64_t k = 0; k < d.K; ++k) {
    const int64_t at = (first_plane + k) * s.result;
    W* result = wide_room(y + at, s.result, Slot::wide);
    if (maxpool2d::byte_position(d.window))
      pool_plane<W, uint8_t>(d.window, image + k * s.cells, d.OW, result, static_cast<uint8_t*>(position) + at);
    else
      pool_plane<W, int32_t>(d.window, image + k * s.cells, d.OW, result, static_cast<int32_t*>(position) + at);
    rounded(y + at, result, s.result);
  }
}

template <class T>
void conv2d_forward(const conv2d::Forward<T>& p) {
  if constexpr (kPair<T> == 1) {  // depthwise runs in full width: nothing is summed over channels
    if (p.d.channels_last) return depthwise_last_forward<T>(p);
    if (conv2d::depthwise(p.d)) return in_lines<T>(p.d) ? depthwise_lines_forward<T>(p) : depthwise_forward<T>(p);
  }
  const Dims d = p.d;
  const Sizes s(d);
  const int64_t planes = lanes_of<T>(s.Cg), depth = planes * s.area;
  const Expansion e = input_expansion(d, d.G * planes);
  const bool copied = copies_cells<T>(s.Kg), lined = copied && RightLines<T>::serves(e), in_place = copied && d.N * s.cells <= kCellsInPlace;
  const UnitTiles unit = unit_tiles<T>(s.Kg, planes * d.KW);
  const int64_t weights = unit.rows ? unit_weights(unit, s.Kg, d.KH) : s.Kg * depth;
  Lane<T>* packed = in_place ? nullptr : scratch<Lane<T>>(Slot::transposed, d.G * weights);
  for (int64_t g = 0; g < d.G && !in_place; ++g) {
    const T* w = p.w + g * s.Kg * s.window;
    if constexpr (kUnit<T>)
      if (unit.rows) {
        pack_unit_weights(packed + g * weights, unit, w, s.Kg, s.Cg, d.KH, d.KW);
        continue;
      }
    pack_weights<T>(packed + g * weights, s.Kg, s.Cg, s.area, w);
  }
  int64_t* offset = scratch<int64_t>(Slot::cells, 2 * depth);
  const int64_t rows = lined ? d.OH : band_rows<Lane<T>>(e), bands = ceil_div(d.OH, rows);
  const Expansion band = e.band(0, rows);
  const int64_t at_once = kPair<T> > 1 || d.G > 1 || copied ? planes : band_planes<Lane<T>>(band);
  if (lined) RightLines<T>::offsets(e, offset, planes);
  else if (unit.rows) unit_offsets(offset, unit, band);
  else band.offsets(offset, planes);
  parallel(d.N, images_a_thread(d, s), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Lane<T>* planes_of_x = lane_planes<T>(p.x + n * d.C * d.H * d.W, d.G, s.Cg, d.H * d.W, Slot::planes);
      Wide<T>* image = d.pool ? scratch<Wide<T>>(Slot::pixels, d.K * s.cells) : nullptr;
      for_bands(bands, [&](int64_t at) {
        const int64_t row = at * rows, cells = min_of(rows, d.OH - row) * d.OW;
        for (int64_t c = 0; c < planes; c += at_once) {
          const int64_t steps = min_of(at_once, planes - c) * s.area;
          const bool last = c + at_once >= planes;
          Expansion here = e.band(row, rows);
          here.C = steps / s.area * d.G;
          const Lane<T>* x = lined ? planes_of_x : expanded<Lane<T>>(planes_of_x + c * d.H * d.W, 1, here, Slot::image);
          for (int64_t g = 0; g < d.G; ++g) {
            const ImageProduct<T> product{.e = x + g * planes * (lined ? d.H * d.W : d.KW * band.plane()),
                                          .offset = offset,
                                          .M = s.Kg,
                                          .depth = steps,
                                          .cells = cells,
                                          .pitch = s.cells,
                                          .packed = in_place ? nullptr : packed + g * weights,
                                          .bias = p.bias && last ? p.bias + g * s.Kg : nullptr,
                                          .relu = d.relu && last,
                                          .lined = lined ? &e : nullptr,
                                          .direct = in_place ? p.w + g * s.Kg * s.window : nullptr,
                                          .unit = unit,
                                          .plane = band.plane(),
                                          .KH = d.KH,
                                          .before = c * s.area,
                                          .all = depth};
            if (d.pool) product.run(image + g * s.Kg * s.cells + row * d.OW);
            else product.run(p.y + (n * d.K + g * s.Kg) * s.cells + row * d.OW);
          }
        }
      });
      if (d.pool) pool_image<T>(d, s, image, p.y, p.position, n * d.K);
    }
  });
}

// The gradient of image n at the convolution's own output, [K, cells]: unpooled and masked.
template <class T>
void image_gradient(const conv2d::Backward<T>& p, const Sizes& s, int64_t n, T* to) {
  using W = Wide<T>;
  const Dims& d = p.d;
  for (int64_t k = 0; k < d.K && d.pool; ++k) {
    const int64_t at = (n * d.K + k) * s.result;
    const W *g = widened(p.g + at, s.result, Slot::planes), *y = p.y ? widened(p.y + at, s.result, Slot::pairs) : nullptr;
    W* plane = wide_room(to + k * s.cells, s.cells, Slot::wide);
    if (maxpool2d::byte_position(d.window))
      unpool_plane<W, uint8_t>(d.window, g, y, static_cast<const uint8_t*>(p.position) + at, plane);
    else
      unpool_plane<W, int32_t>(d.window, g, y, static_cast<const int32_t*>(p.position) + at, plane);
    rounded(to + k * s.cells, plane, s.cells);
  }
  if (d.pool) return;
  const T *g = p.g + n * d.K * s.cells, *y = p.y + n * d.K * s.cells;
  for_vectors<W>(d.K * s.cells, [&](int64_t i, int lanes) {
    store_wide(to + i, relu_gradient<W>(load_wide(g + i, lanes), load_wide(y + i, lanes)), lanes);
  });
}

template <class T>
void bias_gradient(const T* g, int64_t K, int64_t cells, Wide<T>* sums) {
  using W = Wide<T>;
  constexpr int L = kLanes<W>;
  for (int64_t k = 0; k < K; ++k, g += cells) {
    Vec<W> s0{}, s1{}, s2{}, s3{};  // four chains hide the latency of an addition
    int64_t i = 0;
    for (; i + 4 * L <= cells; i += 4 * L) {
      s0 += load_wide(g + i, L);
      s1 += load_wide(g + i + L, L);
      s2 += load_wide(g + i + 2 * L, L);
      s3 += load_wide(g + i + 3 * L, L);
    }
    for (; i + L <= cells; i += L) s0 += load_wide(g + i, L);
    if (i < cells) s1 += load_wide(g + i, static_cast<int>(cells - i));
    sums[k] += sum_lanes<W>((s0 + s1) + (s2 + s3));
  }
}

// Pairs are of images, whose bands the matrix unit's tiles would not fit.
template <class T>
int64_t weight_rows(const Expansion& e) { return kPair<T> == 1 ? band_rows<T>(e) : e.OH; }

struct Plan {  // of a backward pass: what every share of the images uses
  int64_t at_once, shares, rows;  // images a group; shares of the batch; output rows a band, for dw
  const int64_t* offset;
};

// All gradients of images [begin, end): dw, and added to one share's sums db; a group of images at a time stays in cache.
template <class T>
void backward_images(const conv2d::Backward<T>& p, const Sizes& s, const Plan& plan, int64_t begin, int64_t end,
                     const DataGradient<T>& data, Wide<T>* dw, Wide<T>* db) {
  const Dims& d = p.d;
  const Expansion e = input_expansion(d, d.C);
  const int64_t image = d.C * d.H * d.W, cells = d.K * s.cells, g_image = p.g_image ? p.g_image : cells;
  for (int64_t first = begin; first < end; first += plan.at_once) {
    const int64_t count = min_of(plan.at_once, end - first);
    const T* g = p.g + first * g_image;
    if (d.pool || d.relu) {
      T* to = scratch<T>(Slot::gradient, count * cells);
      for (int64_t n = 0; n < count; ++n) image_gradient<T>(p, s, first + n, to + n * cells);
      g = to;
    }
    if (p.dw) {
      const int64_t images = lanes_of<T>(count);
      const Lane<T>* planes = lane_planes<T>(p.x + first * image, 1, count, image, Slot::planes);
      const Lane<T>* lanes = lane_planes<T>(g, 1, count, cells, Slot::pairs);
      for (int64_t row = 0; row < d.OH; row += plan.rows) {
        const Expansion band = e.band(row, plan.rows);
        const Lane<T>* x = expanded<Lane<T>>(planes, images, band, Slot::batch);
        for (int64_t group = 0; group < d.G; ++group) {
          const Taps<T> taps{lanes + group * s.Kg * s.cells + row * d.OW, x + group * s.Cg * d.KW * band.plane(), g_image, band.size(), images,
                             min_of(plan.rows, d.OH - row) * d.OW, s.cells, first > begin || row > 0, plan.offset};
          Wide<T>* const to = dw + group * s.Kg * s.window;
          if constexpr (kUnit<T>)
            if (unit_weight_gradient(taps, s.Kg, s.Cg, band, to)) continue;
          add_weight_gradient<T>(taps, s.Kg, s.window, to);
        }
      }
    }
    for (int64_t n = 0; n < count; ++n) {
      if (p.db) bias_gradient<T>(g + n * g_image, d.K, s.cells, db);
      if (p.dx) data.image(g + n * g_image, p.dx + (first + n) * image);
    }
  }
}

// Images are summed in a number of shares that depends on the sizes alone, so that threads do not change the result:
// at most 16, of at most 8 MB of sums together, none below a group of images. A group's images take at most 1 MB.
template <class T>
Plan plan_of(const Dims& d, const Sizes& s, const int64_t* offset) {
  const int64_t bytes = sizeof(T), share_size = d.K * s.window + d.K;
  const int64_t image_bytes = bytes * kPair<T> * (d.K * s.cells + input_expansion(d, d.C).size()) + 1;  // of a lane's images
  const int64_t group = ceil_div(kGroupVectors, max_of<int64_t>(1, ceil_div(s.cells, kLanes<Wide<T>>)));
  const int64_t at_once = kPair<T> * max_of<int64_t>(1, min_of(group, (int64_t{1} << 20) / image_bytes));
  const int64_t most = max_of<int64_t>(1, (int64_t{8} << 20) / (sizeof(Wide<T>) * share_size + 1));
  const int64_t shares = min_of(min_of<int64_t>(16, most), max_of<int64_t>(1, d.N / at_once));
  return {at_once, shares, weight_rows<T>(input_expansion(d, d.C)), offset};
}

// The sparse way is about which cells have a gradient, not about multiplying: for bf16 it runs in full width.
template <class T>
bool sparse_way(const conv2d::Backward<T>& p) {
  if constexpr (kPair<T> == 1) {
    return sparse_backward<T>(p);
  } else {
    using W = Wide<T>;
    const Dims& d = p.d;
    if (!d.relu || !SparseBackward<W>(d).pays()) return false;
    const int64_t results = d.N * d.K * d.window.OH * d.window.OW, image = d.N * d.C * d.H * d.W, weights = d.K * d.C * d.KH * d.KW;
    W* g = scratch<W>(Slot::wide, 2 * (results + image + weights) + d.K);
    W *y = g + results, *x = y + results, *dx = x + image, *w = dx + image, *dw = w + weights, *db = dw + weights;
    copy_as(g, p.g, results);
    copy_as(y, p.y, results);
    copy_as(x, p.x, image);
    copy_as(w, p.w, weights);
    if (!sparse_backward<W>({d, g, x, w, y, p.position, p.dx ? dx : nullptr, p.dw ? dw : nullptr, p.db ? db : nullptr})) return false;
    if (p.dx) copy_as(p.dx, dx, image);
    if (p.dw) copy_as(p.dw, dw, weights);
    if (p.db) copy_as(p.db, db, d.K);
    return true;
  }
}

template <class T>
void conv2d_backward(const conv2d::Backward<T>& p) {
  using W = Wide<T>;
  if constexpr (kPair<T> == 1) {  // depthwise runs in full width: nothing is summed over channels
    if (p.d.channels_last) return depthwise_last_backward<T>(p);
    if (conv2d::depthwise(p.d)) return in_lines<T>(p.d) ? depthwise_lines_backward<T>(p) : depthwise_backward<T>(p);
  }
  if (sparse_way<T>(p)) return;
  const Dims d = p.d;
  const Sizes s(d);
  if constexpr (kPair<T> == 1)
    if (p.dx && pointwise<T>(d)) {
      const int64_t image = d.K * s.cells;
      T* const masked = d.relu ? scratch<T>(Slot::gradient, d.N * image) : nullptr;
      for (int64_t n = 0; n < d.N && d.relu; ++n) image_gradient<T>(p, s, n, masked + n * image);
      pointwise_data_gradient<T>(d, d.relu ? masked : p.g, d.relu || !p.g_image ? image : p.g_image, p.w, p.dx);
      conv2d::Backward<T> rest = p;
      rest.dx = nullptr;
      return p.dw || p.db ? conv2d_backward<T>(rest) : void();
    }
  const int64_t planes = lanes_of<T>(s.Kg);  // of the gradient, for dx
  int64_t* offset = scratch<int64_t>(Slot::cells, s.window + 2 * planes * s.area);
  const Plan plan = plan_of<T>(d, s, offset);
  input_expansion(d, d.C).band(0, plan.rows).offsets(offset, s.Cg);
  Dims of_data = d;
  if (!p.dx) of_data.H = 0;  // no phases, nothing to pack
  const DataGradient<T> data(of_data, p.w, scratch<Lane<T>>(Slot::transposed, DataGradient<T>::size(d)), offset + s.window);
  // The sums of share 0 are made where the results go, unless those are of another type.
  const int64_t weights = p.dw ? d.K * s.window : 0, share_size = weights + d.K;
  const bool in_place = kPair<T> == 1 && p.dw;
  W* const partial = scratch<W>(Slot::partial, plan.shares * share_size);
  const auto dw_of = [&](int64_t share) { return in_place && share == 0 ? reinterpret_cast<W*>(p.dw) : partial + share * share_size; };
  const auto db_of = [&](int64_t share) { return partial + share * share_size + weights; };
  const int64_t grain = plan.shares < threads() ? plan.shares : ceil_div(images_a_thread(d, s) * plan.shares, max_of<int64_t>(1, d.N));
  parallel(plan.shares, grain, [&](int64_t begin, int64_t end) {
    const int64_t images = lanes_of<T>(d.N);  // whole pairs to a share
    for (int64_t share = begin; share < end; ++share) {
      const int64_t first = kPair<T> * (images * share / plan.shares), last = min_of(d.N, kPair<T> * (images * (share + 1) / plan.shares));
      if (first >= last) std::memset(dw_of(share), 0, sizeof(W) * weights);  // else written by its first group of images
      std::memset(db_of(share), 0, sizeof(W) * d.K);
      backward_images<T>(p, s, plan, first, last, data, dw_of(share), db_of(share));
    }
  });
  for (int64_t share = 1; share < plan.shares; ++share) {
    add_as(dw_of(0), dw_of(share), weights, true);
    add_as(db_of(0), db_of(share), d.K, true);
  }
  if (p.dw && !in_place) copy_as(p.dw, dw_of(0), weights);
  if (p.db) copy_as(p.db, db_of(0), d.K);
}

TS_INSTANTIATE_BF16(conv2d_forward, conv2d::Forward)
TS_INSTANTIATE_BF16(conv2d_backward, conv2d::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "../glue/conv2d.h"
#include "glue.h"

namespace ts {
namespace {

// allow_tf32 concerns CUDA alone.
template <class Tensor>
std::tuple<Tensor, Tensor> conv2d_forward(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias,
                                          const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                          bool relu, const Ints& pool, bool /*allow_tf32*/) {
  conv2d::Dims d = conv2d::forward_dims(input, weight, bias, stride, padding, dilation, groups, relu, pool);
  const auto type = input.scalar_type();
  d.channels_last = is_channels_last(input) && conv2d::depthwise_last(d);
  const auto c = conv2d::depthwise(d) ? compute_type(type) : kernel_type(type);
  const Tensor x = operand(input, c, d.channels_last), w = operand(weight, c);
  const Maybe<Tensor> b = operand(bias, c);
  const Ints sizes = conv2d::result_size(d);
  const Tensor y = empty(input, sizes, c, d.channels_last);
  const Tensor position = empty(input, d.pool ? sizes : Ints{0}, conv2d::position_type(d));
  with_kernel_type(c, [&]<class T>(T) {
    const conv2d::Forward<T> p{d, in<T>(x), in<T>(w), in<T>(b), out<T>(y), position.mutable_data_ptr()};
    TS_CALL(conv2d_forward<T>, p);
  });
  const Tensor result = cast(y, type);
  return {is_channels_last(input) || is_channels_last(weight) ? to_channels_last(result) : result, position};
}

// The elements from image to image of a gradient that is read as it lies: that of a slice of a concatenation's channels. 0: it is
// made dense. What unpools, masks or pairs a gradient copies it anyway.
template <class Tensor>
int64_t image_step(const Tensor& g, const conv2d::Dims& d, ScalarType kernel) {
  if (g.scalar_type() != kernel || kernel == ScalarType::BFloat16 || d.pool || d.relu || conv2d::depthwise(d)) return 0;
  const auto step = g.strides();
  const int64_t cells = d.OH * d.OW;
  return step[3] == 1 && step[2] == d.OW && step[1] == cells && step[0] > d.K * cells ? step[0] : 0;
}

template <class Tensor>
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const Maybe<Tensor>& output, const Maybe<Tensor>& position,
                                                   const Ints& stride, const Ints& padding, const Ints& dilation,
                                                   int64_t groups, bool relu, const Ints& pool, bool need_input,
                                                   bool need_weight, bool need_bias, bool /*allow_tf32*/) {
  conv2d::Dims d = conv2d::backward_dims(grad, input, weight, output, position, stride, padding, dilation, groups, relu, pool);
  const auto type = input.scalar_type();
  d.channels_last = is_channels_last(input) && conv2d::depthwise_last(d);
  const auto c = conv2d::depthwise(d) ? compute_type(type) : kernel_type(type);
  const int64_t g_image = image_step(grad, d, c);
  const Tensor g = g_image ? grad : operand(grad, c, d.channels_last), x = operand(input, c, d.channels_last);
  const Tensor w = operand(weight, c);
  Maybe<Tensor> y, at;
  if (relu) y.emplace(operand(*output, c, d.channels_last));
  if (d.pool) at.emplace(dense(*position));
  const Tensor dx = need_input ? empty(input, sizes_of(input), c, d.channels_last) : empty(input, Ints{0}, c);
  const Tensor dw = empty(input, need_weight ? sizes_of(weight) : Ints{0}, c);
  const Tensor db = empty(input, need_bias ? Ints{d.K} : Ints{0}, c);
  with_kernel_type(c, [&]<class T>(T) {
    const conv2d::Backward<T> p{d,
                                in<T>(g),
                                in<T>(x),
                                in<T>(w),
                                in<T>(y),
                                at ? at->const_data_ptr() : nullptr,
                                out_if<T>(need_input, dx),
                                out_if<T>(need_weight, dw),
                                out_if<T>(need_bias, db),
                                g_image};
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
        "int groups, bool relu, int[] pool, bool allow_tf32=False) -> (Tensor, Tensor)");
  m.def("conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor? output, Tensor? position, int[] stride, "
        "int[] padding, int[] dilation, int groups, bool relu, int[] pool, bool need_input, bool need_weight, "
        "bool need_bias, bool allow_tf32=False) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(torchsmith, CPU, m) {
  m.impl("conv2d_forward", TORCH_BOX(&ts::conv2d_forward<ts::Tensor>));
  m.impl("conv2d_backward", TORCH_BOX(&ts::conv2d_backward<ts::Tensor>));
}
static const ts::Registered forward{"conv2d_forward", "cpu", ts::kAllFloats};
static const ts::Registered backward{"conv2d_backward", "cpu", ts::kAllFloats};
static const ts::Direct<&ts::conv2d_forward<ts::View>> direct_forward{"conv2d_forward"};
static const ts::Direct<&ts::conv2d_backward<ts::View>> direct_backward{"conv2d_backward"};
#endif
