// gru on CUDA.  Formulas: contract/gru.h; the launches: cell.cuh, steps.cuh, sequence.cuh.
#pragma once

#include "../contract/gru.h"
#include "sequence.cuh"

namespace ts::cuda {

struct GruCell {
  static constexpr int kGates = 3;  // r, z, n
  static constexpr bool kSavesGates = true;

  // kept: r, z, n, q_n
  template <class W>
  __device__ __forceinline__ W forward(const W (&x)[3], const W (&q)[3], W h, W (&kept)[4]) const {
    const W r = sigmoid(x[0] + q[0]), z = sigmoid(x[1] + q[1]), n = tanh_of(x[2] + r * q[2]);
    kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = q[2];
    return n + z * (h - n);
  }
  template <class W>
  __device__ __forceinline__ W backward(W g, W h, W, const W (&kept)[4], W (&dx)[3], W (&dq)[3]) const {
    const W r = kept[0], z = kept[1], n = kept[2], q = kept[3];
    const W dn = g * (1 - z) * (1 - n * n), dz = g * (h - n) * z * (1 - z), dr = dn * q * r * (1 - r);
    dx[0] = dq[0] = dr, dx[1] = dq[1] = dz, dx[2] = dn, dq[2] = dn * r;
    return g * z;
  }
};

}  // namespace ts::cuda
