// Where a GEMM's operands come from. An operand is a matrix X[outer, depth]: outer is m for A and n for B, depth is k.
//
// A source is a struct of plain values, passed to the kernel, with
//   Element                    the type of an element
//   kAlongDepth                whether a chunk of 16 bytes runs along depth (else along outer)
//   depth                      elements along k; the kernel lowers it to the end of its share of k
//   bool direct()              whether chunks may be copied as they are, asynchronously; the same for a whole launch
//   address(o, k, valid)       then: the address of the chunk at (o, k) and how many of its elements exist
//   chunk(o, k)                else: the chunk itself, elements that do not exist being 0
// (o, k) may lie outside the matrix; o or k, whichever the chunk runs along, is a multiple of its length.
// An implicit GEMM (convolution) or a gathered one (packed sequences) is one more such struct.
#pragma once

#include "platform.cuh"

namespace ts::cuda {

// Elements of a chunk at (o, k) that lie inside.
template <class T, bool kAlongDepth>
__device__ __forceinline__ int chunk_extent(int64_t o, int64_t k, int64_t outer, int64_t depth) {
  const int64_t along = kAlongDepth ? depth - k : outer - o;
  const bool other = kAlongDepth ? o < outer : k < depth;
  return !other || along <= 0 ? 0 : along < kPerChunk<T> ? static_cast<int>(along) : kPerChunk<T>;
}

// X[o, k] = p[o * pitch + k], or p[k * pitch + o].
template <class T, bool kAlongDepth_>
struct Strided {
  using Element = T;
  static constexpr bool kAlongDepth = kAlongDepth_;
  const T* p;
  int64_t pitch, outer, depth;
  bool vector;  // every chunk starts on a 16-byte boundary

  Strided(const T* p, int64_t pitch, int64_t outer, int64_t depth)
      : p(p), pitch(pitch), outer(outer), depth(depth), vector(aligned(p, 16) && pitch % kPerChunk<T> == 0) {}

  __device__ __forceinline__ bool direct() const { return vector; }
  __device__ __forceinline__ const T* address(int64_t o, int64_t k, int& valid) const {
    valid = chunk_extent<T, kAlongDepth>(o, k, outer, depth);
    return valid == 0 ? p : p + (kAlongDepth ? o * pitch + k : k * pitch + o);
  }
  __device__ __forceinline__ Chunk<T> chunk(int64_t o, int64_t k) const {
    int valid;
    const T* from = address(o, k, valid);
    if (vector && valid == kPerChunk<T>) return load<T, kPerChunk<T>>(from);
    Chunk<T> c = {};
#pragma unroll
    for (int i = 0; i < kPerChunk<T>; ++i)
      if (i < valid) c[i] = from[i];
    return c;
  }
};

// The gradient g of a ReLU whose result was y: g where !(y <= 0), else 0. y.p null: g as it is.
template <class T, bool kAlongDepth_>
struct ReluMasked {
  using Element = T;
  static constexpr bool kAlongDepth = kAlongDepth_;
  Strided<T, kAlongDepth> g, y;
  int64_t depth;

  ReluMasked(const Strided<T, kAlongDepth>& g, const Strided<T, kAlongDepth>& y) : g(g), y(y), depth(g.depth) {}

  __device__ __forceinline__ Strided<T, kAlongDepth> within(Strided<T, kAlongDepth> s) const {
    s.depth = depth;
    return s;
  }
  __device__ __forceinline__ bool direct() const { return y.p == nullptr && g.direct(); }
  __device__ __forceinline__ const T* address(int64_t o, int64_t k, int& valid) const {
    return within(g).address(o, k, valid);
  }
  __device__ __forceinline__ Chunk<T> chunk(int64_t o, int64_t k) const {
    Chunk<T> c = within(g).chunk(o, k);
    if (y.p == nullptr) return c;
    const Chunk<T> mask = within(y).chunk(o, k);
#pragma unroll
    for (int i = 0; i < kPerChunk<T>; ++i)
      if (!relu_passes(mask[i])) c[i] = narrow<T>(0);
    return c;
  }
};

}  // namespace ts::cuda
