// Bias gradients: the sum of a matrix's rows.
#pragma once

#include "bf16.h"

namespace ts::TS_ISA {

constexpr int64_t kRowsOfASum = 256;  // one chain of thousands of additions would lose digits

// sum[j] = sum over i of g[i, j]: a bias gradient. Four chains hide the latency of an addition; they are joined every
// kRowsOfASum rows.
template <class G, class S>
void sum_rows(const G* g, int64_t rows, int64_t columns, S* sum) {
  using W = Wide<S>;
  for (int64_t j = 0; j < columns; j += kLanes<W>) {
    const int n = static_cast<int>(min_of<int64_t>(kLanes<W>, columns - j));
    const G* at = g + j;
    Vec<W> total{};
    for (int64_t i = 0; i < rows;) {
      const int64_t end = min_of(rows, i + kRowsOfASum);
      Vec<W> s0{}, s1{}, s2{}, s3{};
      for (; i + 4 <= end; i += 4, at += 4 * columns) {
        s0 += load_wide(at, n);
        s1 += load_wide(at + columns, n);
        s2 += load_wide(at + 2 * columns, n);
        s3 += load_wide(at + 3 * columns, n);
      }
      for (; i < end; ++i, at += columns) s0 += load_wide(at, n);
      total += (s0 + s1) + (s2 + s3);
    }
    store_wide(sum + j, total, n);
  }
}

}  // namespace ts::TS_ISA
