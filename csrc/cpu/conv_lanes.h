// Planes of images as planes of lanes (bf16.h): what a convolution expands and multiplies. For float and double they are the
// planes themselves. For bf16 two planes become one of pairs: two channels where the sum runs over channels, two images
// where it runs over images, so that in both cases the cells stay side by side and the same loads serve every type.
#pragma once

#include "bf16.h"

namespace ts::TS_ISA {

// Planes 2q and 2q + 1 of each group of `count` planes; the partner of an odd last one is zero. All dense, of `cells` cells.
template <class T>
const Lane<T>* lane_planes(const T* x, int64_t groups, int64_t count, int64_t cells, Slot slot) {
  if constexpr (kPair<T> == 1) {
    return x;
  } else {
    int32_t* const planes = scratch<int32_t>(slot, groups * lanes_of<T>(count) * cells);
    int32_t* to = planes;
    for (int64_t g = 0; g < groups; ++g, x += count * cells) {
      if (cells == 1) {  // pairs lie side by side
        for_vectors<int32_t>(lanes_of<T>(count), [&](int64_t q, int n) {
          store_some<int32_t>(to + q, load_pairs(x + 2 * q, static_cast<int>(min_of<int64_t>(2 * n, count - 2 * q))), n);
        });
        to += lanes_of<T>(count);
        continue;
      }
      for (int64_t q = 0; q < count; q += 2, to += cells) {
        const T *low = x + q * cells, *high = q + 1 < count ? low + cells : nullptr;
        for_vectors<int32_t>(cells, [&](int64_t i, int n) {
          store_some<int32_t>(to + i, zip_pairs(low + i, high ? high + i : nullptr, n), n);
        });
      }
    }
    return planes;
  }
}

}  // namespace ts::TS_ISA
