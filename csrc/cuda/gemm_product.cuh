// The product of two tiles in shared memory, by a block of warps: each warp a WM x WN part, each lane a part of that.
//
// Lane 4 r + c holds rows r, r + 8, ... and columns 2 c, 2 c + 1, 2 c + 8, 2 c + 9, ... of its warp's part: the layout of
// mma.sync's result, and the plain multiply-adds keep to it too, so that both end in the same epilogue.
#pragma once

#include "mma.cuh"

namespace ts::cuda {

// BM x BN of the result a block, BK deep a step; kWarpsM x kWarpsN warps.
template <class T, int kBM_, int kBN_, int kWarpsM_, int kWarpsN_, int kStages_>
struct Tile {
  using Element = T;
  static constexpr int kBM = kBM_, kBN = kBN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kBK = 64 / sizeof(T);  // 64 bytes: two sectors of a row at a time, two or four steps of mma.sync
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpSize;
  static constexpr int kWM = kBM / kWarpsM, kWN = kBN / kWarpsN;  // a warp's part
  static constexpr int kStages = kStages_;                        // tiles in shared memory at once
};

// A tile of an operand in shared memory, rows along the direction in which chunks run. Padding makes the rows that one
// access of a warp touches fall into different banks: 80 bytes a row along depth put 8 rows of 16 bytes into all 32 banks;
// across, 8 rows of 16 bytes (ldmatrix) want an odd number of chunks, and 4 rows of 8 words (TF32) want 8 words more.
template <class T, bool kAlongDepth, int kOuter, int kBK>
struct Plane {
  static constexpr int kPad = !kAlongDepth && sizeof(T) == 4 ? 8 : kPerChunk<T>;
  static constexpr int kPitch = (kAlongDepth ? kBK : kOuter) + kPad;
  static constexpr int kElements = (kAlongDepth ? kOuter : kBK) * kPitch;
  static constexpr int kChunksInRow = (kAlongDepth ? kBK : kOuter) / kPerChunk<T>;
  static constexpr int kChunks = kOuter * kBK / kPerChunk<T>;
  static __device__ __forceinline__ int at(int o, int k) { return kAlongDepth ? o * kPitch + k : k * kPitch + o; }
};

// ---------------------------------------------------------------------------------------------- multiply-adds

template <class Tile, class PlaneA, class PlaneB, bool kADepth, bool kBDepth>
struct SimtProduct {
  using T = typename Tile::Element;
  using S = SumOf<T>;
  static constexpr int kRows = Tile::kWM / 8, kColumns = Tile::kWN / 4, kDeep = kPerChunk<T>;
  S sum[kRows][kColumns] = {};

  // kDeep values along k of a row or column: one 16-byte access where the tile lies along depth.
  template <class Plane, bool kDepth>
  static __device__ __forceinline__ Chunk<T> along(const T* tile, int o, int k) {
    if constexpr (kDepth) {
      return load<T, kDeep>(tile + Plane::at(o, k));
    } else {
      Chunk<T> c;
#pragma unroll
      for (int i = 0; i < kDeep; ++i) c[i] = tile[Plane::at(o, k + i)];
      return c;
    }
  }

  __device__ __forceinline__ void multiply(const T* a, const T* b, int row0, int column0) {
    const int lane = threadIdx.x % kWarpSize, r = row0 + lane / 4, c = column0 + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < Tile::kBK; k += kDeep) {
      Chunk<T> rows[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) rows[i] = along<PlaneA, kADepth>(a, r + 8 * i, k);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const Chunk<T> column = along<PlaneB, kBDepth>(b, c + j / 2 * 8 + j % 2, k);
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
          for (int d = 0; d < kDeep; ++d) sum[i][j] += rows[i][d] * column[d];
      }
    }
  }

  // Calls f(row, column, value, value of the next column).
  template <class F>
  __device__ __forceinline__ void visit(int row0, int column0, const F& f) const {
    const int lane = threadIdx.x % kWarpSize, r = row0 + lane / 4, c = column0 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) f(r + 8 * i, c + 4 * j, sum[i][j], sum[i][j + 1]);
  }
};

// ---------------------------------------------------------------------------------------------- tensor cores

template <class Tile, class PlaneA, class PlaneB, bool kADepth, bool kBDepth>
struct MmaProduct {
  using T = typename Tile::Element;
  static constexpr int kRows = Tile::kWM / 16, kColumns = Tile::kWN / 8, kDeep = 32 / sizeof(T);  // of an mma.sync
  float sum[kRows][kColumns][4] = {};

  __device__ __forceinline__ static void load_a(const T* tile, int row, int k, uint32_t (&a)[4]) {
    const int lane = threadIdx.x % kWarpSize;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = to_tf32(tile[PlaneA::at(row + lane / 4 + i % 2 * 8, k + lane % 4 + i / 2 * 4)]);
    } else if constexpr (kADepth) {  // matrices: rows 0-7, 8-15 of k 0-7, then of k 8-15
      ldmatrix_x4(a, tile + PlaneA::at(row + lane % 16, k + lane / 16 * 8));
    } else {
      ldmatrix_x4_trans(a, tile + PlaneA::at(row + lane / 8 % 2 * 8, k + lane % 8 + lane / 16 * 8));
    }
  }

  // The fragments of columns 0-7 and 8-15.
  __device__ __forceinline__ static void load_b(const T* tile, int column, int k, uint32_t (&b)[2][2]) {
    const int lane = threadIdx.x % kWarpSize;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = to_tf32(tile[PlaneB::at(column + lane / 4 + i / 2 * 8, k + lane % 4 + i % 2 * 4)]);
    } else {
      uint32_t r[4];  // matrices: k 0-7, 8-15 of columns 0-7, then of columns 8-15
      if constexpr (kBDepth) ldmatrix_x4(r, tile + PlaneB::at(column + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
      else ldmatrix_x4_trans(r, tile + PlaneB::at(column + lane / 16 * 8, k + lane % 16));
      b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
    }
  }

  __device__ __forceinline__ void multiply(const T* a, const T* b, int row0, int column0) {
#pragma unroll
    for (int k = 0; k < Tile::kBK; k += kDeep) {
      uint32_t rows[kRows][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) load_a(a, row0 + 16 * i, k, rows[i]);
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        uint32_t columns[2][2];
        load_b(b, column0 + 8 * j, k, columns);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          mma<T>(sum[i][j], rows[i], columns[0]);
          mma<T>(sum[i][j + 1], rows[i], columns[1]);
        }
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void visit(int row0, int column0, const F& f) const {
    const int lane = threadIdx.x % kWarpSize, r = row0 + lane / 4, c = column0 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) f(r + 16 * i + 8 * h, c + 8 * j, sum[i][j][2 * h], sum[i][j][2 * h + 1]);
  }
};

// ---------------------------------------------------------------------------------------------- the two kinds of arithmetic

// Plain multiply-adds: float32 exactly as float32, and float64.
template <class T>
struct Simt {
  using Element = T;
  template <class Tile, class PlaneA, class PlaneB, bool kADepth, bool kBDepth>
  using Product = SimtProduct<Tile, PlaneA, PlaneB, kADepth, kBDepth>;
  static constexpr int kStages = 2;  // a tile's product takes longer than a load: one under way is enough (not yet measured)
};
// mma.sync with sums in float: half, bfloat16, and float rounded to TF32.
template <class T>
struct Mma {
  using Element = T;
  template <class Tile, class PlaneA, class PlaneB, bool kADepth, bool kBDepth>
  using Product = MmaProduct<Tile, PlaneA, PlaneB, kADepth, kBDepth>;
  static constexpr int kStages = 3;  // a load takes longer than a tile's product: two are kept under way (not yet measured)
};

}  // namespace ts::cuda
