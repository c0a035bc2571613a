// conv2d (cross-correlation), optionally + ReLU, optionally + ReLU + max pool, in one pass:
//
//   y[n, k, oh, ow] = bias[k] + sum over (c, kh, kw) of w[k, c, kh, kw] * x[n, g*C/G + c, oh*SH - PT + kh*DH, ow*SW - PL + kw*DW]
//
// with g = k / (K/G) and x = 0 outside. ReLU then changes y < 0 to 0; the pool is maxpool2d's (contract/maxpool2d.h).
// Since relu(maxpool(y)) = maxpool(relu(y)), and where the pooled value is <= 0 no gradient passes, position and pooled
// value are all that backward needs of the fused form.
//
// Backward, with g = dL/dy (after unpooling and masking):
//   dx = the same sum over g with SH, SW zeros inserted between its cells, and w flipped in kh, kw with k, c exchanged
//   dw[k, c, kh, kw] = sum over (n, oh, ow) of g[n, k, oh, ow] * x[n, …, oh*SH - PT + kh*DH, ow*SW - PL + kw*DW]
//   db[k] = sum over (n, oh, ow) of g[n, k, oh, ow]
#pragma once

#include "maxpool2d.h"

namespace ts::conv2d {

struct Dims {
  int64_t N, C, H, W;      // input
  int64_t K, KH, KW;       // output channels, window
  int64_t SH, SW;          // stride
  int64_t PT, PL, PB, PR;  // padding: top, left, bottom, right ("same" with an even window is lopsided)
  int64_t DH, DW, G;       // dilation, groups
  int64_t OH, OW;          // output
  bool relu, pool;
  maxpool2d::Geometry window;  // of the pool over OH x OW, if pool
  bool channels_last = false;  // x, y, g, dx are [N, H, W, channels]: only where depthwise_last
};

// One input channel a group and so few outputs that nothing is gained by sharing its loads. Sums of a window are one chain
// of additions, which keeps its digits for some hundreds of cells.
inline bool depthwise(const Dims& d) {
  return !d.pool && d.G > 1 && d.C == d.G && d.K / d.G <= 2 && d.KH * d.KW <= 256;
}
inline bool depthwise_last(const Dims& d) { return depthwise(d) && d.K == d.G; }

inline Dims dims(const int64_t (&x)[4], const int64_t (&w)[4], int64_t bias, int64_t SH, int64_t SW,
                 const int64_t (&pad)[4], int64_t DH, int64_t DW, int64_t G, bool relu) {
  Dims d{x[0], x[1], x[2], x[3], w[0], w[2], w[3], SH, SW, pad[0], pad[1], pad[2], pad[3], DH, DW, G, 0, 0, relu, false, {}};
  for (int64_t v : {SH, SW, DH, DW, pad[0], pad[1], pad[2], pad[3], d.H, d.W, d.KH, d.KW})
    require(v <= INT32_MAX, "conv2d: a size, stride, padding or dilation exceeds int32");
  require(SH > 0 && SW > 0, "conv2d: non-positive stride is not supported");
  require(DH > 0 && DW > 0, "conv2d: dilation should be greater than zero");
  for (int64_t v : pad) require(v >= 0, "conv2d: negative padding is not supported");
  require(G > 0 && d.K % G == 0 && d.C == w[1] * G, "conv2d: channels of input and weight do not fit the groups");
  require(bias == -1 || bias == d.K, "conv2d: bias does not have one element for each output channel");
  require(d.KH > 0 && d.KW > 0 && d.C > 0 && d.K > 0 && (d.N == 0 || (d.H > 0 && d.W > 0)),
          "conv2d: the window, the channels or the image are empty");
  const int64_t free_h = d.H + d.PT + d.PB - DH * (d.KH - 1) - 1, free_w = d.W + d.PL + d.PR - DW * (d.KW - 1) - 1;
  require(free_h >= 0 && free_w >= 0, "conv2d: Kernel size can't be greater than actual input size");
  d.OH = free_h / SH + 1;
  d.OW = free_w / SW + 1;
  return d;
}

template <class T>
struct Forward {
  Dims d;
  const T* x;      // [N, C, H, W]
  const T* w;      // [K, C/G, KH, KW]
  const T* bias;   // [K] or null
  T* y;            // [N, K, OH, OW], or pooled [N, K, window.OH, window.OW]
  void* position;  // pool: [N, K, window.OH, window.OW], uint8 or int32; else null
};

template <class T>
struct Backward {
  Dims d;
  const T* g;            // of the shape of y
  const T* x;            // [N, C, H, W]
  const T* w;            // [K, C/G, KH, KW]
  const T* y;            // the forward result; null unless relu
  const void* position;  // as in Forward
  T* dx;                 // [N, C, H, W] or null
  T* dw;                 // [K, C/G, KH, KW] or null
  T* db;                 // [K] or null
  int64_t g_image = 0;   // on the CPU: elements from image to image of g, where it is a slice of more channels; else 0
};

}  // namespace ts::conv2d
