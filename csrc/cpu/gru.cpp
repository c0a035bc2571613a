// gru cell and sequence on the CPU. Formulas: contract/gru.h; the stack: sequence.h; the torch side: sequence_glue.h.
#include "../contract/gru.h"

#include "sequence.h"

namespace ts {
TS_DECLARE(gru_forward, sequence::Forward)
TS_DECLARE(gru_backward, sequence::Backward)
}  // namespace ts

namespace ts::TS_ISA {

template <class T>
struct GruCell {
  static constexpr int64_t kGates = 3;
  static constexpr bool kOneGradient = false;

  void forward(int64_t rows, int64_t H, const T* xg, const T* hg, T* h, T* y, int64_t pitch, T* saved) const {
    for (int64_t b = 0; b < rows; ++b) {
      const T *x = xg + b * 3 * H, *q = hg + b * 3 * H;
      T* s = saved ? saved + b * 4 * H : nullptr;
      for_vectors<T>(H, [&](int64_t i, int n) {
        const Vec<T> r = sigmoid_vector(load_some<T>(x + i, n) + load_some<T>(q + i, n));
        const Vec<T> z = sigmoid_vector(load_some<T>(x + H + i, n) + load_some<T>(q + H + i, n));
        const Vec<T> qn = load_some<T>(q + 2 * H + i, n);
        const Vec<T> c = tanh_vector(load_some<T>(x + 2 * H + i, n) + r * qn);
        const Vec<T> out = c + z * (load_some<T>(h + b * H + i, n) - c);
        store_some<T>(h + b * H + i, out, n);
        store_some<T>(y + b * pitch + i, out, n);
        if (!s) return;
        store_some<T>(s + i, r, n);
        store_some<T>(s + H + i, z, n);
        store_some<T>(s + 2 * H + i, c, n);
        store_some<T>(s + 3 * H + i, qn, n);
      });
    }
  }

  void backward(int64_t rows, int64_t H, T* dh, const T* h_prev, const T*, int64_t, const T* saved, T* dxg,
                T* dhg) const {
    for (int64_t b = 0; b < rows; ++b) {
      const T* s = saved + b * 4 * H;
      T *dx = dxg + b * 3 * H, *dq = dhg + b * 3 * H;
      for_vectors<T>(H, [&](int64_t i, int n) {
        const Vec<T> g = load_some<T>(dh + b * H + i, n), r = load_some<T>(s + i, n), z = load_some<T>(s + H + i, n);
        const Vec<T> c = load_some<T>(s + 2 * H + i, n), qn = load_some<T>(s + 3 * H + i, n);
        const Vec<T> dn = g * (T(1) - z) * (T(1) - c * c);
        const Vec<T> dz = g * (load_some<T>(h_prev + b * H + i, n) - c) * z * (T(1) - z);
        const Vec<T> dr = dn * qn * r * (T(1) - r);
        store_some<T>(dx + i, dr, n);
        store_some<T>(dx + H + i, dz, n);
        store_some<T>(dx + 2 * H + i, dn, n);
        store_some<T>(dq + i, dr, n);
        store_some<T>(dq + H + i, dz, n);
        store_some<T>(dq + 2 * H + i, dn * r, n);
        store_some<T>(dh + b * H + i, g * z, n);
      });
    }
  }
};

template <class T>
void gru_forward(const sequence::Forward<T>& p) {
  sequence_forward<T>(p, GruCell<T>{});
}
template <class T>
void gru_backward(const sequence::Backward<T>& p) {
  sequence_backward<T>(p, GruCell<T>{});
}

TS_INSTANTIATE(gru_forward, sequence::Forward)
TS_INSTANTIATE(gru_backward, sequence::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "sequence_glue.h"

namespace ts {
namespace {
struct Gru {
  static constexpr int64_t kGates = 3;
  static constexpr bool kSavesGates = true;
  template <class T>
  static void forward(const sequence::Forward<T>& p) { TS_CALL(gru_forward<T>, p); }
  template <class T>
  static void backward(const sequence::Backward<T>& p) { TS_CALL(gru_backward<T>, p); }
};
}  // namespace
}  // namespace ts

TS_REGISTER_SEQUENCE(gru, ts::Gru)
#endif
