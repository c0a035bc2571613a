// linear, linear+ReLU on CUDA.  Formulas and shapes: contract/linear.h.
//
//   y[M, N]  = x[M, K] w[N, K]^T + bias, ReLU        a GEMM along K;  up to 8 rows: dot products by a warp each
//   dx[M, K] = g[M, N] w[N, K]                       a GEMM along N
//   dw[N, K] = g[M, N]^T x[M, K],  db = row sums     a GEMM along M, that adds up the rows of g^T as they pass
// The ReLU mask y <= 0 is applied to g while it is loaded.
#pragma once

#include "../contract/linear.h"
#include "gemm.cuh"

namespace ts::cuda {

// Rows `pitch` elements apart, elements of a row next to each other: what a view of a larger matrix may be, too.
struct LinearPitches {
  int64_t x, w, g, y;
};

// ---------------------------------------------------------------------------------------------- a few rows

// Up to as many rows of x, each column of y is a warp's: w is read once and at full width, which is all the time there is.
constexpr int kFewRows = 8;
constexpr int kFewRowsThreads = 128;

template <class T>
__global__ void __launch_bounds__(kFewRowsThreads)
    linear_few_rows_kernel(Strided<T, true> x, Strided<T, true> w, Dense<T> out) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t n = blockIdx.x * int64_t(kFewRowsThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (n >= w.outer) return;
  SumOf<T> sum[kFewRows] = {};
  for (int64_t k = lane * kPerChunk<T>; k < w.depth; k += kWarpSize * kPerChunk<T>) {
    const Chunk<T> weights = w.chunk(n, k);
#pragma unroll
    for (int m = 0; m < kFewRows; ++m) {
      if (m >= x.outer) break;
      const Chunk<T> row = x.chunk(m, k);
#pragma unroll
      for (int i = 0; i < kPerChunk<T>; ++i) sum[m] += widen(weights[i]) * widen(row[i]);
    }
  }
#pragma unroll
  for (int m = 0; m < kFewRows; ++m) {
    if (m >= x.outer) break;
#pragma unroll
    for (int with = kWarpSize / 2; with > 0; with /= 2) sum[m] += __shfl_xor_sync(kWholeWarp, sum[m], with);
    if (lane == 0) out.out[m * out.columns + n] = narrow<T>(out.finish(sum[m], n));
  }
}

// ---------------------------------------------------------------------------------------------- plans

struct LinearForwardPlan {
  bool few_rows;
  GemmPlan gemm;
};
template <class Math>
LinearForwardPlan plan_linear_forward(const linear::Dims& d, const Device& device) {
  return {d.M <= kFewRows, plan_gemm<Math>(d.M, d.N, d.K, false, device)};
}

struct LinearBackwardPlan {
  GemmPlan dx, dw;
  int64_t workspace;  // bytes; the two products come one after the other and share it
};
template <class Math>
LinearBackwardPlan plan_linear_backward(const linear::Dims& d, bool dx, bool dw, bool db, const Device& device) {
  LinearBackwardPlan p{};
  p.dx = plan_gemm<Math>(dx ? d.M : 0, d.K, d.N, false, device);
  p.dw = plan_gemm<Math>(dw || db ? d.N : 0, dw ? d.K : 0, d.M, db, device);
  p.workspace = p.dx.workspace > p.dw.workspace ? p.dx.workspace : p.dw.workspace;
  return p;
}

// ---------------------------------------------------------------------------------------------- launching

template <class Math, class T>
void linear_forward(const linear::Forward<T>& p, const LinearPitches& pitch, const LinearForwardPlan& plan, void* workspace,
                    cudaStream_t stream) {
  const auto [M, K, N, relu] = p.d;
  if (M == 0 || N == 0) return;
  const Strided<T, true> x(p.x, pitch.x, M, K), w(p.w, pitch.w, N, K);
  const Dense<T> out{p.y, N, p.bias, relu, nullptr};
  if (!plan.few_rows) return gemm<Math>(plan.gemm, x, w, out, workspace, stream);
  const int64_t blocks = ceil_div(N, int64_t(kFewRowsThreads / kWarpSize));
  launch<linear_few_rows_kernel<T>>({dim3(static_cast<unsigned>(blocks)), dim3(kFewRowsThreads), 0, stream}, x, w, out);
}

template <class Math, class T>
void linear_backward(const linear::Backward<T>& p, const LinearPitches& pitch, const LinearBackwardPlan& plan,
                     void* workspace, cudaStream_t stream) {
  const auto [M, K, N, relu] = p.d;
  if (p.dx) {
    const ReluMasked<T, true> g({p.g, pitch.g, M, N}, {p.y, pitch.y, M, N});
    gemm<Math>(plan.dx, g, Strided<T, false>(p.w, pitch.w, K, N), Dense<T>{p.dx, K, nullptr, false, nullptr}, workspace, stream);
  }
  if (p.dw || p.db) {
    const ReluMasked<T, false> g({p.g, pitch.g, N, M}, {p.y, pitch.y, N, M});
    gemm<Math>(plan.dw, g, Strided<T, false>(p.x, pitch.x, K, M), Dense<T>{p.dw, K, nullptr, false, p.db}, workspace, stream);
  }
}

}  // namespace ts::cuda
