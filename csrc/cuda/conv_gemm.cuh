// A convolution without groups as three implicit GEMMs. Formulas and shapes: contract/conv2d.h.
//
//   y [K, cells of y]  = w  [K, taps]       patches of x [cells of y, taps]      taps = (c, kh, kw), along depth
//   dx[C, cells of x]  = w' [C, taps]       patches of g [cells of x, taps]      taps = (k, kh, kw), along depth
//   dw[K, taps of x]   = g  [K, cells of y] patches of x [taps, cells of y]      cells (n, oh, ow) along depth;  db = row sums
// A chunk of 16 bytes runs along cells, which are neighbours in memory where W is innermost. No patch is ever written to memory.
#pragma once

#include "../contract/conv2d.h"
#include "gemm.cuh"

namespace ts::cuda {

// Strides of N, C, H, W, in elements.
struct ImageStrides {
  int64_t n, c, h, w;
};

// Where, along one dimension, a cell looks for tap t: (cell * step + t * tap + start) / every, if that is whole and inside.
struct Axis {
  int64_t step, tap, start, size;
  Divisor every;
  // -1: outside, or between two cells.
  __device__ __forceinline__ int64_t at(int64_t cell, int64_t t) const {
    int64_t position = cell * step + t * tap + start;
    if (position < 0) return -1;
    if (every.d > 1 && every.split(position) != 0) return -1;
    return position < size ? position : -1;
  }
};

// A window that slides over an image: of x in the forward pass, of the gradient, transposed, for dx.
struct Sliding {
  int64_t cells, channels;
  Divisor H, W;    // of the cells
  Divisor KH, KW;  // of the window
  Axis rows, columns;
};
inline Sliding over_input(const conv2d::Dims& d) {
  return {d.N * d.OH * d.OW, d.C, d.OH, d.OW, d.KH, d.KW, {d.SH, d.DH, -d.PT, d.H, 1}, {d.SW, d.DW, -d.PL, d.W, 1}};
}
// oh * SH = h + PT - kh * DH: with a stride, only one tap in SH * SW meets a cell, and the others multiply zeros.
inline Sliding over_gradient(const conv2d::Dims& d) {
  return {d.N * d.H * d.W, d.K, d.H, d.W, d.KH, d.KW, {1, -d.DH, d.PT, d.OH, d.SH}, {1, -d.DW, d.PL, d.OW, d.SW}};
}
// The gradient itself: a window of one cell.
inline Sliding cell_by_cell(const conv2d::Dims& d) {
  return {d.N * d.OH * d.OW, d.K, d.OH, d.OW, 1, 1, {1, 0, 0, d.OH, 1}, {1, 0, 0, d.OW, 1}};
}

// Operand [cells, taps], cells along outer or (kCellsAlongDepth) along depth. With a mask y, cells where y <= 0 count as 0.
template <class T, bool kCellsAlongDepth>
struct Patches {
  using Element = T;
  static constexpr bool kAlongDepth = kCellsAlongDepth;
  Sliding s;
  const T* p;
  ImageStrides strides;
  const T* mask;  // or null
  ImageStrides mask_strides;
  int64_t taps, depth;
  Divisor plane;
  bool flat;  // a window of one cell over dense planes of whole, aligned chunks: nothing to gather

  Patches(const Sliding& s, const T* p, const ImageStrides& strides, const T* mask, const ImageStrides& mask_strides)
      : s(s), p(p), strides(strides), mask(mask), mask_strides(mask_strides), taps(s.channels * s.KH.d * s.KW.d),
        depth(kCellsAlongDepth ? s.cells : taps), plane(s.H.d * s.W.d) {
    const auto still = [](const Axis& a, int64_t cells) { return a.step == 1 && a.start == 0 && a.every.d == 1 && a.size == cells; };
    constexpr int V = kPerChunk<T>;
    flat = mask == nullptr && s.KH.d == 1 && s.KW.d == 1 && still(s.rows, s.H.d) && still(s.columns, s.W.d) &&
           strides.w == 1 && strides.h == s.W.d && plane.d % V == 0 && strides.n % V == 0 && strides.c % V == 0 && aligned(p, 16);
  }

  __device__ __forceinline__ bool direct() const { return flat; }
  __device__ __forceinline__ const T* address(int64_t o, int64_t k, int& valid) const {
    int64_t n = kCellsAlongDepth ? k : o;
    const int64_t tap = kCellsAlongDepth ? o : k;
    valid = chunk_extent<T, kCellsAlongDepth>(o, k, kCellsAlongDepth ? taps : s.cells, depth);
    if (valid == 0) return p;
    const int64_t cell = plane.split(n);
    return p + n * strides.n + tap * strides.c + cell;
  }
  __device__ __forceinline__ Chunk<T> chunk(int64_t o, int64_t k) const {
    Chunk<T> c = {};
    const int valid = chunk_extent<T, kCellsAlongDepth>(o, k, kCellsAlongDepth ? taps : s.cells, depth);
    if (valid == 0) return c;
    int64_t n = kCellsAlongDepth ? k : o, channel = kCellsAlongDepth ? o : k;
    int64_t w = s.W.split(n), h = s.H.split(n);
    const int64_t kw = s.KW.split(channel), kh = s.KH.split(channel);
    int64_t row = s.rows.at(h, kh);
#pragma unroll
    for (int i = 0; i < kPerChunk<T>; ++i) {
      const int64_t column = s.columns.at(w, kw);
      if (i < valid && row >= 0 && column >= 0) {
        const auto at = [&](const ImageStrides& by) { return n * by.n + channel * by.c + row * by.h + column * by.w; };
        if (mask == nullptr || relu_passes(mask[at(mask_strides)])) c[i] = p[at(strides)];
      }
      if (++w == s.W.d) {
        w = 0;
        if (++h == s.H.d) h = 0, ++n;
        row = s.rows.at(h, kh);
      }
    }
    return c;
  }
};

// Operand [channels out, taps] of dense w: X[o, (i, t)] = w[o * outer_step + i * inner_step + t], t < area.
template <class T>
struct Weights {
  using Element = T;
  static constexpr bool kAlongDepth = true;
  const T* p;
  int64_t outer, outer_step, inner_step, depth;
  Divisor area;
  bool dense;  // rows are stretches of memory that start on 16-byte boundaries

  Weights(const T* p, int64_t outer, int64_t outer_step, int64_t inner, int64_t inner_step, int64_t area)
      : p(p), outer(outer), outer_step(outer_step), inner_step(inner_step), depth(inner * area), area(area),
        dense(inner_step == area && outer_step % kPerChunk<T> == 0 && aligned(p, 16)) {}

  __device__ __forceinline__ bool direct() const { return dense; }
  __device__ __forceinline__ const T* address(int64_t o, int64_t k, int& valid) const {
    valid = chunk_extent<T, true>(o, k, outer, depth);
    return valid == 0 ? p : p + o * outer_step + k;
  }
  __device__ __forceinline__ Chunk<T> chunk(int64_t o, int64_t k) const {
    Chunk<T> c = {};
    const int valid = chunk_extent<T, true>(o, k, outer, depth);
    if (valid == 0) return c;
    int64_t i = k, t = area.split(i);
#pragma unroll
    for (int e = 0; e < kPerChunk<T>; ++e) {
      if (e < valid) c[e] = p[o * outer_step + i * inner_step + t];
      if (++t == area.d) t = 0, ++i;
    }
    return c;
  }
};

// Epilogue: C[channel, (n, cell)] -> out[n * image + channel * step + cell * cell_step], or the same cell of `wide`.
template <class T>
struct Planes {
  using S = SumOf<T>;
  T* out;
  S* wide;  // not null: sums as they are, for a pool that follows
  int64_t columns, image, step, cell_step;
  Divisor plane;
  const T* bias;
  bool relu;
  T* sums;

  __device__ __forceinline__ void put(int64_t row, int64_t n, int64_t cell, S v) const {
    if (bias) v += widen(bias[row]);
    if (relu) v = cuda::relu(v);
    const int64_t at = n * image + row * step + cell * cell_step;
    if (wide) wide[at] = v;
    else out[at] = narrow<T>(v);
  }
  __device__ __forceinline__ void pair(int64_t row, int64_t column, S v, S w) const {
    int64_t n = column, cell = plane.split(n);
    put(row, n, cell, v);
    if (column + 1 == columns) return;
    if (++cell == plane.d) cell = 0, ++n;
    put(row, n, cell, w);
  }
  __device__ __forceinline__ void row_sum(int64_t row, S s) const { sums[row] = narrow<T>(s); }
};

}  // namespace ts::cuda
