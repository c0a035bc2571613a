// Element types of the contracts beside float and double.
#pragma once

#include <cstdint>

namespace ts {

struct bf16 {  // bfloat16: the upper half of a float
  uint16_t bits;
};

// What values of T are summed and kept in: float for bf16, else T itself.
template <class T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<bf16> {
  using type = float;
};
template <class T>
using Wide = typename WideOf<T>::type;

}  // namespace ts
