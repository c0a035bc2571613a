// max_pool2d:  y[oh, ow] = max over (kh, kw) of x[oh * SH - PH + kh * DH, ow * SW - PW + kw * DW], cells inside x only.
//
// The position kh * KW + kw of the maximum is saved for backward, one byte where the window has at most 256 cells.
// Ties take the first cell, a NaN wins and the last NaN's position counts, a window of -inf gives its first cell: as ATen.
// A dilated window may miss a small image altogether: it gives -inf, and its gradient goes nowhere.
// Backward:  dx[cell at position] += g. Each cell of dx is summed by one thread, in an order that the sizes alone decide.
#pragma once

#include "check.h"

namespace ts::maxpool2d {

struct Geometry {
  int64_t H, W;                        // input plane
  int64_t KH, KW, SH, SW, PH, PW, DH, DW;  // window, stride, padding, dilation
  int64_t OH, OW;                      // output plane
};

inline int64_t output_size(int64_t in, int64_t k, int64_t s, int64_t p, int64_t d, bool ceil_mode) {
  const int64_t span = in + 2 * p - d * (k - 1) - 1 + (ceil_mode ? s - 1 : 0);
  int64_t out = (span >= 0 ? span / s : -((-span + s - 1) / s)) + 1;
  if (ceil_mode && (out - 1) * s >= in + p) --out;  // a last window that starts in the right padding is dropped
  return out;
}

inline Geometry geometry(int64_t H, int64_t W, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH, int64_t PW,
                         int64_t DH, int64_t DW, bool ceil_mode) {
  const int64_t limit = INT32_MAX;  // sizes beyond int32 make products of two of them leave int64
  for (int64_t v : {H, W, KH, KW, SH, SW, PH, PW, DH, DW}) require(v <= limit, "max_pool2d: a size exceeds int32");
  require(KH > 0 && KW > 0, "max_pool2d: kernel size should be greater than zero");
  require(SH > 0 && SW > 0, "max_pool2d: stride should not be zero");
  require(DH > 0 && DW > 0, "max_pool2d: dilation should be greater than zero");
  require(PH >= 0 && PW >= 0 && 2 * PH <= (KH - 1) * DH + 1 && 2 * PW <= (KW - 1) * DW + 1,
          "max_pool2d: pad should be at most half of effective kernel size");
  require(KH * KW <= limit, "max_pool2d: window too large");
  const Geometry g{H, W, KH, KW, SH, SW, PH, PW, DH, DW, output_size(H, KH, SH, PH, DH, ceil_mode),
                   output_size(W, KW, SW, PW, DW, ceil_mode)};
  require(g.OH > 0 && g.OW > 0, "max_pool2d: Output size is too small");
  return g;
}

inline bool byte_position(const Geometry& g) { return g.KH * g.KW <= 256; }

// Two layouts: planes [N, C, H, W], or channels last [N, H, W, C]. y, position, g and dx have that of x.
template <class T>
struct Forward {
  Geometry d;
  int64_t N, C;
  bool channels_last;
  const T* x;
  T* y;
  void* position;  // of y's shape, uint8 or int32 (byte_position)
};

template <class T>
struct Backward {
  Geometry d;
  int64_t N, C;
  bool channels_last;
  const T* g;
  const void* position;  // of g's shape, uint8 or int32
  T* dx;
};

}  // namespace ts::maxpool2d
