// conv2d + ReLU + max pool. Formulas and positions: contract/conv2d.h, contract/maxpool2d.h.
//
//   conv_pool2x2_kernel  all in one pass, for 2x2 pools side by side of images and weights that fit in shared memory together:
//                        a thread computes the four cells of a window for four channels, in registers
//   conv_pool_kernel     any other: pools the sums that a convolution left in the workspace
//   unpool_kernel        backward: each cell of the convolution's result collects the g of the windows that chose it, in their
//                        order, where the pooled y passes. No atomics: the same bits every time.
#pragma once

#include "../contract/conv2d.h"
#include "conv_gemm.cuh"
#include "maxpool2d.cuh"

namespace ts::cuda {

// y is dense, in planes or channels_last; position is [N, K, window.OH, window.OW].
template <class T>
struct Pooled {
  T* y;
  void* position;
  int64_t image, step, cell_step;  // strides of y
};

// ---------------------------------------------------------------------------------------------- in one pass

constexpr int kPool2x2Threads = 128;
constexpr int kPool2x2Channels = 4;  // of a thread: 16 sums for 4 + 4 loads of a tap

template <class T>
struct ConvPool2x2 {
  const T *x, *w, *bias;
  ImageStrides xs;
  Pooled<T> out;
  int64_t H, W, C, K, PT, PL;
  bool relu;
  int rows, columns, area, groups;  // of the padded image; of the window; of channels, fours
  Divisor by_rows, by_columns, by_area, by_taps, cells, cell_columns;
};

template <class T>
__global__ void __launch_bounds__(kPool2x2Threads) conv_pool2x2_kernel(ConvPool2x2<T> p, int KH, int KW) {
  using S = SumOf<T>;
  constexpr int R = kPool2x2Channels;
  const int64_t n = blockIdx.x;
  const int plane = p.rows * p.columns, taps = static_cast<int>(p.by_taps.d), width = p.groups * R;
  S* image = shared<S>();                 // [C, rows, columns], zeros around it
  S* weights = image + p.C * plane;       // [taps, width], zeros beyond K
  for (int i = threadIdx.x; i < p.C * plane; i += kPool2x2Threads) {
    int64_t c = i;
    const int64_t w = p.by_columns.split(c) - p.PL, h = p.by_rows.split(c) - p.PT;
    const bool inside = h >= 0 && h < p.H && w >= 0 && w < p.W;
    image[i] = inside ? S(widen(p.x[n * p.xs.n + c * p.xs.c + h * p.xs.h + w * p.xs.w])) : S(0);
  }
  for (int i = threadIdx.x; i < width * taps; i += kPool2x2Threads) {
    int64_t k = i;
    const int64_t tap = p.by_taps.split(k);
    weights[tap * width + k] = k < p.K ? S(widen(p.w[i])) : S(0);
  }
  __syncthreads();
  const int64_t items = p.groups * p.cells.d;
  for (int64_t item = blockIdx.y * int64_t(kPool2x2Threads) + threadIdx.x; item < items; item += int64_t(gridDim.y) * kPool2x2Threads) {
    int64_t group = item;
    const int64_t cell = p.cells.split(group);
    const int oh = static_cast<int>(p.cell_columns.divide(cell)), ow = static_cast<int>(cell - oh * p.cell_columns.d);
    S sum[R][4] = {};
    for (int c = 0; c < p.C; ++c)
      for (int kh = 0; kh < KH; ++kh) {
        const S* above = image + c * plane + (2 * oh + kh) * p.columns + 2 * ow;
        const S* below = above + p.columns;
        const S* tap = weights + (c * p.area + kh * KW) * width + group * R;
        S a = above[0], b = below[0];
        for (int kw = 0; kw < KW; ++kw, tap += width) {
          const S cells[4] = {a, above[kw + 1], b, below[kw + 1]};
#pragma unroll
          for (int r = 0; r < R; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[r][i] += tap[r] * cells[i];
          a = cells[1], b = cells[3];
        }
      }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int64_t k = group * R + r;
      if (k >= p.K) break;
      const S bias = p.bias ? S(widen(p.bias[k])) : S(0);
      S best = sum[r][0] + bias;
      int position = 0;
#pragma unroll
      for (int i = 1; i < 4; ++i)
        if (takes(sum[r][i] + bias, best)) best = sum[r][i] + bias, position = i;
      p.out.y[n * p.out.image + k * p.out.step + cell * p.out.cell_step] = narrow<T>(p.relu ? cuda::relu(best) : best);
      static_cast<uint8_t*>(p.out.position)[(n * p.K + k) * p.cells.d + cell] = static_cast<uint8_t>(position);
    }
  }
}

struct Pool2x2Plan {
  bool fits;
  int rows, columns, groups;
  int64_t blocks;  // that share an image
  size_t shared;
};
// 48 KB: what every device gives without asking, and so at least two blocks a multiprocessor from sm_80 on.
constexpr size_t kPool2x2Shared = 48 * 1024;
// A longer sum is the tensor cores'.
constexpr int64_t kPool2x2Taps = 512;

template <class T>
Pool2x2Plan plan_pool2x2(const conv2d::Dims& d) {
  const maxpool2d::Geometry& g = d.window;
  Pool2x2Plan p{};
  if (!d.pool || d.G != 1 || d.SH != 1 || d.SW != 1 || d.DH != 1 || d.DW != 1 || g.KH != 2 || g.KW != 2 || g.SH != 2 ||
      g.SW != 2 || g.PH != 0 || g.PW != 0 || d.C * d.KH * d.KW > kPool2x2Taps)
    return p;
  const int64_t rows = 2 * g.OH + d.KH - 1, columns = 2 * g.OW + d.KW - 1, groups = ceil_div(d.K, int64_t(kPool2x2Channels));
  const int64_t most = kPool2x2Shared / sizeof(SumOf<T>);  // products of sizes stay small once each of them is
  if (rows > most || columns > most || groups > most || rows * columns > most) return p;
  p.shared = (d.C * rows * columns + groups * kPool2x2Channels * d.C * d.KH * d.KW) * sizeof(SumOf<T>);
  p.fits = p.shared <= kPool2x2Shared;
  p.rows = static_cast<int>(rows), p.columns = static_cast<int>(columns), p.groups = static_cast<int>(groups);
  p.blocks = ceil_div(groups * g.OH * g.OW, int64_t(kPool2x2Threads));
  return p;
}

// ---------------------------------------------------------------------------------------------- in two passes

// sums: [N, K, OH, OW], with bias and ReLU. A thread a cell of y.
template <class T, class P>
__global__ void __launch_bounds__(256, 1)
    conv_pool_kernel(Geometry d, const SumOf<T>* sums, int64_t cells, Divisor channels, Order order, Pooled<T> out) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= cells) return;
  const Cell at(i, order);
  const SumOf<T>* plane = sums + (at.n * channels.d + at.c) * d.H * d.W;
  SumOf<T> best = 0;
  P position = 0;
  bool any = false;
  for (int64_t kh = 0; kh < d.KH; ++kh) {
    const int64_t h = at.h * d.SH - d.PH + kh;
    if (h < 0 || h >= d.H) continue;
    for (int64_t kw = 0; kw < d.KW; ++kw) {
      const int64_t w = at.w * d.SW - d.PW + kw;
      if (w < 0 || w >= d.W) continue;
      const SumOf<T> v = plane[h * d.W + w];
      if (!any || takes(v, best)) best = v, position = static_cast<P>(kh * d.KW + kw), any = true;
    }
  }
  out.y[at.n * out.image + at.c * out.step + (at.h * d.OW + at.w) * out.cell_step] = narrow<T>(best);
  static_cast<P*>(out.position)[i] = position;
}

// ---------------------------------------------------------------------------------------------- backward

template <class T>
struct Unpool {
  const T *g, *y;  // y null: no ReLU
  Strides gs, ys;
  const void* position;  // [N, K, windows of rows, of columns]
  T* to;                 // [N, K, OH, OW]
};

template <class T, class P>
__global__ void __launch_bounds__(256, 1) unpool_kernel(Unpool<T> p, int64_t cells, Order order, Reach rows, Reach columns) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= cells) return;
  const Cell at(i, order);
  const P* position = static_cast<const P*>(p.position) + (at.n * order.C.d + at.c) * rows.windows * columns.windows;
  SumOf<T> sum = 0;
  for (int64_t oh = rows.first(at.h), last = rows.last(at.h); oh <= last; ++oh) {
    const int64_t kh = rows.position(at.h, oh);
    for (int64_t ow = columns.first(at.w), end = columns.last(at.w); ow <= end; ++ow) {
      const int64_t kw = columns.position(at.w, ow);
      if (position[oh * columns.windows + ow] != kh * columns.kernel + kw) continue;
      if (p.y && !relu_passes(p.y[p.ys.at(at.n, at.c, oh, ow)])) continue;
      sum += widen(p.g[p.gs.at(at.n, at.c, oh, ow)]);
    }
  }
  p.to[i] = narrow<T>(sum);
}

}  // namespace ts::cuda
