// rnn cell and sequence on the CPU. Formulas: contract/rnn.h; the stack: sequence.h; the torch side: sequence_glue.h.
#include "../contract/rnn.h"

#include "sequence.h"

namespace ts {
TS_DECLARE(rnn_forward, sequence::Forward)
TS_DECLARE(rnn_backward, sequence::Backward)
}  // namespace ts

namespace ts::TS_ISA {

template <class T>
struct RnnCell {
  using W = Wide<T>;
  static constexpr int64_t kGates = 1;
  static constexpr bool kOneGradient = true;  // the gradients at W_ih x and at W_hh h are the same
  bool relu_;

  template <class Y>
  void forward(int64_t rows, int64_t H, const InputPart<W>& xg, const W* hg, W* h, Y* y, int64_t pitch, W*) const {
    const bool rectified = relu_;  // not read again after each store
    for (int64_t b = 0; b < rows; ++b) {
      const W* const x = xg[b];
      for_vectors<W>(H, [&](int64_t i, int n) {
        const Vec<W> a = load_wide(x + i, n) + load_wide(hg + b * H + i, n);
        const Vec<W> out = rectified ? relu<W>(a) : tanh_vector(a);
        store_wide(h + b * H + i, out, n);
        store_wide(y + b * pitch + i, out, n);
      });
    }
  }

  template <class Y>
  void backward(int64_t rows, int64_t H, W* dh, const W*, const Y* y, int64_t pitch, const W*, W* dxg, W*) const {
    const bool rectified = relu_;
    for (int64_t b = 0; b < rows; ++b)
      for_vectors<W>(H, [&](int64_t i, int n) {
        const Vec<W> g = load_wide(dh + b * H + i, n), out = load_wide(y + b * pitch + i, n);
        store_wide(dxg + b * H + i, rectified ? relu_gradient<W>(g, out) : g * (W(1) - out * out), n);
        store_wide(dh + b * H + i, Vec<W>{}, n);
      });
  }
};

template <class T>
void rnn_forward(const sequence::Forward<T>& p) {
  sequence_forward<T>(p, RnnCell<T>{p.relu});
}
template <class T>
void rnn_backward(const sequence::Backward<T>& p) {
  sequence_backward<T>(p, RnnCell<T>{p.relu});
}

TS_INSTANTIATE_BF16(rnn_forward, sequence::Forward)
TS_INSTANTIATE_BF16(rnn_backward, sequence::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "sequence_glue.h"

namespace ts {
namespace {
struct Rnn {
  static constexpr int64_t kGates = 1;
  static constexpr bool kSavesGates = false;
  template <class T>
  static void forward(const sequence::Forward<T>& p) { TS_CALL(rnn_forward<T>, p); }
  template <class T>
  static void backward(const sequence::Backward<T>& p) { TS_CALL(rnn_backward<T>, p); }
};
}  // namespace
}  // namespace ts

TS_REGISTER_SEQUENCE(rnn, ts::Rnn)
#endif
