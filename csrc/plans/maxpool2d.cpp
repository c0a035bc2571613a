// max_pool2d: the launches of maxpool2d.cuh. Arguments as in the schemas of csrc/cpu/maxpool2d.cpp.
#include "../cuda/maxpool2d.cuh"

#include "plans.h"

namespace ts::plans {
namespace {

cuda::Strides strides_of(const Shape& s) { return {s.strides.at(0), s.strides.at(1), s.strides.at(2), s.strides.at(3)}; }

cuda::Strides dense(int64_t C, int64_t H, int64_t W, bool channels_last) {
  return channels_last ? cuda::Strides{C * H * W, 1, W * C, C} : cuda::Strides{C * H * W, H * W, W, 1};
}

maxpool2d::Geometry geometry(const Call& call, int64_t H, int64_t W, size_t first) {
  const Ints &k = call.ints(first), &s = call.ints(first + 1), &p = call.ints(first + 2), &d = call.ints(first + 3);
  return maxpool2d::geometry(H, W, k.at(0), k.at(1), s.at(0), s.at(1), p.at(0), p.at(1), d.at(0), d.at(1), call.flag(first + 4));
}

// It compares; its measure is bytes.
void forward(const Call& call, const cuda::Device&, Steps& steps) {
  const Shape& x = call.tensor(0);
  const auto d = geometry(call, x.sizes.at(2), x.sizes.at(3), 1);
  with_element(x.dtype, [&]<class T>(T) {
    const int64_t N = x.sizes[0], C = x.sizes[1];
    const cuda::PoolForward<T> p{d, N, C, somewhere<T>(), somewhere<T>(), somewhere<void>(), strides_of(x), dense(C, d.OH, d.OW, is_channels_last(x))};
    const cuda::PoolPlan plan = cuda::plan_pool_forward(p);
    std::vector<Work> works;
    if (plan.items > 0) works = {{cores<T>(), 0, plan.bytes}};
    steps.add("y", works, [&] { cuda::pool_forward(p, plan, {}); });
  });
}

void backward(const Call& call, const cuda::Device&, Steps& steps) {
  const Shape &g = call.tensor(0), &position = call.tensor(1);
  const Ints& sizes = call.ints(2);
  const auto d = geometry(call, sizes.at(2), sizes.at(3), 3);
  with_element(g.dtype, [&]<class T>(T) {
    const int64_t N = sizes[0], C = sizes[1];
    const cuda::PoolBackward<T> p{d, N, C, somewhere<T>(), somewhere<void>(), somewhere<T>(), strides_of(g), strides_of(position), dense(C, d.H, d.W, is_channels_last(g))};
    const cuda::PoolPlan plan = cuda::plan_pool_backward(p);
    std::vector<Work> works;
    if (plan.items > 0) works = {{cores<T>(), 0, plan.bytes}};
    steps.add("dx", works, [&] { cuda::pool_backward(p, plan, {}); });
  });
}

const Registered registered_forward("maxpool2d_forward", &forward);
const Registered registered_backward("maxpool2d_backward", &backward);

}  // namespace
}  // namespace ts::plans
