// Convolutions with groups, depthwise ones among them, of any stride, padding and dilation: plain loops, a thread a cell of the
// result; of dw, a block a weight. With few channels a group there is no matrix product for tensor cores to do.
#pragma once

#include "../contract/conv2d.h"
#include "conv_gemm.cuh"
#include "maxpool2d.cuh"

namespace ts::cuda {

template <class T>
struct Grouped {
  conv2d::Dims d;
  Sliding s;  // over x (forward, dw) or over g (dx)
  Divisor per_group;  // channels of a group: of the result in y and dw, of x in dx
  const T *x, *w, *g, *mask;  // mask: y of a ReLU, or null
  ImageStrides xs, gs, ms;
};

template <class T>
__device__ __forceinline__ SumOf<T> masked(const Grouped<T>& p, int64_t n, int64_t k, int64_t h, int64_t w) {
  const auto at = [&](const ImageStrides& by) { return n * by.n + k * by.c + h * by.h + w * by.w; };
  if (p.mask && !relu_passes(p.mask[at(p.ms)])) return 0;
  return widen(p.g[at(p.gs)]);
}

template <class T>
__global__ void __launch_bounds__(256, 1) grouped_forward_kernel(Grouped<T> p, int64_t cells, Order order, Planes<T> out) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= cells) return;
  const Cell at(i, order);
  const int64_t channels = p.d.C / p.d.G, first = p.per_group.divide(at.c) * channels;
  const T* w = p.w + at.c * channels * p.d.KH * p.d.KW;
  const T* x = p.x + at.n * p.xs.n + first * p.xs.c;
  const int64_t h0 = at.h * p.d.SH - p.d.PT, w0 = at.w * p.d.SW - p.d.PL;
  SumOf<T> sum = 0;
  for (int64_t c = 0; c < channels; ++c, x += p.xs.c)
#pragma unroll 1
    for (int64_t kh = 0; kh < p.d.KH; ++kh) {
      const int64_t row = h0 + kh * p.d.DH;
      const bool inside = row >= 0 && row < p.d.H;
#pragma unroll 1
      for (int64_t kw = 0; kw < p.d.KW; ++kw, ++w) {
        const int64_t column = w0 + kw * p.d.DW;
        if (inside && column >= 0 && column < p.d.W) sum += widen(*w) * widen(x[row * p.xs.h + column * p.xs.w]);
      }
    }
  out.put(at.c, at.n, at.h * p.d.OW + at.w, sum);
}

template <class T>
__global__ void __launch_bounds__(256) grouped_data_kernel(Grouped<T> p, int64_t cells, Order order, Planes<T> out) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= cells) return;
  const Cell at(i, order);
  const int64_t outputs = p.d.K / p.d.G, area = p.d.KH * p.d.KW;
  int64_t group = at.c;
  const int64_t c = p.per_group.split(group);
  SumOf<T> sum = 0;
  for (int64_t kh = 0; kh < p.d.KH; ++kh) {
    const int64_t row = p.s.rows.at(at.h, kh);
    if (row < 0) continue;
    for (int64_t kw = 0; kw < p.d.KW; ++kw) {
      const int64_t column = p.s.columns.at(at.w, kw);
      if (column < 0) continue;
      for (int64_t k = group * outputs; k < (group + 1) * outputs; ++k)
        sum += widen(p.w[(k * p.per_group.d + c) * area + kh * p.d.KW + kw]) * masked(p, at.n, k, row, column);
    }
  }
  out.put(at.c, at.n, at.h * p.d.W + at.w, sum);
}

constexpr int kGroupedThreads = 128;

// Block i < weights: dw[i]; after them, block weights + k: db[k]. Threads take cells in turn; their sums are added as a tree.
template <class T>
__global__ void __launch_bounds__(kGroupedThreads) grouped_weight_kernel(Grouped<T> p, int64_t weights, T* dw, T* db) {
  using S = SumOf<T>;
  const bool of_bias = blockIdx.x >= weights;
  int64_t k = of_bias ? blockIdx.x - weights : int64_t(blockIdx.x), kw = 0, kh = 0, channel = 0;
  if (!of_bias) {
    const int64_t channels = p.d.C / p.d.G;
    kw = p.s.KW.split(k), kh = p.s.KH.split(k);
    channel = k % channels, k /= channels;
    channel += p.per_group.divide(k) * channels;
  }
  S sum = 0;
  for (int64_t i = threadIdx.x; i < p.s.cells; i += kGroupedThreads) {
    int64_t n = i;
    const int64_t w = p.s.W.split(n), h = p.s.H.split(n);
    if (of_bias) {
      sum += masked(p, n, k, h, w);
      continue;
    }
    const int64_t row = p.s.rows.at(h, kh), column = p.s.columns.at(w, kw);
    if (row < 0 || column < 0) continue;
    sum += masked(p, n, k, h, w) * widen(p.x[n * p.xs.n + channel * p.xs.c + row * p.xs.h + column * p.xs.w]);
  }
  S* sums = shared<S>();
  sums[threadIdx.x] = sum;
  for (unsigned part = kGroupedThreads / 2; part > 0; part /= 2) {
    __syncthreads();
    if (threadIdx.x < part) sums[threadIdx.x] += sums[threadIdx.x + part];
  }
  if (threadIdx.x == 0) (of_bias ? db[k] : dw[blockIdx.x]) = narrow<T>(sums[0]);
}

}  // namespace ts::cuda
