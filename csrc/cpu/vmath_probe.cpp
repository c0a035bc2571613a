// out[i] = exp(in[i]), sigmoid(in[i]) or tanh(in[i]): the vector functions of vmath.h laid open to measurement.
// Nothing of the ops calls this; `python -m torchsmith.bench.vector_math` and tests/test_vmath.py do.
#include "vmath_probe.h"

#include "vmath.h"

namespace ts {
template <class T>
struct VmathProbe {
  int which;    // as in ts_vmath_float
  const T* in;  // [n]
  T* out;       // [n], may be `in`
  int64_t n;
};
TS_DECLARE(vmath_probe, VmathProbe)
}  // namespace ts

namespace ts::TS_ISA {

template <class T>
void vmath_probe(const VmathProbe<T>& p) {
  for_vectors<T>(p.n, [&](int64_t i, int lanes) {
    const Vec<T> x = load_some<T>(p.in + i, lanes);
    const Vec<T> y = p.which == 0 ? exp_vector(x) : p.which == 1 ? sigmoid_vector(x) : tanh_vector(x);
    store_some<T>(p.out + i, y, lanes);
  });
}

TS_INSTANTIATE(vmath_probe, VmathProbe)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
namespace {
template <class T>
void evaluate(int which, const T* in, T* out, int64_t n) {
  const ts::VmathProbe<T> probe{which, in, out, n};
  TS_CALL(vmath_probe<T>, probe);
}
}  // namespace
extern "C" void ts_vmath_float(int which, const float* in, float* out, int64_t n) { evaluate(which, in, out, n); }
extern "C" void ts_vmath_double(int which, const double* in, double* out, int64_t n) { evaluate(which, in, out, n); }
#endif
