// exp, sigmoid and tanh of a vector. float32 by polynomials; float64 by libm, lane by lane.
//
// exp(x) = 2^n e^r with n = round(x / ln 2) and |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, whose truncation
// error there is below 2^-27. tanh(x) is an odd minimax-like polynomial near 0 (where 1 - 2 / (e^2x + 1) would cancel) and
// that quotient elsewhere. NaN stays NaN, exp(-inf) = 0, exp(inf) = inf, tanh(+-inf) = +-1, tanh(-0.) = -0.
// Greatest errors in float32 over every argument between 2^-2 and 2^5 in size, each instruction set: exp 1.07, sigmoid 1.98,
// tanh 1.34 ulp; `python -m torchsmith.bench.vector_math` measures them over all magnitudes.
#pragma once

#include <cmath>

#include "simd.h"

namespace ts::TS_ISA {

TS_INLINE Vec<float> exp_vector(Vec<float> x) {
  using V = Vec<float>;
  using I = Mask<float>;
  // Beyond these, exp is 0 or inf in float32; clamping keeps 2^n in range. A NaN fails both comparisons and stays.
  V c = x > splat(89.0f) ? splat(89.0f) : x;
  c = c < splat(-104.0f) ? splat(-104.0f) : c;
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
  const V magic = splat(12582912.0f);
  const V n = (c * 1.44269504088896341f + magic) - magic;
  V r = c - n * 0.693145751953125f;  // ln 2 in two parts: the first has 15 trailing zero bits, so n * part is exact
  r = r - n * 1.42860682030941723212e-6f;
  V p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors, since n may be 128 (overflow to inf) or below -126 (gradual underflow).
  const I exponent = __builtin_convertvector(n, I), half = exponent >> 1;
  V low, high;
  const I low_bits = (half + 127) << 23, high_bits = (exponent - half + 127) << 23;
  std::memcpy(&low, &low_bits, sizeof low);
  std::memcpy(&high, &high_bits, sizeof high);
  return p * low * high;
}

// e^-|x| cannot overflow, and e / (1 + e) keeps the values below 2^-126 that 1 / (1 + e^-x) would round to 0. What 1 + e
// loses to rounding is put back into the quotient: without that the greatest error is 2.25 ulp.
TS_INLINE Vec<float> sigmoid_vector(Vec<float> x) {
  const Mask<float> negative = x < Vec<float>{};
  const Vec<float> e = exp_vector(negative ? x : -x);
  const Vec<float> sum = 1.0f + e, lost = e - (sum - 1.0f);
  const Vec<float> quotient = (negative ? e : splat(1.0f)) / sum;
  return quotient - quotient * lost;
}

TS_INLINE Vec<float> tanh_vector(Vec<float> x) {
  using V = Vec<float>;
  using I = Mask<float>;
  const I sign = (I)x & INT32_MIN;  // set aside and put back at the end, so that tanh(-0.) = -0.
  const V magnitude = (V)((I)x ^ sign);
  const V far = 1.0f - 2.0f / (exp_vector(magnitude + magnitude) + 1.0f);
  const V s = x * x;  // near 0: the coefficients are those of the classic Cephes tanhf
  V p = splat(-5.70498872745e-3f);
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const V near = magnitude + magnitude * s * p;
  return (V)((I)(magnitude < splat(0.625f) ? near : far) | sign);
}

#define TS_LANE_BY_LANE(name, expression)                 \
  TS_INLINE Vec<double> name(Vec<double> v) {             \
    for (int i = 0; i < kLanes<double>; ++i) {            \
      const double x = v[i];                              \
      v[i] = expression;                                  \
    }                                                     \
    return v;                                             \
  }
TS_LANE_BY_LANE(exp_vector, std::exp(x))
TS_LANE_BY_LANE(sigmoid_vector, 1.0 / (1.0 + std::exp(-x)))
TS_LANE_BY_LANE(tanh_vector, std::tanh(x))
#undef TS_LANE_BY_LANE

}  // namespace ts::TS_ISA
