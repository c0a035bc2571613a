// rnn (Elman) on CUDA.  Formulas: contract/rnn.h; the launches: cell.cuh, steps.cuh, sequence.cuh.
#pragma once

#include "../contract/rnn.h"
#include "sequence.cuh"

namespace ts::cuda {

struct RnnCell {
  static constexpr int kGates = 1;
  static constexpr bool kSavesGates = false;
  bool use_relu;  // instead of tanh

  template <class W>
  __device__ __forceinline__ W forward(const W (&x)[1], const W (&q)[1], W, W (&)[4]) const {
    const W a = x[0] + q[0];
    return use_relu ? relu(a) : tanh_of(a);
  }
  template <class W>
  __device__ __forceinline__ W backward(W g, W, W y, const W (&)[4], W (&dx)[1], W (&dq)[1]) const {
    dx[0] = dq[0] = use_relu ? (relu_passes(y) ? g : W(0)) : g * (1 - y * y);
    return 0;
  }
};

}  // namespace ts::cuda
