// max_pool2d on CUDA.  Formula, ties, NaN and positions: contract/maxpool2d.h.
//
//   forward   a thread computes one cell of y, or 16 bytes of them: 2x2 windows side by side, or channels side by side
//   backward  a thread computes one cell of dx (or 16 bytes of them): it looks which of the windows over it chose it, and adds
//             their g in the order of the windows. No atomics: the same bits every time.
// Both read tensors of any strides. Neighbouring threads write neighbouring cells, in the memory order of what they write.
// All of it is bound by memory: 16-byte accesses where the shape allows them, one byte a window for the position.
#pragma once

#include "../contract/maxpool2d.h"
#include "launch.cuh"

namespace ts::cuda {

using maxpool2d::Geometry;

// Strides of N, C, H, W, in elements.
struct Strides {
  int64_t n, c, h, w;
  __device__ __forceinline__ int64_t at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return in * n + ic * c + ih * h + iw * w;
  }
};

template <class T>
struct PoolForward {
  Geometry d;
  int64_t N, C;
  const T* x;
  T* y;
  void* position;  // uint8 or int32 (byte_position)
  Strides xs, ys;  // position lies as y does: dense, N C H W or (ys.c = 1) N H W C
};

template <class T>
struct PoolBackward {
  Geometry d;
  int64_t N, C;
  const T* g;
  const void* position;
  T* dx;
  Strides gs, ps, dxs;  // dx is dense, N C H W or (dxs.c = 1) N H W C
};

// ---------------------------------------------------------------------------------------------- one cell

// Where cell number i of an N x C x H x W tensor lies that is dense, N C H W or (channels_last) N H W C.
struct Order {
  Divisor C, H, W;
  bool channels_last;
};
struct Cell {
  int64_t n, c, h, w;
  __device__ __forceinline__ Cell(int64_t i, const Order& order) {
    if (order.channels_last) c = order.C.split(i), w = order.W.split(i), h = order.H.split(i);
    else w = order.W.split(i), h = order.H.split(i), c = order.C.split(i);
    n = i;
  }
};

// A NaN wins and the last one counts; of equal values the first.
template <class S>
__device__ __forceinline__ bool takes(S v, S best) { return v > best || v != v; }

template <class T, class P>
__global__ void __launch_bounds__(256) pool_forward_kernel(PoolForward<T> p, int64_t cells, Order order) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= cells) return;
  const Geometry& d = p.d;
  const Cell at(i, order);
  const int64_t h0 = at.h * d.SH - d.PH, w0 = at.w * d.SW - d.PW;
  SumOf<T> best = 0;
  P position = 0;
  bool any = false;
  for (int64_t kh = 0; kh < d.KH; ++kh) {
    const int64_t h = h0 + kh * d.DH;
    if (h < 0 || h >= d.H) continue;
    for (int64_t kw = 0; kw < d.KW; ++kw) {
      const int64_t w = w0 + kw * d.DW;
      if (w < 0 || w >= d.W) continue;
      const auto v = widen(p.x[p.xs.at(at.n, at.c, h, w)]);
      if (!any || takes(v, best)) best = v, position = static_cast<P>(kh * d.KW + kw), any = true;
    }
  }
  p.y[i] = narrow<T>(best);
  static_cast<P*>(p.position)[i] = position;
}

// Along one dimension: the windows over a cell, and which of a window's cells it is.
struct Reach {
  Divisor stride, dilation;
  int64_t kernel, windows, padding;

  // The first and last windows that begin at or before the cell and end at or after it.
  __device__ __forceinline__ int64_t first(int64_t cell) const {
    const int64_t before = cell + padding - (kernel - 1) * dilation.d;
    return before > 0 ? stride.divide(before + stride.d - 1) : 0;
  }
  __device__ __forceinline__ int64_t last(int64_t cell) const {
    const int64_t o = stride.divide(cell + padding);
    return o < windows ? o : windows - 1;
  }
  // With a dilation, a cell may lie between those a window looks at: -1.
  __device__ __forceinline__ int64_t position(int64_t cell, int64_t window) const {
    const int64_t distance = cell + padding - window * stride.d, k = dilation.divide(distance);
    return k * dilation.d == distance ? k : -1;
  }
};

template <class T, class P>
__global__ void __launch_bounds__(256) pool_backward_kernel(PoolBackward<T> p, int64_t cells, Order order, Reach rows, Reach columns) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= cells) return;
  const Cell at(i, order);
  const P* position = static_cast<const P*>(p.position) + at.n * p.ps.n + at.c * p.ps.c;
  const T* g = p.g + at.n * p.gs.n + at.c * p.gs.c;
  SumOf<T> sum = 0;
  for (int64_t oh = rows.first(at.h), last = rows.last(at.h); oh <= last; ++oh) {
    const int64_t kh = rows.position(at.h, oh);
    if (kh < 0) continue;
    for (int64_t ow = columns.first(at.w), end = columns.last(at.w); ow <= end; ++ow) {
      const int64_t kw = columns.position(at.w, ow);
      if (kw >= 0 && position[oh * p.ps.h + ow * p.ps.w] == kh * columns.kernel + kw) sum += widen(g[oh * p.gs.h + ow * p.gs.w]);
    }
  }
  p.dx[i] = narrow<T>(sum);
}

// ---------------------------------------------------------------------------------------------- 2x2 windows side by side

// Stride 2, no padding, planes dense; a row of x is two rows of 16 bytes for as many windows as fit in 16 bytes of one.
template <class T>
constexpr int kWindows = kPerChunk<T> / 2;

template <class T>
__global__ void __launch_bounds__(256) pool_forward_2x2_kernel(PoolForward<T> p, int64_t groups, Divisor in_row) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= groups) return;
  constexpr int V = kWindows<T>;
  const int64_t row = in_row.divide(i), o = row * p.d.OW + (i - row * in_row.d) * V;
  // Rows of x and of y go on from plane to plane: H = 2 OH.
  const T* from = p.x + 2 * row * p.d.W + 2 * (o - row * p.d.OW);
  const Chunk<T> rows[2] = {load<T, kPerChunk<T>>(from), load<T, kPerChunk<T>>(from + p.d.W)};
  Vector<T, V> y;
  Vector<uint8_t, V> position;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    auto best = widen(rows[0][2 * v]);
    position[v] = 0;
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      const auto value = widen(rows[k / 2][2 * v + k % 2]);
      if (takes(value, best)) best = value, position[v] = static_cast<uint8_t>(k);
    }
    y[v] = narrow<T>(best);
  }
  store<T, V>(p.y + o, y);
  store<uint8_t, V>(static_cast<uint8_t*>(p.position) + o, position);
}

template <class T>
__global__ void __launch_bounds__(256) pool_backward_2x2_kernel(PoolBackward<T> p, int64_t groups, Divisor in_row) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= groups) return;
  constexpr int V = kWindows<T>;
  const int64_t row = in_row.divide(i), o = row * p.d.OW + (i - row * in_row.d) * V;
  const auto g = load<T, V>(p.g + o);
  const auto position = load<uint8_t, V>(static_cast<const uint8_t*>(p.position) + o);
  T* to = p.dx + 2 * row * p.d.W + 2 * (o - row * p.d.OW);
#pragma unroll
  for (int kh = 0; kh < 2; ++kh) {
    Chunk<T> cells;
#pragma unroll
    for (int c = 0; c < kPerChunk<T>; ++c) cells[c] = position[c / 2] == kh * 2 + c % 2 ? g[c / 2] : narrow<T>(0);
    store<T, kPerChunk<T>>(to + kh * p.d.W, cells);
  }
}

// ---------------------------------------------------------------------------------------------- channels side by side

// x and y channels_last, C a multiple of a chunk, a byte a position: 16 bytes of channels a thread.
template <class T>
__global__ void __launch_bounds__(256) pool_forward_channels_kernel(PoolForward<T> p, int64_t chunks, Order order) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= chunks) return;
  constexpr int V = kPerChunk<T>;
  const Geometry& d = p.d;
  const Cell at(i, order);  // at.c counts chunks
  const int64_t h0 = at.h * d.SH - d.PH, w0 = at.w * d.SW - d.PW;
  SumOf<T> best[V] = {};
  Vector<uint8_t, V> position = {};
  bool any = false;
  for (int64_t kh = 0; kh < d.KH; ++kh) {
    const int64_t h = h0 + kh * d.DH;
    if (h < 0 || h >= d.H) continue;
    for (int64_t kw = 0; kw < d.KW; ++kw) {
      const int64_t w = w0 + kw * d.DW;
      if (w < 0 || w >= d.W) continue;
      const Chunk<T> x = load<T, V>(p.x + p.xs.at(at.n, at.c * V, h, w));
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (!any || takes(widen(x[v]), best[v])) best[v] = widen(x[v]), position[v] = static_cast<uint8_t>(kh * d.KW + kw);
      any = true;
    }
  }
  Chunk<T> y;
#pragma unroll
  for (int v = 0; v < V; ++v) y[v] = narrow<T>(best[v]);
  store<T, V>(p.y + i * V, y);
  store<uint8_t, V>(static_cast<uint8_t*>(p.position) + i * V, position);
}

// ---------------------------------------------------------------------------------------------- plans and launching

enum class PoolWay { cells, windows_2x2, channels };

struct PoolPlan {
  PoolWay way;
  int64_t items;  // threads with work
  int64_t bytes;  // read and written once each
};

constexpr int kPoolThreads = 256;

inline bool is_dense(const Strides& s, int64_t C, int64_t H, int64_t W) {
  return s.w == 1 && s.h == W && s.c == H * W && s.n == C * H * W;
}
// 2x2 windows that cover whole rows in whole chunks.
template <class T>
bool fits_2x2(const Geometry& d) {
  return d.KH == 2 && d.KW == 2 && d.SH == 2 && d.SW == 2 && d.PH == 0 && d.PW == 0 && d.DH == 1 && d.DW == 1 &&
         d.H == 2 * d.OH && d.W == 2 * d.OW && d.OW % kWindows<T> == 0;
}

template <class T>
PoolPlan plan_pool_forward(const PoolForward<T>& p) {
  const Geometry& d = p.d;
  const int64_t cells = p.N * p.C * d.OH * d.OW, position = maxpool2d::byte_position(d) ? 1 : 4;
  const int64_t bytes = p.N * p.C * d.H * d.W * sizeof(T) + cells * (sizeof(T) + position);
  const bool chunked = aligned(p.x, 16);
  if (fits_2x2<T>(d) && chunked && is_dense(p.xs, p.C, d.H, d.W) && is_dense(p.ys, p.C, d.OH, d.OW))
    return {PoolWay::windows_2x2, cells / kWindows<T>, bytes};
  constexpr int V = kPerChunk<T>;
  if (position == 1 && p.ys.c == 1 && p.xs.c == 1 && p.C % V == 0 && chunked && p.xs.n % V == 0 && p.xs.h % V == 0 && p.xs.w % V == 0)
    return {PoolWay::channels, cells / V, bytes};
  return {PoolWay::cells, cells, bytes};
}

template <class T>
PoolPlan plan_pool_backward(const PoolBackward<T>& p) {
  const Geometry& d = p.d;
  const int64_t windows = p.N * p.C * d.OH * d.OW, cells = p.N * p.C * d.H * d.W;
  const int64_t bytes = cells * sizeof(T) + windows * (sizeof(T) + (maxpool2d::byte_position(d) ? 1 : 4));
  if (fits_2x2<T>(d) && aligned(p.g, 8) && aligned(p.position, 4) && is_dense(p.gs, p.C, d.OH, d.OW) &&
      is_dense(p.ps, p.C, d.OH, d.OW) && is_dense(p.dxs, p.C, d.H, d.W))
    return {PoolWay::windows_2x2, windows / kWindows<T>, bytes};
  return {PoolWay::cells, cells, bytes};
}

inline Launch pool_grid(int64_t items, cudaStream_t stream) {
  return {dim3(static_cast<unsigned>(ceil_div(items, int64_t(kPoolThreads)))), dim3(kPoolThreads), 0, stream};
}

template <class T>
void pool_forward(const PoolForward<T>& p, const PoolPlan& plan, cudaStream_t stream) {
  if (plan.items == 0) return;
  const Geometry& d = p.d;
  const Launch grid = pool_grid(plan.items, stream);
  const Order order{plan.way == PoolWay::channels ? p.C / kPerChunk<T> : p.C, d.OH, d.OW, p.ys.c == 1};
  if (plan.way == PoolWay::windows_2x2) launch<pool_forward_2x2_kernel<T>>(grid, p, plan.items, Divisor(d.OW / kWindows<T>));
  else if (plan.way == PoolWay::channels) launch<pool_forward_channels_kernel<T>>(grid, p, plan.items, order);
  else if (maxpool2d::byte_position(d)) launch<pool_forward_kernel<T, uint8_t>>(grid, p, plan.items, order);
  else launch<pool_forward_kernel<T, int32_t>>(grid, p, plan.items, order);
}

template <class T>
void pool_backward(const PoolBackward<T>& p, const PoolPlan& plan, cudaStream_t stream) {
  if (plan.items == 0) return;
  const Geometry& d = p.d;
  const Launch grid = pool_grid(plan.items, stream);
  const Order order{p.C, d.H, d.W, p.dxs.c == 1};
  const Reach rows{d.SH, d.DH, d.KH, d.OH, d.PH}, columns{d.SW, d.DW, d.KW, d.OW, d.PW};
  if (plan.way == PoolWay::windows_2x2) launch<pool_backward_2x2_kernel<T>>(grid, p, plan.items, Divisor(d.OW / kWindows<T>));
  else if (maxpool2d::byte_position(d)) launch<pool_backward_kernel<T, uint8_t>>(grid, p, plan.items, order, rows, columns);
  else launch<pool_backward_kernel<T, int32_t>>(grid, p, plan.items, order, rows, columns);
}

}  // namespace ts::cuda
