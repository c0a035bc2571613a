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
  using W = Wide<T>;
  static constexpr int64_t kGates = 3;
  static constexpr bool kOneGradient = false;

  template <class Y>
  void forward(int64_t rows, int64_t H, const InputPart<W>& xg, const W* hg, W* h, Y* y, int64_t pitch, W* saved) const {
    for (int64_t b = 0; b < rows; ++b) {
      const W *x = xg[b], *q = hg + b * 3 * H;
      W* s = saved ? saved + b * 4 * H : nullptr;
      for_vectors<W>(H, [&](int64_t i, int n) {
        const Vec<W> r = sigmoid_vector(load_wide(x + i, n) + load_wide(q + i, n));
        const Vec<W> z = sigmoid_vector(load_wide(x + H + i, n) + load_wide(q + H + i, n));
        const Vec<W> qn = load_wide(q + 2 * H + i, n);
        const Vec<W> c = tanh_vector(load_wide(x + 2 * H + i, n) + r * qn);
        const Vec<W> out = c + z * (load_wide(h + b * H + i, n) - c);
        store_wide(h + b * H + i, out, n);
        store_wide(y + b * pitch + i, out, n);
        if (!s) return;
        store_wide(s + i, r, n);
        store_wide(s + H + i, z, n);
        store_wide(s + 2 * H + i, c, n);
        store_wide(s + 3 * H + i, qn, n);
      });
    }
  }

  template <class Y>
  void backward(int64_t rows, int64_t H, W* dh, const W* h_prev, const Y*, int64_t, const W* saved, W* dxg,
                W* dhg) const {
    for (int64_t b = 0; b < rows; ++b) {
      const W* s = saved + b * 4 * H;
      W *dx = dxg + b * 3 * H, *dq = dhg + b * 3 * H;
      for_vectors<W>(H, [&](int64_t i, int n) {
        const Vec<W> g = load_wide(dh + b * H + i, n), r = load_wide(s + i, n), z = load_wide(s + H + i, n);
        const Vec<W> c = load_wide(s + 2 * H + i, n), qn = load_wide(s + 3 * H + i, n);
        const Vec<W> dn = g * (W(1) - z) * (W(1) - c * c);
        const Vec<W> dz = g * (load_wide(h_prev + b * H + i, n) - c) * z * (W(1) - z);
        const Vec<W> dr = dn * qn * r * (W(1) - r);
        store_wide(dx + i, dr, n);
        store_wide(dx + H + i, dz, n);
        store_wide(dx + 2 * H + i, dn, n);
        store_wide(dq + i, dr, n);
        store_wide(dq + H + i, dz, n);
        store_wide(dq + 2 * H + i, dn * r, n);
        store_wide(dh + b * H + i, g * z, n);
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

TS_INSTANTIATE_BF16(gru_forward, sequence::Forward)
TS_INSTANTIATE_BF16(gru_backward, sequence::Backward)
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
