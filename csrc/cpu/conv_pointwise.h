// The data gradient of a 1 x 1 convolution of few cells as that of a linear layer whose rows are the cells. There W is read as it
// lies; the way for other sizes packs it, turned, which for 49 cells (of 7 x 7) takes longer than the product, and leaves lanes
// empty where an image has fewer cells than some vectors.
#pragma once

#include "../contract/conv2d.h"
#include "project.h"

namespace ts::TS_ISA {

// Cells of all images up to which packing a convolution's weights would not pay.
constexpr int64_t kCellsInPlace = 256;
// Cells of an image, if there are more: full vectors of them are multiplied as fast without being turned.
constexpr int64_t kFewCells = 64;
// Rows of the linear layer at a time: W is read once for them.
constexpr int64_t kRowsAtOnce = 1024;

template <class T>
TS_INLINE bool pointwise(const conv2d::Dims& d) {
  constexpr int L = kLanes<T>;
  const bool straight = d.KH * d.KW == 1 && d.SH == 1 && d.SW == 1 && d.OH == d.H && d.OW == d.W && d.PT == 0 && d.PL == 0;
  if (!straight || d.G != 1 || d.pool) return false;
  const int64_t cells = d.OH * d.OW, all = d.N * cells;
  // What is turned there and back must be small beside what would be packed, or beside the product.
  return all > 0 && (all <= kCellsInPlace ? all * (d.K + d.C) <= 5 * d.K * d.C : cells < kFewCells && min_of(d.K, d.C) >= (cells < L ? 64 : 512));
}

// g: [K, cells] of each image, those `g_image` elements apart.
template <class T>
void pointwise_data_gradient(const conv2d::Dims& d, const T* g, int64_t g_image, const T* w, T* dx) {
  const int64_t cells = d.OH * d.OW, at_once = max_of<int64_t>(1, kRowsAtOnce / cells), images = min_of(d.N, at_once);
  T* const gt = scratch<T>(Slot::batch, images * cells * d.K);
  T* const dxt = scratch<T>(Slot::image, images * cells * d.C);
  for (int64_t first = 0; first < d.N; first += at_once) {
    const int64_t count = min_of(at_once, d.N - first);
    const auto each_image = [&](int64_t channels, const auto& turn) {
      parallel(count, kParallelWork / (cells * channels) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) turn(n);
      });
    };
    each_image(d.K, [&](int64_t n) { transpose_copy<T>(gt + n * cells * d.K, d.K, g + (first + n) * g_image, cells, d.K, cells); });
    project_back<T>(count * cells, d.C, d.K, gt, w, dxt, false);
    each_image(d.C, [&](int64_t n) { transpose_copy<T>(dx + (first + n) * d.C * cells, cells, dxt + n * cells * d.C, d.C, cells, d.C); });
  }
}

}  // namespace ts::TS_ISA
