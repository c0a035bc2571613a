// C[M, N] = sum over k of A[m, k] B[n, k],  followed by an epilogue.  Also, on request, the sums of A's rows.
//
// The operands come from sources (gemm_sources.cuh), the arithmetic is Simt<T> or Mma<T> (gemm_product.cuh), and an epilogue
// is a struct of plain values with
//   pair(row, column, v, w)    takes C at (row, column) and (row, column + 1); the second may lie outside
//   row_sum(row, s)            takes sum over k of A[row, k], if the plan has row_sums
// A block computes one tile of C; tiles of A and B pass through shared memory in kStages buffers. Where C has too few tiles
// for the device, k is cut into shares whose results a second kernel adds in a fixed order: the same bits every time.
#pragma once

#include "gemm_product.cuh"
#include "gemm_sources.cuh"
#include "launch.cuh"

namespace ts::cuda {

// ---------------------------------------------------------------------------------------------- the arithmetic

// Calls f(Math) with the arithmetic for a dtype: tensor cores wherever they compute with at least the dtype's own precision,
// or where the caller allows TF32 and the device (from compute capability 8.0 on) has it.
template <class T, class F>
void with_math(bool allow_tf32, const Device& device, const F& f) {
  if constexpr (std::is_same_v<T, double>) f(Simt<double>{});
  else if constexpr (!std::is_same_v<T, float>) f(Mma<T>{});
  else if (allow_tf32 && device.sm >= 80) f(Mma<float>{});
  else f(Simt<float>{});
}

// ---------------------------------------------------------------------------------------------- the plan

struct GemmPlan {
  int64_t M, N, K;
  bool row_sums;
  int bm, bn, bk, threads;   // the tile of a block
  int64_t tiles_m, tiles_n;
  int64_t shares, share;     // parts of k, and the length of one: a multiple of bk
  int64_t workspace;         // bytes for the results of the shares
  int64_t flops, bytes;      // of the whole product: 2 M N K, and each operand read and C written once
};

constexpr int kSmall = 64, kLarge = 128;

// Steps of bk below which a share is not worth it: the second kernel's launch costs about as much as eight steps.
constexpr int64_t kStepsOfAShare = 8;

template <class Math>
constexpr bool has_large_tiles() { return sizeof(typename Math::Element) < 8; }  // float64: 128 x 128 sums do not fit registers

// 128 x 128 does twice the arithmetic of 64 x 64 for each byte it loads, once every multiprocessor has a tile.
// kLargeToo: whether the caller has the large tiles compiled.
template <class Math, bool kLargeToo = has_large_tiles<Math>()>
GemmPlan plan_gemm(int64_t M, int64_t N, int64_t K, bool row_sums, const Device& device) {
  using T = typename Math::Element;
  GemmPlan p{};
  p.M = M, p.N = N, p.K = K, p.row_sums = row_sums;
  const bool large = kLargeToo && M > kSmall && N > kSmall &&
                     ceil_div(M, int64_t(kLarge)) * ceil_div(N, int64_t(kLarge)) >= device.sms;
  p.bm = p.bn = large ? kLarge : kSmall;
  p.bk = 64 / sizeof(T);
  p.threads = large ? 256 : 128;
  p.tiles_m = ceil_div(M, int64_t(p.bm));
  p.tiles_n = N > 0 ? ceil_div(N, int64_t(p.bn)) : 1;  // N = 0: only the sums of rows
  const int64_t tiles = p.tiles_m * p.tiles_n, steps = ceil_div(K, int64_t(p.bk));
  int64_t shares = tiles == 0 ? 1 : device.sms / tiles;
  if (shares > steps / kStepsOfAShare) shares = steps / kStepsOfAShare;
  if (shares < 1) shares = 1;
  const int64_t steps_each = ceil_div(steps, shares);
  p.share = steps_each * p.bk;
  p.shares = steps_each > 0 ? ceil_div(steps, steps_each) : 1;
  if (p.shares > 1) p.workspace = p.shares * (M * N + (row_sums ? M : 0)) * sizeof(SumOf<T>);
  p.flops = 2 * M * N * K;
  p.bytes = (M * K + N * K + M * N) * sizeof(T);
  return p;
}

// ---------------------------------------------------------------------------------------------- the kernel

template <class S>
struct GemmShape {
  int64_t M, N, K, tiles_m, share;
  bool row_sums;
  S* partial;       // [shares, M, N], null: one share, straight to the epilogue
  S* partial_sums;  // [shares, M]
};

// The tiles of one operand on their way from global to shared memory: asynchronously, or through registers.
template <class Source, class Plane, int kThreads>
struct Loader {
  using T = typename Source::Element;
  static constexpr int kEach = Plane::kChunks / kThreads;
  static_assert(kEach * kThreads == Plane::kChunks, "every thread loads the same number of chunks");
  Chunk<T> held[kEach];

  template <class F>
  static __device__ __forceinline__ void each(const F& f) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int c = threadIdx.x + i * kThreads, row = c / Plane::kChunksInRow, column = c % Plane::kChunksInRow * kPerChunk<T>;
      if constexpr (Source::kAlongDepth) f(i, row, column);
      else f(i, column, row);
    }
  }
  static __device__ __forceinline__ bool asynchronous(const Source& source) { return kAsyncCopies && source.direct(); }
  // Starts to load the tile at (o0, k0).
  __device__ __forceinline__ void begin(const Source& source, T* tile, int64_t o0, int64_t k0) {
    if constexpr (kAsyncCopies)
      if (asynchronous(source))
        return each([&](int, int o, int k) {
          int valid;
          const T* from = source.address(o0 + o, k0 + k, valid);
          cp_async16(tile + Plane::at(o, k), from, valid * static_cast<int>(sizeof(T)));
        });
    each([&](int i, int o, int k) { held[i] = source.chunk(o0 + o, k0 + k); });
  }
  // Puts down what went through registers.
  __device__ __forceinline__ void end(const Source& source, T* tile) {
    if (asynchronous(source)) return;
    each([&](int i, int o, int k) { store<T, kPerChunk<T>>(tile + Plane::at(o, k), held[i]); });
  }
};

template <class Math, class Tile, class A, class B>
struct GemmLayout {
  using T = typename Math::Element;
  using PlaneA = Plane<T, A::kAlongDepth, Tile::kBM, Tile::kBK>;
  using PlaneB = Plane<T, B::kAlongDepth, Tile::kBN, Tile::kBK>;
  static constexpr int kStage = PlaneA::kElements + PlaneB::kElements;
  static constexpr size_t kBytes = sizeof(T) * kStage * Tile::kStages;
};

template <class Math, class Tile, class A, class B, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_kernel(GemmShape<SumOf<typename Math::Element>> shape, A a, B b, Epilogue epilogue) {
  using T = typename Math::Element;
  using S = SumOf<T>;
  using Layout = GemmLayout<Math, Tile, A, B>;
  using PlaneA = typename Layout::PlaneA;
  using PlaneB = typename Layout::PlaneB;
  constexpr int kStages = Tile::kStages;
  T* pool = shared<T>();
  const int warp = threadIdx.x / kWarpSize;
  const int row0 = warp / Tile::kWarpsN * Tile::kWM, column0 = warp % Tile::kWarpsN * Tile::kWN;
  const int64_t m0 = blockIdx.x % shape.tiles_m * Tile::kBM, n0 = blockIdx.x / shape.tiles_m * Tile::kBN;
  const int64_t k0 = blockIdx.y * shape.share, k1 = k0 + shape.share < shape.K ? k0 + shape.share : shape.K;
  const int steps = static_cast<int>(ceil_div(k1 - k0, int64_t(Tile::kBK)));
  a.depth = b.depth = k1;
  // Each row's sum is one thread's, in the block that has the first columns.
  const bool sums_row = shape.row_sums && n0 == 0 && threadIdx.x < Tile::kBM;
  S row_sum = 0;

  Loader<A, PlaneA, Tile::kThreads> load_a;
  Loader<B, PlaneB, Tile::kThreads> load_b;
  const auto begin = [&](int step) {
    T* stage = pool + step % kStages * Layout::kStage;
    load_a.begin(a, stage, m0, k0 + int64_t(step) * Tile::kBK);
    load_b.begin(b, stage + PlaneA::kElements, n0, k0 + int64_t(step) * Tile::kBK);
  };
  const auto end = [&](int step) {
    T* stage = pool + step % kStages * Layout::kStage;
    load_a.end(a, stage);
    load_b.end(b, stage + PlaneA::kElements);
  };
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) begin(step), end(step);
    cp_async_commit();
  }

  typename Math::template Product<Tile, PlaneA, PlaneB, A::kAlongDepth, B::kAlongDepth> product;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this step's tile is there for all, and all are done with the one before, whose place is free
    const int next = step + kStages - 1;
    if (next < steps) begin(next);
    cp_async_commit();
    const T* stage = pool + step % kStages * Layout::kStage;
    product.multiply(stage, stage + PlaneA::kElements, row0, column0);
    if (sums_row) {
      S tile_sum = 0;  // a tile at a time: shorter sums, smaller errors
#pragma unroll 4
      for (int k = 0; k < Tile::kBK; ++k) tile_sum += widen(stage[PlaneA::at(threadIdx.x, k)]);
      row_sum += tile_sum;
    }
    if (next < steps) end(next);
  }

  if (sums_row && m0 + threadIdx.x < shape.M) {
    if (shape.partial) shape.partial_sums[blockIdx.y * shape.M + m0 + threadIdx.x] = row_sum;
    else epilogue.row_sum(m0 + threadIdx.x, row_sum);
  }
  product.visit(row0, column0, [&](int row, int column, S v, S w) {
    const int64_t m = m0 + row, n = n0 + column;
    if (m >= shape.M || n >= shape.N) return;
    if (shape.partial == nullptr) return epilogue.pair(m, n, v, w);
    S* to = shape.partial + (blockIdx.y * shape.M + m) * shape.N + n;
    to[0] = v;
    if (n + 1 < shape.N) to[1] = w;
  });
}

// Adds the shares in their order. pairs = (N + 1) / 2 in a row.
template <class S, class Epilogue>
__global__ void __launch_bounds__(256) gemm_reduce_kernel(GemmShape<S> shape, int shares, Divisor pairs, Epilogue epilogue) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i < shape.M * pairs.d) {
    int64_t row = i;
    const int64_t column = pairs.split(row) * 2;
    S v = 0, w = 0;
    for (int s = 0; s < shares; ++s) {
      const S* from = shape.partial + (s * shape.M + row) * shape.N + column;
      v += from[0];
      if (column + 1 < shape.N) w += from[1];
    }
    epilogue.pair(row, column, v, w);
  }
  if (shape.row_sums && i < shape.M) {
    S sum = 0;
    for (int s = 0; s < shares; ++s) sum += shape.partial_sums[s * shape.M + i];
    epilogue.row_sum(i, sum);
  }
}

// ---------------------------------------------------------------------------------------------- an epilogue

// out[row, column] = relu(v + bias[column]), sums[row] = s; any of out, bias, sums may be null.
template <class T>
struct Dense {
  using S = SumOf<T>;
  T* out;
  int64_t columns;  // of out, dense
  const T* bias;
  bool relu;
  T* sums;

  __device__ __forceinline__ S finish(S v, int64_t column) const {
    if (bias) v += widen(bias[column]);
    return relu ? cuda::relu(v) : v;
  }
  __device__ __forceinline__ void pair(int64_t row, int64_t column, S v, S w) const {
    T* to = out + row * columns + column;
    if (columns % 2 == 0) {  // then every pair is whole and aligned: out is torch's, on a boundary of 64 bytes and more
      Vector<T, 2> both{{narrow<T>(finish(v, column)), narrow<T>(finish(w, column + 1))}};
      return store<T, 2>(to, both);
    }
    to[0] = narrow<T>(finish(v, column));
    if (column + 1 < columns) to[1] = narrow<T>(finish(w, column + 1));
  }
  __device__ __forceinline__ void row_sum(int64_t row, S s) const { sums[row] = narrow<T>(s); }
};

// ---------------------------------------------------------------------------------------------- launching

template <class Math, class Tile, class A, class B, class Epilogue>
void launch_gemm(const GemmPlan& p, const A& a, const B& b, const Epilogue& epilogue, void* workspace, cudaStream_t stream) {
  using S = SumOf<typename Math::Element>;
  S* partial = p.shares > 1 ? static_cast<S*>(workspace) : nullptr;
  const GemmShape<S> shape{p.M, p.N, p.K, p.tiles_m, p.share, p.row_sums, partial, partial ? partial + p.shares * p.M * p.N : nullptr};
  const Launch grid{dim3(static_cast<unsigned>(p.tiles_m * p.tiles_n), static_cast<unsigned>(p.shares)),
                    dim3(Tile::kThreads), GemmLayout<Math, Tile, A, B>::kBytes, stream};
  launch<gemm_kernel<Math, Tile, A, B, Epilogue>>(grid, shape, a, b, epilogue);
  if (p.shares == 1) return;
  const Divisor pairs((p.N + 1) / 2);
  const int64_t items = p.M * (pairs.d > 1 ? pairs.d : 1);
  launch<gemm_reduce_kernel<S, Epilogue>>({dim3(static_cast<unsigned>(ceil_div(items, int64_t(256)))), dim3(256), 0, stream},
                                          shape, static_cast<int>(p.shares), pairs, epilogue);
}

// workspace: p.workspace bytes. M = 0 is nothing to do; K = 0 gives zeros to the epilogue.
template <class Math, bool kLargeToo = has_large_tiles<Math>(), class A, class B, class Epilogue>
void gemm(const GemmPlan& p, const A& a, const B& b, const Epilogue& epilogue, void* workspace, cudaStream_t stream) {
  using T = typename Math::Element;
  if (p.M == 0 || (p.N == 0 && !p.row_sums)) return;
  if constexpr (kLargeToo)
    if (p.bm == kLarge) return launch_gemm<Math, Tile<T, kLarge, kLarge, 2, 4, Math::kStages>>(p, a, b, epilogue, workspace, stream);
  launch_gemm<Math, Tile<T, kSmall, kSmall, 2, 2, Math::kStages>>(p, a, b, epilogue, workspace, stream);
}

}  // namespace ts::cuda
