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
  static constexpr int64_t kGates = 1;
  static constexpr bool kOneGradient = true;  // the gradients at W_ih x and at W_hh h are the same
  bool relu_;

  void forward(int64_t rows, int64_t H, const T* xg, const T* hg, T* h, T* y, int64_t pitch, T*) const {
    for (int64_t b = 0; b < rows; ++b)
      for_vectors<T>(H, [&](int64_t i, int n) {
        const Vec<T> a = load_some<T>(xg + b * H + i, n) + load_some<T>(hg + b * H + i, n);
        const Vec<T> out = relu_ ? relu<T>(a) : tanh_vector(a);
        store_some<T>(h + b * H + i, out, n);
        store_some<T>(y + b * pitch + i, out, n);
      });
  }

  void backward(int64_t rows, int64_t H, T* dh, const T*, const T* y, int64_t pitch, const T*, T* dxg, T*) const {
    for (int64_t b = 0; b < rows; ++b)
      for_vectors<T>(H, [&](int64_t i, int n) {
        const Vec<T> g = load_some<T>(dh + b * H + i, n), out = load_some<T>(y + b * pitch + i, n);
        store_some<T>(dxg + b * H + i, relu_ ? relu_gradient<T>(g, out) : g * (T(1) - out * out), n);
        store_some<T>(dh + b * H + i, Vec<T>{}, n);
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

TS_INSTANTIATE(rnn_forward, sequence::Forward)
TS_INSTANTIATE(rnn_backward, sequence::Backward)
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
