// linear, linear+ReLU:  y = x W^T + b,  then y = max(y, 0).
//
// Backward, with g = dL/dy masked to 0 where y <= 0 (ReLU):  dx = g W,  dW = g^T x,  db = sum over rows of g.
#pragma once

#include "check.h"

namespace ts::linear {

struct Dims {
  int64_t M, K, N;  // rows of x (all leading dimensions), features in, features out
  bool relu;
};

inline Dims dims(int64_t rows, int64_t features, int64_t weight_rows, int64_t weight_columns, int64_t bias, bool relu) {
  require(features == weight_columns, "linear: input has " + std::to_string(features) + " features, weight [" +
                                          std::to_string(weight_rows) + ", " + std::to_string(weight_columns) +
                                          "] needs " + std::to_string(weight_columns));
  require(bias == -1 || bias == weight_rows, "linear: bias has " + std::to_string(bias) + " elements, weight needs " +
                                               std::to_string(weight_rows));
  return {rows, features, weight_rows, relu};
}

template <class T>
struct Forward {
  Dims d;
  const T* x;     // [M, K]
  const T* w;     // [N, K]
  const T* bias;  // [N] or null
  T* y;           // [M, N]
};

template <class T>
struct Backward {
  Dims d;
  const T* g;  // [M, N]
  const T* x;  // [M, K]; null unless dw
  const T* w;  // [N, K]; null unless dx
  const T* y;  // [M, N], the forward result; null unless relu
  T* dx;       // [M, K] or null
  T* dw;       // [N, K] or null
  T* db;       // [N] or null
};

}  // namespace ts::linear
