// conv2d, + ReLU, + ReLU + max pool: the launches of conv2d.cuh. Arguments as in the schemas of csrc/cpu/conv2d.cpp.
#include "../cuda/conv2d.cuh"

#include "gemm_work.h"

namespace ts::plans {
namespace {

cuda::ImageStrides strides_of(const Shape& s) { return {s.strides.at(0), s.strides.at(1), s.strides.at(2), s.strides.at(3)}; }

// The parameters begin at argument `first`: stride, padding, dilation, groups, relu, pool.
conv2d::Dims dims_of(const Call& call, const Shape& x, const Shape& w, size_t first) {
  const Ints &s = call.ints(first), &p = call.ints(first + 1), &d = call.ints(first + 2), &pool = call.ints(first + 5);
  auto dims = conv2d::dims({x.sizes.at(0), x.sizes.at(1), x.sizes.at(2), x.sizes.at(3)},
                           {w.sizes.at(0), w.sizes.at(1), w.sizes.at(2), w.sizes.at(3)}, -1, s.at(0), s.at(1),
                           {p.at(0), p.at(1), p.at(2), p.at(3)}, d.at(0), d.at(1), call.get<int64_t>(first + 3), call.flag(first + 4));
  if (pool.empty()) return dims;
  dims.pool = true;
  dims.window = maxpool2d::geometry(dims.OH, dims.OW, pool.at(0), pool.at(1), pool.at(2), pool.at(3), pool.at(4), pool.at(5), 1, 1, false);
  return dims;
}

// Bytes of the tensors of a call.
template <class T>
struct Sizes {
  int64_t x, w, y, cells, position;  // y: the result; cells: the convolution's, before a pool
  explicit Sizes(const conv2d::Dims& d) {
    const int64_t e = sizeof(T);
    x = d.N * d.C * d.H * d.W * e;
    w = d.K * (d.C / d.G) * d.KH * d.KW * e;
    cells = d.N * d.K * d.OH * d.OW * e;
    const int64_t results = d.N * d.K * d.window.OH * d.window.OW;
    y = d.pool ? results * e : cells;
    position = !d.pool ? 0 : maxpool2d::byte_position(d.window) ? results : results * 4;
  }
};

void forward(const Call& call, const cuda::Device& device, Steps& steps) {
  const Shape &x = call.tensor(0), &w = call.tensor(1);
  const bool bias = call.has(2), last = is_channels_last(x) || is_channels_last(w);
  const conv2d::Dims d = dims_of(call, x, w, 3);
  with_element(x.dtype, [&]<class T>(T) {
    cuda::with_math<T>(call.flag(9), device, [&]<class Math>(Math) {
      const auto plan = cuda::plan_conv_forward<Math>(d, device);
      const Sizes<T> size(d);
      const int64_t bias_bytes = bias ? d.K * int64_t(sizeof(T)) : 0, taps = d.C / d.G * d.KH * d.KW;
      // What a pool follows is kept in the type of the sums.
      const int64_t sums = d.pool ? size.cells / int64_t(sizeof(T)) * int64_t(sizeof(cuda::SumOf<T>)) : size.cells;
      std::vector<Work> works;
      if (d.N > 0 && plan.way == cuda::ConvWay::pool2x2) {
        works = {{cores<T>(), 2 * d.N * d.K * 4 * d.window.OH * d.window.OW * taps, size.x + size.w + bias_bytes + size.y + size.position}};
      } else if (d.N > 0) {
        if (plan.way == cuda::ConvWay::gemm)
          works = gemm_work<Math>(plan.gemm, size.x - plan.gemm.N * plan.gemm.K * int64_t(sizeof(T)), bias_bytes + sums - size.cells);
        else works = {{cores<T>(), 2 * d.N * d.K * d.OH * d.OW * taps, size.x + size.w + bias_bytes + sums}};
        if (d.pool) works.push_back({cores<T>(), 0, sums + size.y + size.position});
      }
      const conv2d::Forward<T> p{d, somewhere<T>(), somewhere<T>(), bias ? somewhere<T>() : nullptr, somewhere<T>(), somewhere<void>()};
      steps.add("y", works, [&] {
        cuda::conv2d_forward<Math>(p, {strides_of(x), {}, {}, last, false}, plan, somewhere<void>(), {});
      });
    });
  });
}

void backward(const Call& call, const cuda::Device& device, Steps& steps) {
  const Shape &g = call.tensor(0), &x = call.tensor(1), &w = call.tensor(2);
  const conv2d::Dims d = dims_of(call, x, w, 5);
  const bool dx = call.flag(11), dw = call.flag(12), db = call.flag(13);
  with_element(g.dtype, [&]<class T>(T) {
    cuda::with_math<T>(call.flag(14), device, [&]<class Math>(Math) {
      const auto plan = cuda::plan_conv_backward<Math>(d, dx, dw, db, device);
      const Sizes<T> size(d);
      const int64_t e = sizeof(T), taps = d.C / d.G * d.KH * d.KW;
      const int64_t sums = db ? d.K * e : 0, mask = d.relu && !d.pool ? size.cells : 0;
      const std::string weights = !dw ? "db" : db ? "dw, db" : "dw";
      std::vector<Work> works;
      const auto add = [&](const std::string& product, std::vector<Work> more) {
        for (Work& work : more) work.product = product, works.push_back(work);
      };
      // A pooled g is spread over the convolution's cells, masked by ReLU where there is one.
      if (d.pool && d.N > 0) add("g", {{cores<T>(), 0, size.y + (d.relu ? size.y : 0) + size.position + size.cells}});
      if (plan.way == cuda::ConvWay::gemm) {
        if (dx) add("dx", gemm_work<Math>(plan.dx, size.cells - plan.dx.N * plan.dx.K * e + mask, 0));
        if (dw || db) add(weights, gemm_work<Math>(plan.dw, (dw ? size.x - plan.dw.N * plan.dw.K * e : 0) + mask, sums));
      } else {
        if (dx && d.N > 0)
          add("dx", {{cores<T>(), 2 * d.N * d.C * d.H * d.W * (d.K / d.G) * d.KH * d.KW, size.cells + mask + size.w + size.x}});
        if (dw || db)
          add(weights, {{cores<T>(), dw ? 2 * d.N * d.K * d.OH * d.OW * taps : 0,
                         size.cells + mask + (dw ? size.x + size.w : 0) + sums}});
      }
      const T* y = d.relu ? somewhere<T>() : nullptr;
      const conv2d::Backward<T> p{d, somewhere<T>(), somewhere<T>(), somewhere<T>(), y, somewhere<void>(),
                                  dx ? somewhere<T>() : nullptr, dw ? somewhere<T>() : nullptr, db ? somewhere<T>() : nullptr};
      const cuda::ConvStrides s{strides_of(x), strides_of(g), d.relu ? strides_of(call.tensor(3)) : cuda::ImageStrides{}, false,
                                is_channels_last(x)};
      steps.add("", works, [&] { cuda::conv2d_backward<Math>(p, s, plan, somewhere<void>(), {}); });
    });
  });
}

const Registered registered_forward("conv2d_forward", &forward);
const Registered registered_backward("conv2d_backward", &backward);

}  // namespace
}  // namespace ts::plans
