// conv2d, + ReLU, + ReLU + max pool on CUDA: which kernels compute what, and how they are launched.  Formulas: contract/conv2d.h.
//
//   G = 1   implicit GEMMs (conv_gemm.cuh), on tensor cores where the dtype or TF32 allows
//   G > 1   plain loops (conv_grouped.cuh)
//   pool    small images in one pass; else the sums go to the workspace and are pooled from there (conv_pool.cuh)
// Backward: the ReLU mask is applied to g while it is loaded; a pooled g is first spread over the convolution's cells.
// x, g and y are read with the strides they have; w dense.
#pragma once

#include "conv_gemm.cuh"
#include "conv_grouped.cuh"
#include "conv_pool.cuh"

namespace ts::cuda {

// Of the tensors of one call. y in a backward pass may lie otherwise than g.
struct ConvStrides {
  ImageStrides x, g, y;
  bool y_last, dx_last;  // what we write is dense: planes, or channels innermost
};

constexpr int kConvThreads = 256;

inline Launch conv_grid(int64_t items, cudaStream_t stream) {
  return {dim3(static_cast<unsigned>(ceil_div(items, int64_t(kConvThreads)))), dim3(kConvThreads), 0, stream};
}
inline Strides pool_strides(const ImageStrides& s) { return {s.n, s.c, s.h, s.w}; }

// ---------------------------------------------------------------------------------------------- plans

enum class ConvWay { gemm, grouped, pool2x2 };

struct ConvForwardPlan {
  ConvWay way;
  GemmPlan gemm;
  Pool2x2Plan pool2x2;
  int64_t sums;       // bytes of the workspace for what will be pooled; the GEMM's shares come after them
  int64_t workspace;  // bytes in all
};

// Workspaces start on whole chunks.
inline int64_t whole_chunks(int64_t bytes) { return ceil_div(bytes, int64_t(16)) * 16; }

template <class Math>
ConvForwardPlan plan_conv_forward(const conv2d::Dims& d, const Device& device) {
  using T = typename Math::Element;
  ConvForwardPlan p{};
  p.pool2x2 = plan_pool2x2<T>(d);
  p.way = p.pool2x2.fits ? ConvWay::pool2x2 : d.G > 1 ? ConvWay::grouped : ConvWay::gemm;
  if (p.way == ConvWay::pool2x2) return p;
  if (d.pool) p.sums = whole_chunks(d.N * d.K * d.OH * d.OW * sizeof(SumOf<T>));
  if (p.way == ConvWay::gemm) p.gemm = plan_gemm<Math>(d.K, d.N * d.OH * d.OW, d.C * d.KH * d.KW, false, device);
  p.workspace = p.sums + p.gemm.workspace;
  return p;
}

struct ConvBackwardPlan {
  ConvWay way;
  GemmPlan dx, dw;
  int64_t gradient;   // bytes of the workspace for g, spread; the GEMMs' shares come after it
  int64_t workspace;  // bytes in all; the two products come one after the other and share theirs
};

template <class Math>
ConvBackwardPlan plan_conv_backward(const conv2d::Dims& d, bool dx, bool dw, bool db, const Device& device) {
  using T = typename Math::Element;
  ConvBackwardPlan p{};
  p.way = d.G > 1 ? ConvWay::grouped : ConvWay::gemm;
  if (d.pool) p.gradient = whole_chunks(d.N * d.K * d.OH * d.OW * sizeof(T));
  if (p.way == ConvWay::gemm) {
    const int64_t area = d.KH * d.KW, cells = d.N * d.OH * d.OW;
    p.dx = plan_gemm<Math>(dx ? d.C : 0, d.N * d.H * d.W, d.K * area, false, device);
    p.dw = plan_gemm<Math>(dw || db ? d.K : 0, dw ? d.C * area : 0, cells, db, device);
  }
  p.workspace = p.gradient + (p.dx.workspace > p.dw.workspace ? p.dx.workspace : p.dw.workspace);
  return p;
}

// ---------------------------------------------------------------------------------------------- forward

template <class T>
Planes<T> planes(T* out, SumOf<T>* wide, int64_t N, int64_t channels, int64_t cells, bool last) {
  return {out, wide, N * cells, channels * cells, last ? 1 : cells, last ? channels : 1, cells, nullptr, false, nullptr};
}

template <class T>
void conv_pool2x2(const conv2d::Forward<T>& p, const ConvStrides& s, const Pooled<T>& out, const Pool2x2Plan& plan,
                  cudaStream_t stream) {
  const conv2d::Dims& d = p.d;
  const int area = static_cast<int>(d.KH * d.KW);
  const ConvPool2x2<T> a{p.x,       p.w,          p.bias,      s.x,  out,           d.H,
                         d.W,       d.C,          d.K,         d.PT, d.PL,          d.relu,
                         plan.rows, plan.columns, area,        plan.groups,         plan.rows,
                         plan.columns, area,      d.C * area,  d.window.OH * d.window.OW, d.window.OW};
  const dim3 blocks(static_cast<unsigned>(d.N), static_cast<unsigned>(plan.blocks));
  launch<conv_pool2x2_kernel<T>>({blocks, dim3(kPool2x2Threads), plan.shared, stream}, a, static_cast<int>(d.KH),
                                 static_cast<int>(d.KW));
}

template <class Math, class T>
void conv2d_forward(const conv2d::Forward<T>& p, const ConvStrides& s, const ConvForwardPlan& plan, void* workspace,
                    cudaStream_t stream) {
  using S = SumOf<T>;
  const conv2d::Dims& d = p.d;
  if (d.N == 0) return;
  const int64_t cells = d.OH * d.OW, results = d.pool ? d.window.OH * d.window.OW : cells;
  const int64_t step = s.y_last ? 1 : results, cell_step = s.y_last ? d.K : 1;
  const Pooled<T> pooled{p.y, p.position, d.K * results, step, cell_step};
  if (plan.way == ConvWay::pool2x2) return conv_pool2x2(p, s, pooled, plan.pool2x2, stream);
  S* sums = d.pool ? static_cast<S*>(workspace) : nullptr;
  Planes<T> out = planes<T>(p.y, sums, d.N, d.K, cells, s.y_last && !d.pool);
  out.bias = p.bias, out.relu = d.relu;
  if (plan.way == ConvWay::gemm) {
    const int64_t area = d.KH * d.KW;
    gemm<Math>(plan.gemm, Weights<T>(p.w, d.K, d.C * area, d.C, area, area),
               Patches<T, false>(over_input(d), p.x, s.x, nullptr, {}), out, static_cast<char*>(workspace) + plan.sums, stream);
  } else {
    const Grouped<T> a{d, over_input(d), d.K / d.G, p.x, p.w, nullptr, nullptr, s.x, {}, {}};
    const int64_t items = d.N * d.K * cells;
    launch<grouped_forward_kernel<T>>(conv_grid(items, stream), a, items, Order{d.K, d.OH, d.OW, s.y_last && !d.pool}, out);
  }
  if (!d.pool) return;
  const int64_t items = d.N * d.K * results;
  const Order order{d.K, d.window.OH, d.window.OW, false};
  if (maxpool2d::byte_position(d.window))
    launch<conv_pool_kernel<T, uint8_t>>(conv_grid(items, stream), d.window, sums, items, Divisor(d.K), order, pooled);
  else
    launch<conv_pool_kernel<T, int32_t>>(conv_grid(items, stream), d.window, sums, items, Divisor(d.K), order, pooled);
}

// ---------------------------------------------------------------------------------------------- backward

template <class T>
void unpool(const conv2d::Backward<T>& p, const ConvStrides& s, T* to, cudaStream_t stream) {
  const conv2d::Dims& d = p.d;
  const maxpool2d::Geometry& g = d.window;
  const Unpool<T> a{p.g, d.relu ? p.y : nullptr, pool_strides(s.g), pool_strides(s.y), p.position, to};
  const int64_t cells = d.N * d.K * d.OH * d.OW;
  const Order order{d.K, d.OH, d.OW, false};
  const Reach rows{g.SH, 1, g.KH, g.OH, g.PH}, columns{g.SW, 1, g.KW, g.OW, g.PW};
  if (maxpool2d::byte_position(g)) launch<unpool_kernel<T, uint8_t>>(conv_grid(cells, stream), a, cells, order, rows, columns);
  else launch<unpool_kernel<T, int32_t>>(conv_grid(cells, stream), a, cells, order, rows, columns);
}

template <class T>
void grouped_backward(const conv2d::Backward<T>& p, const Grouped<T>& over_x, const ConvStrides& s, cudaStream_t stream) {
  const conv2d::Dims& d = p.d;
  if (p.dx && d.N > 0) {
    Grouped<T> a = over_x;
    a.s = over_gradient(d), a.per_group = Divisor(d.C / d.G);
    const int64_t items = d.N * d.C * d.H * d.W;
    launch<grouped_data_kernel<T>>(conv_grid(items, stream), a, items, Order{d.C, d.H, d.W, s.dx_last},
                                   planes<T>(p.dx, nullptr, d.N, d.C, d.H * d.W, s.dx_last));
  }
  if (p.dw || p.db) {
    const int64_t weights = p.dw ? d.K * (d.C / d.G) * d.KH * d.KW : 0, blocks = weights + (p.db ? d.K : 0);
    launch<grouped_weight_kernel<T>>(
        {dim3(static_cast<unsigned>(blocks)), dim3(kGroupedThreads), kGroupedThreads * sizeof(SumOf<T>), stream}, over_x, weights,
        p.dw, p.db);
  }
}

template <class Math, class T>
void conv2d_backward(const conv2d::Backward<T>& p, const ConvStrides& s, const ConvBackwardPlan& plan, void* workspace,
                     cudaStream_t stream) {
  const conv2d::Dims& d = p.d;
  const T *g = p.g, *mask = d.relu ? p.y : nullptr;
  ImageStrides gs = s.g;
  if (d.pool) {
    T* spread = static_cast<T*>(workspace);
    if (d.N > 0) unpool(p, s, spread, stream);
    g = spread, mask = nullptr;
    gs = {d.K * d.OH * d.OW, d.OH * d.OW, d.OW, 1};
  }
  if (plan.way == ConvWay::grouped)
    return grouped_backward<T>(p, {d, over_input(d), d.K / d.G, p.x, p.w, g, mask, s.x, gs, s.y}, s, stream);
  void* shares = static_cast<char*>(workspace) + plan.gradient;
  const int64_t area = d.KH * d.KW, taps = d.C * area;
  if (p.dx)
    gemm<Math>(plan.dx, Weights<T>(p.w, d.C, area, d.K, taps, area), Patches<T, false>(over_gradient(d), g, gs, mask, s.y),
               planes<T>(p.dx, nullptr, d.N, d.C, d.H * d.W, s.dx_last), shares, stream);
  if (p.dw || p.db) {
    Planes<T> out = planes<T>(p.dw, nullptr, 1, d.K, taps, false);
    out.sums = p.db;
    gemm<Math>(plan.dw, Patches<T, true>(cell_by_cell(d), g, gs, mask, s.y), Patches<T, true>(over_input(d), p.x, s.x, nullptr, {}),
               out, shares, stream);
  }
}

}  // namespace ts::cuda
