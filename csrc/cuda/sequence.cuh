// The stack of recurrent layers on CUDA: what rnn and gru share.  Contract and layout: contract/sequence.h.
//
// A layer forward:   xg = x W_ih^T + b_ih over all steps (a GEMM a direction), then its steps in one launch (steps.cuh).
// A layer backward:  its steps in one launch, which leaves the gradients at both products for all rows; then GEMMs over
//   all rows: dW_ih = dxg^T x and dW_hh = dhg^T h_before, each with its bias gradient as row sums, and dx = dxg W_ih.
// Every sum has a fixed order. Between layers values are SumOf<T>; factors of GEMMs are T.
#pragma once

#include "../contract/sequence.h"
#include <tuple>

#include "gemm.cuh"
#include "steps.cuh"

namespace ts {
template <>
struct WideOf<cuda::half> { using type = float; };
template <>
struct WideOf<cuda::bfloat16> { using type = float; };
}  // namespace ts

namespace ts::cuda {

// out = (v + bias[column] + what was there + plus) * mask; any of bias, plus, mask, sums may be null.
template <class T>
struct Joined {
  using S = SumOf<T>;
  Either<T> out;      // [rows, columns]
  int64_t columns;
  const T* bias;      // [columns]
  bool again;         // adds what is there
  const S* plus;      // [rows, columns]
  const T* mask;      // [rows, columns]
  T* sums;

  __device__ __forceinline__ void one(int64_t row, int64_t column, S v) const {
    const int64_t i = row * columns + column;
    if (bias) v += widen(bias[column]);
    if (again) v += out.get(i);
    if (plus) v += plus[i];
    if (mask) v *= widen(mask[i]);
    out.put(i, v);
  }
  __device__ __forceinline__ void pair(int64_t row, int64_t column, S v, S w) const {
    one(row, column, v);
    if (column + 1 < columns) one(row, column + 1, w);
  }
  __device__ __forceinline__ void row_sum(int64_t row, S s) const {
    if (sums) sums[row] = narrow<T>(s);
  }
};

// The GEMMs' operands, dense: X[o, k] along k or along o.
template <class T>
struct Factors {
  const T *a, *b;
};

// 64 x 64 tiles only: a second size would double the time these rows take to compile.
template <class Math>
GemmPlan plan_product(int64_t M, int64_t N, int64_t K, bool sums, const Device& device) {
  return plan_gemm<Math, false>(M, N, K, sums, device);
}
template <class Math, bool kAlongA, bool kAlongB, class T>
void product(const GemmPlan& plan, const Factors<T>& f, const Joined<T>& out, void* workspace, cudaStream_t stream) {
  const auto [M, N, K] = std::tuple(plan.M, plan.N, plan.K);
  gemm<Math, false>(plan, Strided<T, kAlongA>(f.a, kAlongA ? K : M, M, K), Strided<T, kAlongB>(f.b, kAlongB ? K : N, N, K), out,
                    workspace, stream);
}

// rnn.cu has the products for both rows' objects in the library; a row's host build has its own.
#define TS_PRODUCT(prefix, Math, kAlongA, kAlongB, T)                                                             \
  prefix template void product<Math, kAlongA, kAlongB, T>(const GemmPlan&, const Factors<T>&, const Joined<T>&, void*, \
                                                          cudaStream_t);
#define TS_PRODUCTS(prefix, Math, T)           \
  TS_PRODUCT(prefix, Math, true, true, T)  \
  TS_PRODUCT(prefix, Math, true, false, T) \
  TS_PRODUCT(prefix, Math, false, false, T)
#define TS_ALL_PRODUCTS(prefix)           \
  TS_PRODUCTS(prefix, Simt<float>, float) \
  TS_PRODUCTS(prefix, Mma<float>, float)  \
  TS_PRODUCTS(prefix, Simt<double>, double) \
  TS_PRODUCTS(prefix, Mma<half>, half)    \
  TS_PRODUCTS(prefix, Mma<bfloat16>, bfloat16)
#if defined(__CUDACC__)
#if defined(TS_OWNS_PRODUCTS)
TS_ALL_PRODUCTS()
#else
TS_ALL_PRODUCTS(extern)
#endif
#endif

// to = in * mask, rounded to T: a layer's input as the GEMMs take it. mask may be null.
template <class T>
__global__ void __launch_bounds__(256) layer_input_kernel(T* to, const SumOf<T>* in, const T* mask, int64_t count) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i < count) to[i] = narrow<T>(mask ? in[i] * widen(mask[i]) : in[i]);
}

// A call's launches. Scratch has take<T>(count) -> T*, memory that lives until the call's launches are queued and is given
// back in stream order.
template <class Cell, class Math, class Scratch>
struct Stack {
  using T = typename Math::Element;
  using S = SumOf<T>;
  static constexpr int64_t G = Cell::kGates;
  Cell cell;
  Device device;
  cudaStream_t stream;
  Scratch& scratch;

  template <bool kAlongA, bool kAlongB>
  void multiply(int64_t M, int64_t N, int64_t K, bool sums, const Factors<T>& f, const Joined<T>& out) {
    const GemmPlan plan = plan_product<Math>(M, N, K, sums, device);
    product<Math, kAlongA, kAlongB>(plan, f, out, scratch.template take<char>(plan.workspace), stream);
  }

  Steps steps(const sequence::Dims& d) {
    Steps s{d.T, d.B, d.H, d.rows, nullptr};
    if (d.rows == d.T * d.B) return s;
    int64_t* offsets = scratch.template take<int64_t>(d.T + 1);
    send_offsets(offsets, d.offsets, d.T, d.rows, stream);
    s.offsets = offsets;
    return s;
  }

  // The input of a layer that is not the first.
  const T* input(const S* hidden, const T* mask, int64_t count) {
    if constexpr (std::is_same_v<T, S>)
      if (mask == nullptr) return hidden;
    T* to = scratch.template take<T>(count);
    if (count > 0)
      launch<layer_input_kernel<T>>({dim3(static_cast<unsigned>(ceil_div(count, int64_t(256)))), dim3(256), 0, stream}, to,
                                    hidden, mask, count);
    return to;
  }
  static const T* mask_of(const sequence::Dims& d, const T* dropout, int64_t layer) {
    return dropout && layer > 0 ? dropout + (layer - 1) * d.rows * d.D * d.H : nullptr;
  }

  void forward(const sequence::Forward<T>& p) {
    const sequence::Dims& d = p.d;
    const int64_t count = d.rows * d.D * d.H, states = d.D * d.B * d.H;
    const StepsPlan plan = plan_steps<T>(d.H, d.B, d.D, G, false, device);
    const Steps s = steps(d);
    S* xg = scratch.template take<S>(d.D * d.rows * G * d.H);
    S* state = plan.together ? scratch.template take<S>(2 * states) : nullptr;
    for (int64_t l = 0; l < d.L; ++l) {
      const bool last = l + 1 == d.L;
      const T* x = l == 0 ? p.x : input(p.hidden + (l - 1) * count, mask_of(d, p.dropout, l), count);
      StepsForward<T> q{s, d.D * d.H, 0, xg, {}, {}, p.hx + l * states,
                        {last ? p.y : nullptr, last ? nullptr : p.hidden + l * count}, p.hn + l * states,
                        p.gates ? p.gates + l * d.D * d.rows * 4 * d.H : nullptr, state};
      for (int64_t k = 0; k < d.D; ++k) {
        const auto& w = p.weights[l * d.D + k];
        q.w_hh[k] = w.hh, q.b_hh[k] = w.b_hh;
        const Joined<T> out{{nullptr, xg + k * d.rows * G * d.H}, G * d.H, w.b_ih, false, nullptr, nullptr, nullptr};
        multiply<true, true>(d.rows, G * d.H, d.input_size(l), false, {x, w.ih}, out);
      }
      launch_steps<steps_forward_kernel<Cell, T, false>, steps_forward_kernel<Cell, T, true>>(cell, q, plan, d.D, stream);
    }
  }

  // dW_ih, dW_hh and the bias gradients of one layer and direction.
  void weights_backward(const sequence::WeightGradients<T>& w, int64_t rows, int64_t I, int64_t H, const T* x, const T* before,
                        const T* dxg, const T* dhg) {
    const Joined<T> ih{{w.ih, nullptr}, I, nullptr, false, nullptr, nullptr, w.b_ih};
    const Joined<T> hh{{w.hh, nullptr}, H, nullptr, false, nullptr, nullptr, w.b_hh};
    multiply<false, false>(G * H, I, rows, w.b_ih != nullptr, {dxg, x}, ih);
    multiply<false, false>(G * H, H, rows, w.b_hh != nullptr, {dhg, before}, hh);
  }

  void backward(const sequence::Backward<T>& p) {
    const sequence::Dims& d = p.d;
    const int64_t count = d.rows * d.D * d.H, states = d.D * d.B * d.H, gates = d.rows * G * d.H;
    const StepsPlan plan = plan_steps<T>(d.H, d.B, d.D, G, true, device);
    const Steps s = steps(d);
    T* dxg = scratch.template take<T>(d.D * gates);
    T* dhg = G > 1 ? scratch.template take<T>(d.D * gates) : dxg;
    T* before = scratch.template take<T>(d.D * d.rows * d.H);
    S* dh = scratch.template take<S>(states);
    S* at_hidden[2] = {d.L > 1 ? scratch.template take<S>(count) : nullptr, d.L > 2 ? scratch.template take<S>(count) : nullptr};
    for (int64_t l = d.L - 1; l >= 0; --l) {
      const bool last = l + 1 == d.L;
      const T* mask = mask_of(d, p.dropout, l);
      S* hidden = last ? nullptr : const_cast<S*>(p.hidden) + l * count;  // read only
      StepsBackward<T> q{s, d.D * d.H, 0, {last ? const_cast<T*>(p.gy) : nullptr, last ? nullptr : at_hidden[l % 2]},
                         {last ? const_cast<T*>(p.y) : nullptr, hidden}, p.ghn ? p.ghn + l * states : nullptr, {},
                         p.hx + l * states, p.gates ? p.gates + l * d.D * d.rows * 4 * d.H : nullptr, dxg, dhg, before, dh,
                         p.ghx + l * states};
      for (int64_t k = 0; k < d.D; ++k) q.w_hh[k] = p.weights[l * d.D + k].hh;
      launch_steps<steps_backward_kernel<Cell, T, false>, steps_backward_kernel<Cell, T, true>>(cell, q, plan, d.D, stream);
      const T* x = l == 0 ? p.x : p.gweights ? input(p.hidden + (l - 1) * count, mask, count) : nullptr;
      const int64_t I = d.input_size(l);
      for (int64_t k = 0; k < d.D; ++k) {
        if (p.gweights)
          weights_backward(p.gweights[l * d.D + k], d.rows, I, d.H, x, before + k * d.rows * d.H, dxg + k * gates,
                           dhg + k * gates);
        const Either<T> gx{l == 0 ? p.gx : nullptr, l == 0 ? nullptr : at_hidden[(l - 1) % 2]};
        if (l == 0 && p.gx == nullptr) continue;
        const Joined<T> out{gx, I, nullptr, k == 1, nullptr, k + 1 == d.D ? mask : nullptr, nullptr};
        multiply<true, false>(d.rows, I, G * d.H, false, {dxg + k * gates, p.weights[l * d.D + k].ih}, out);
      }
    }
  }

  // One step: grad, h and y [B, H], x [B, I]; kept [B, 4 * H].
  void cell_backward(int64_t B, int64_t I, int64_t H, const T* g, const T* x, const T* h, const T* y, const S* kept,
                     const sequence::Weights<T>& w, T* gx, T* gh, const sequence::WeightGradients<T>* gw) {
    T* dxg = scratch.template take<T>(B * G * H);
    T* dhg = G > 1 ? scratch.template take<T>(B * G * H) : dxg;
    S* direct = scratch.template take<S>(B * H);
    if (B * H > 0)
      launch<cell_backward_kernel<Cell, T>>({dim3(static_cast<unsigned>(ceil_div(B * H, int64_t(256)))), dim3(256), 0, stream},
                                            cell, CellGates<T>{B, H, g, h, y, kept, dxg, dhg, direct}, Divisor(H));
    multiply<true, false>(B, H, G * H, false, {dhg, w.hh}, {{gh, nullptr}, H, nullptr, false, direct, nullptr, nullptr});
    if (gx) multiply<true, false>(B, I, G * H, false, {dxg, w.ih}, {{gx, nullptr}, I, nullptr, false, nullptr, nullptr, nullptr});
    if (gw) weights_backward(*gw, B, I, H, x, h, dxg, dhg);
  }
};

}  // namespace ts::cuda
