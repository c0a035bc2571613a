// One step of a recurrent cell: what rnn and gru share beside their formulas (rnn.cuh, gru.cuh).
//
//   forward   one launch: x W_ih^T and h W_hh^T pass through shared memory, then biases and gates
//   backward  one launch for the gradients at both products; the products with them are GEMMs (sequence.cuh)
//
// A Cell is a struct of plain values with, for W = the type sums are kept in,
//   kGates, kSavesGates
//   forward(x[kGates], q[kGates], h, kept[4]) -> h'       x: the input's part with its bias, q: the state's
//   backward(g, h, y, kept[4], dx[kGates], dq[kGates])    -> what reaches h beside dq W_hh
#pragma once

#include "launch.cuh"

namespace ts::cuda {

__device__ __forceinline__ float tanh_of(float v) { return tanhf(v); }
__device__ __forceinline__ double tanh_of(double v) { return tanh(v); }
__device__ __forceinline__ float sigmoid(float v) { return 1 / (1 + expf(-v)); }
__device__ __forceinline__ double sigmoid(double v) { return 1 / (1 + exp(-v)); }

// Values that are T at the ends of a stack and SumOf<T> inside it: exactly one pointer is set, or none.
template <class T>
struct Either {
  T* narrow;
  SumOf<T>* wide;
  __device__ __forceinline__ bool given() const { return narrow != nullptr || wide != nullptr; }
  __device__ __forceinline__ SumOf<T> get(int64_t i) const { return narrow ? SumOf<T>(widen(narrow[i])) : wide[i]; }
  __device__ __forceinline__ void put(int64_t i, SumOf<T> v) const {
    if (narrow) narrow[i] = cuda::narrow<T>(v);
    else wide[i] = v;
  }
};

// A thread computes this many batch rows of one unit: each weight it reads serves as many multiply-adds.
constexpr int kRowsOfThread = 4;

// sum[g][r] += weight(g, k) rows[r * pitch + k] for k < depth, a multiple of 16 bytes, in shared memory. Lanes of a warp
// read the same row, which is one access, and different units' weights.
template <int kColumns, class W, class F>
__device__ __forceinline__ void multiply(W (&sum)[kColumns][kRowsOfThread], const W* rows, int pitch, int depth,
                                         const F& weight) {
  constexpr int kDeep = kPerChunk<W>;
#pragma unroll 1  // a step is 16 to 48 multiply-adds already; more of them at once, and float64 spills
  for (int k = 0; k < depth; k += kDeep) {
    Chunk<W> row[kRowsOfThread];
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) row[r] = load<W, kDeep>(rows + r * pitch + k);
#pragma unroll
    for (int g = 0; g < kColumns; ++g)
#pragma unroll
      for (int d = 0; d < kDeep; ++d) {
        const W w = weight(g, k + d);
#pragma unroll
        for (int r = 0; r < kRowsOfThread; ++r) sum[g][r] += w * row[r][d];
      }
  }
}

// ---------------------------------------------------------------------------------------------- forward

template <class T>
struct CellForward {
  int64_t B, I, H;
  const T *x, *h;         // [B, I], [B, H]: rows `pitch` apart
  int64_t x_pitch, h_pitch;
  const T *w_ih, *w_hh;   // [kGates * H, I], [kGates * H, H], dense
  const T *b_ih, *b_hh;   // [kGates * H] or null
  T* y;                   // [B, H]
  SumOf<T>* kept;         // [B, 4 * H] or null
};

constexpr int kCellUnits = 32, kCellGroups = 4, kCellBatch = kCellGroups * kRowsOfThread, kCellDeep = 32;
constexpr int kCellThreads = kCellUnits * kCellGroups;
constexpr int kCellPitch = kCellUnits + 1;  // odd: a warp writes 32 k of one unit into 32 banks

template <class W>
constexpr size_t cell_shared(int gates) { return sizeof(W) * kCellDeep * (kCellBatch + gates * kCellPitch); }

// sum[g][r] += x[b0 + 4 group + r, :] w[g * H + j0 + unit, :]
template <int G, class T>
__device__ __forceinline__ void cell_product(SumOf<T> (&sum)[G][kRowsOfThread], const T* x, int64_t pitch, const T* w,
                                             int64_t depth, int64_t B, int64_t H, int64_t b0, int64_t j0) {
  using W = SumOf<T>;
  W *rows = shared<W>(), *weights = rows + kCellBatch * kCellDeep;
  const int unit = threadIdx.x % kCellUnits, group = threadIdx.x / kCellUnits;
  for (int64_t k0 = 0; k0 < depth; k0 += kCellDeep) {
    __syncthreads();  // all are done with the tiles before
    for (int i = threadIdx.x; i < kCellBatch * kCellDeep; i += kCellThreads) {
      const int64_t b = b0 + i / kCellDeep, k = k0 + i % kCellDeep;
      rows[i] = b < B && k < depth ? W(widen(x[b * pitch + k])) : W(0);
    }
    for (int i = threadIdx.x; i < G * kCellUnits * kCellDeep; i += kCellThreads) {
      const int column = i / kCellDeep, g = column / kCellUnits, u = column % kCellUnits, k = i % kCellDeep;
      const bool inside = j0 + u < H && k0 + k < depth;
      weights[(k * G + g) * kCellPitch + u] = inside ? W(widen(w[(g * H + j0 + u) * depth + k0 + k])) : W(0);
    }
    __syncthreads();
    W part[G][kRowsOfThread] = {};  // a tile at a time: shorter sums, smaller errors
    multiply(part, rows + group * kRowsOfThread * kCellDeep, kCellDeep, kCellDeep,
             [&](int g, int k) { return weights[(k * G + g) * kCellPitch + unit]; });
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int r = 0; r < kRowsOfThread; ++r) sum[g][r] += part[g][r];
  }
}

template <class Cell, class T>
__global__ void __launch_bounds__(kCellThreads) cell_forward_kernel(Cell cell, CellForward<T> p) {
  using W = SumOf<T>;
  constexpr int G = Cell::kGates;
  const int64_t blocks = ceil_div(p.H, int64_t(kCellUnits));
  const int64_t j0 = blockIdx.x % blocks * kCellUnits, b0 = blockIdx.x / blocks * kCellBatch;
  W xs[G][kRowsOfThread] = {}, qs[G][kRowsOfThread] = {};
  cell_product<G>(xs, p.x, p.x_pitch, p.w_ih, p.I, p.B, p.H, b0, j0);
  cell_product<G>(qs, p.h, p.h_pitch, p.w_hh, p.H, p.B, p.H, b0, j0);
  const int64_t j = j0 + threadIdx.x % kCellUnits, first = b0 + threadIdx.x / kCellUnits * kRowsOfThread;
  if (j >= p.H) return;
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
    const int64_t b = first + r;
    if (b >= p.B) return;
    W x[G], q[G], kept[4];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      x[g] = xs[g][r] + (p.b_ih ? W(widen(p.b_ih[g * p.H + j])) : W(0));
      q[g] = qs[g][r] + (p.b_hh ? W(widen(p.b_hh[g * p.H + j])) : W(0));
    }
    p.y[b * p.H + j] = narrow<T>(cell.forward(x, q, W(widen(p.h[b * p.h_pitch + j])), kept));
    if constexpr (Cell::kSavesGates)
      if (p.kept)
        for (int i = 0; i < 4; ++i) p.kept[(b * 4 + i) * p.H + j] = kept[i];
  }
}

template <class Cell, class T>
void cell_forward(const Cell& cell, const CellForward<T>& p, cudaStream_t stream) {
  if (p.B == 0 || p.H == 0) return;
  const int64_t blocks = ceil_div(p.H, int64_t(kCellUnits)) * ceil_div(p.B, int64_t(kCellBatch));
  launch<cell_forward_kernel<Cell, T>>(
      {dim3(static_cast<unsigned>(blocks)), dim3(kCellThreads), cell_shared<SumOf<T>>(Cell::kGates), stream}, cell, p);
}

// ---------------------------------------------------------------------------------------------- backward

template <class T>
struct CellGates {
  int64_t B, H;
  const T *g, *h, *y;        // [B, H]
  const SumOf<T>* kept;      // [B, 4 * H]
  T *dxg, *dhg;              // [B, kGates * H]: gradients at the two products; one and the same for rnn
  SumOf<T>* direct;          // [B, H]: what reaches h beside dhg W_hh
};

template <class Cell, class T>
__global__ void __launch_bounds__(256) cell_backward_kernel(Cell cell, CellGates<T> p, Divisor H) {
  using W = SumOf<T>;
  constexpr int G = Cell::kGates;
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= p.B * p.H) return;
  int64_t b = i;
  const int64_t j = H.split(b);
  W kept[4] = {}, dx[G], dq[G];
  if constexpr (Cell::kSavesGates)
    for (int k = 0; k < 4; ++k) kept[k] = p.kept[(b * 4 + k) * p.H + j];
  p.direct[i] = cell.backward(W(widen(p.g[i])), W(widen(p.h[i])), W(widen(p.y[i])), kept, dx, dq);
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t at = (b * G + g) * p.H + j;
    p.dxg[at] = narrow<T>(dx[g]);
    if constexpr (G > 1) p.dhg[at] = narrow<T>(dq[g]);
  }
}

}  // namespace ts::cuda
