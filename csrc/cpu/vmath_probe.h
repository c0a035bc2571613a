// The C entries that evaluate the vector functions of vmath.h, so that their accuracy can be measured.
#pragma once

#include <cstdint>

extern "C" {
// out[i] = f(in[i]) for i < n, on the active instruction set; f by `which`: 0 exp, 1 sigmoid, 2 tanh.
__attribute__((visibility("default"))) void ts_vmath_float(int which, const float* in, float* out, int64_t n);
__attribute__((visibility("default"))) void ts_vmath_double(int which, const double* in, double* out, int64_t n);
}
