// exp, sigmoid and tanh of a vector of float32 or float64, by polynomials.
//
// exp(x) = 2^n e^r with n = round(x / ln 2) and |r| <= ln 2 / 2; e^r by its Taylor polynomial, of degree 7 (float64: 13),
// whose truncation error there is below 2^-27 (2^-57). tanh(x) is odd: near 0, where 1 - 2 / (e^2x + 1) would cancel, a
// minimax-like polynomial (float64: quotient of two), elsewhere that quotient.
// NaN stays NaN, exp(-inf) = 0, exp(inf) = inf, tanh(+-inf) = +-1, tanh(-0.) = -0.
// Greatest errors in float32 over every argument between 2^-2 and 2^5 in size, each instruction set: exp 1.07, sigmoid 1.98,
// tanh 1.34 ulp; `python -m torchsmith.bench.vector_math` measures them over all magnitudes. In float64, over the points of
// tests/test_vmath.py: exp 0.99, sigmoid 1.93, tanh 1.32 ulp.
#pragma once

#include <type_traits>

#include "simd.h"

namespace ts::TS_ISA {

template <class T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float kTop = 89.0f, kBottom = -104.0f;  // beyond these, exp is inf or 0; clamping keeps 2^n in range
  static constexpr float kMagic = 12582912.0f;             // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  static constexpr float kLog2e = 1.44269504088896341f;
  // ln 2 in two parts: the first has so many trailing zero bits that n times it is exact.
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723212e-6f;
  static constexpr int kDegree = 7, kBias = 127, kMantissa = 23;
};
template <>
struct Exp<double> {
  static constexpr double kTop = 710.0, kBottom = -746.0;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kDegree = 13, kBias = 1023, kMantissa = 52;
};

// 1 / n!. A table: calls of a constexpr function in a loop are left to run time where the compiler does not unroll it.
template <class T>
struct ReciprocalFactorials {
  T of[Exp<T>::kDegree + 1];
  constexpr ReciprocalFactorials() : of{T(1)} {
    for (int n = 1; n <= Exp<T>::kDegree; ++n) of[n] = of[n - 1] / T(n);
  }
};
template <class T>
constexpr ReciprocalFactorials<T> kReciprocalFactorial;

template <class To, class From>
TS_INLINE To bits_as(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// p 2^n; `shifted` is n + kMagic.
#if defined(__AVX512F__)
TS_INLINE Vec<float> times_power(Vec<float> p, Vec<float> n, Vec<float>) {
  return (Vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
}
TS_INLINE Vec<double> times_power(Vec<double> p, Vec<double> n, Vec<double>) {
  return (Vec<double>)_mm512_maskz_scalef_pd(0xff, (__m512d)p, (__m512d)n);
}
#else
// In two factors, since n may be too large for one (overflow to inf) or too small (gradual underflow).
template <class V>
TS_INLINE V times_power(V p, V, V shifted) {
  using T = std::remove_reference_t<decltype(p[0])>;
  using E = Exp<T>;
  using I = Mask<T>;
  const I exponent = bits_as<I>(shifted) - bits_as<I>(splat(E::kMagic)), half = exponent >> 1;
  return p * bits_as<V>((half + E::kBias) << E::kMantissa) * bits_as<V>((exponent - half + E::kBias) << E::kMantissa);
}
#endif

enum class Sign { any, negative, positive };  // of an argument, as its caller knows it: -0. may be among the positive ones

template <class T, Sign sign = Sign::any>
TS_INLINE Vec<T> exp_of(Vec<T> x) {
  using E = Exp<T>;
  if constexpr (sign != Sign::negative) x = smaller(splat(E::kTop), x);  // a NaN stays
  if constexpr (sign != Sign::positive) x = larger(splat(E::kBottom), x);
  const Vec<T> magic = splat(E::kMagic), shifted = x * E::kLog2e + magic, n = shifted - magic;
  Vec<T> r = x - n * E::kLn2High;
  r = r - n * E::kLn2Low;
  Vec<T> p = splat(kReciprocalFactorial<T>.of[E::kDegree]);
#pragma GCC unroll 16
  for (int i = E::kDegree - 1; i >= 2; --i) p = p * r + kReciprocalFactorial<T>.of[i];
  p = p * r * r + r + T(1);
  return times_power(p, n, shifted);
}

// e^-|x| cannot overflow, and e / (1 + e) keeps the values below the least normal one that 1 / (1 + e^-x) would round to 0.
// What 1 + e loses to rounding is put back into the quotient: without that the greatest error is 2.25 ulp.
template <class T>
TS_INLINE Vec<T> sigmoid_of(Vec<T> x) {
  using I = Mask<T>;
  const Vec<T> e = exp_of<T, Sign::negative>(bits_as<Vec<T>>(bits_as<I>(x) | bits_as<I>(splat(T(-0.0)))));
  const Vec<T> sum = T(1) + e, lost = e - (sum - T(1));
  const Vec<T> quotient = (x < Vec<T>{} ? e : splat(T(1))) / sum;
  return quotient - quotient * lost;
}

// (tanh(x) - x) / x^3 for |x| < 0.625, s = x^2. The coefficients are those of the classic Cephes tanhf and tanh.
TS_INLINE Vec<float> tanh_near(Vec<float> s) {
  Vec<float> p = splat(-5.70498872745e-3f);
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  return p * s - 3.33332819422e-1f;
}
TS_INLINE Vec<double> tanh_near(Vec<double> s) {
  const Vec<double> p = (splat(-9.64399179425052238628e-1) * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3;
  const Vec<double> q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3;
  return p / q;
}

template <class T>
TS_INLINE Vec<T> tanh_of(Vec<T> x) {
  using I = Mask<T>;
  const I sign = bits_as<I>(x) & bits_as<I>(splat(T(-0.0)));  // set aside and put back at the end, so that tanh(-0.) = -0.
  const Vec<T> magnitude = bits_as<Vec<T>>(bits_as<I>(x) ^ sign);
  const Vec<T> far = T(1) - T(2) / (exp_of<T, Sign::positive>(magnitude + magnitude) + T(1));
  const Vec<T> s = x * x, near = magnitude + magnitude * s * tanh_near(s);
  return bits_as<Vec<T>>(bits_as<I>(magnitude < splat(T(0.625)) ? near : far) | sign);
}

// By the vector's type, as callers know it.
TS_INLINE Vec<float> exp_vector(Vec<float> x) { return exp_of<float>(x); }
TS_INLINE Vec<double> exp_vector(Vec<double> x) { return exp_of<double>(x); }
TS_INLINE Vec<float> sigmoid_vector(Vec<float> x) { return sigmoid_of<float>(x); }
TS_INLINE Vec<double> sigmoid_vector(Vec<double> x) { return sigmoid_of<double>(x); }
TS_INLINE Vec<float> tanh_vector(Vec<float> x) { return tanh_of<float>(x); }
TS_INLINE Vec<double> tanh_vector(Vec<double> x) { return tanh_of<double>(x); }

}  // namespace ts::TS_ISA
