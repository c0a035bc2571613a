// The launches of sequence.cuh and cell.cuh, for both recurrent rows. Arguments as in the schemas of csrc/cpu/sequence_glue.h.
//
// Works stand here in the order in which Stack launches. What goes from step to step (the state, its gradient) stays in L2
// or on chip and is not counted as memory.
#pragma once

#include "../cuda/sequence.cuh"
#include "gemm_work.h"

namespace ts::plans {

// The memory of Stack, which is nobody's.
struct NoScratch {
  template <class T>
  T* take(int64_t count) { return count == 0 ? nullptr : somewhere<T>(); }
};

// The Dims of a call, and what they point to. Lengths of single steps are not known from shapes, nor needed.
struct Lengths {
  sequence::Dims d{};
  Ints values;
  Lengths(const Shape& x, const Shape& hx, const Value& batch_sizes, bool bidirectional, bool bias) {
    const auto* packed = std::get_if<Shape>(&batch_sizes);
    const int64_t D = bidirectional ? 2 : 1, B = hx.sizes.at(1), steps = packed ? packed->sizes.at(0) : x.sizes.at(0);
    const int64_t rows = packed ? x.sizes.at(0) : steps * B;
    d = {B > 0 ? steps : 0, B, rows, x.sizes.at(x.sizes.size() - 1), hx.sizes.at(2), hx.sizes.at(0) / D, D, nullptr, nullptr, bias};
    values.resize(d.T);
    d.sizes = d.offsets = values.data();
  }
};

// What the launches of one call do. Cell, Math as in Stack.
template <class Cell, class Math>
struct Works {
  using T = typename Math::Element;
  using S = cuda::SumOf<T>;
  static constexpr int64_t G = Cell::kGates, e = sizeof(T), s = sizeof(S);
  cuda::Device device;
  std::vector<Work> all = {};

  void add(const std::string& product, std::vector<Work> more) {
    for (Work& work : more) work.product = product, all.push_back(work);
  }
  void multiply(const std::string& product, int64_t M, int64_t N, int64_t K, bool sums, int64_t more_out) {
    add(product, gemm_work<Math>(cuda::plan_product<Math>(M, N, K, sums, device), 0, more_out + (sums ? M * e : 0)));
  }
  void offsets(const sequence::Dims& d) {
    if (d.rows == d.T * d.B) return;
    for (int64_t first = 0; first <= d.T; first += cuda::OffsetsPart::kMost)
      add("offsets", {{"fp32", 0, std::min<int64_t>(cuda::OffsetsPart::kMost, d.T + 1 - first) * 8}});
  }
  void layer_input(int64_t count, bool mask) {
    if ((!std::is_same_v<T, S> || mask) && count > 0) add("input", {{cores<T>(), 0, count * (s + e + (mask ? e : 0))}});
  }
  // `bytes` of one direction.
  void steps(const sequence::Dims& d, bool backward, int64_t bytes) {
    if (d.B == 0 || d.H == 0) return;
    const bool together = cuda::plan_steps<T>(d.H, d.B, d.D, G, backward, device).together;
    const Work one{cores<T>(), 2 * d.rows * G * d.H * d.H, bytes + G * d.H * d.H * e + d.B * d.H * e * 2};
    const std::string product = backward ? "steps back" : "steps";
    if (together) for (int64_t k = 0; k < d.D; ++k) add(product, {one});
    else add(product, {{one.arithmetic, one.flops * d.D, one.bytes * d.D}});
  }

  void forward(const sequence::Dims& d, bool dropout, bool save) {
    offsets(d);
    for (int64_t l = 0; l < d.L; ++l) {
      if (l > 0) layer_input(d.rows * d.D * d.H, dropout);
      for (int64_t k = 0; k < d.D; ++k)
        multiply("inputs", d.rows, G * d.H, d.input_size(l), false, d.rows * G * d.H * (s - e) + (d.bias ? G * d.H * e : 0));
      const int64_t out = l + 1 == d.L ? e : s;
      steps(d, false, d.rows * d.H * (G * s + out + (save && Cell::kSavesGates ? 4 * s : 0)) + (d.bias ? G * d.H * e : 0));
    }
  }

  void weights(int64_t rows, int64_t I, int64_t H, bool bias) {
    multiply(bias ? "dw_ih, db_ih" : "dw_ih", G * H, I, rows, bias, 0);
    multiply(bias ? "dw_hh, db_hh" : "dw_hh", G * H, H, rows, bias, 0);
  }

  void backward(const sequence::Dims& d, bool gy, bool ghn, bool dropout, bool need_input, bool need_weights) {
    offsets(d);
    for (int64_t l = d.L - 1; l >= 0; --l) {
      const bool last = l + 1 == d.L, mask = dropout && l > 0;
      // read: the gradient at y, y, what was kept; written: the gradients at both products, and the states before.
      const int64_t read = (last ? (gy ? e : 0) + e : 2 * s) + (Cell::kSavesGates ? 4 * s : 0);
      steps(d, true, d.rows * d.H * (read + (G > 1 ? 2 : 1) * G * e + e) + (ghn ? d.B * d.H * e : 0));
      if (l > 0 && need_weights) layer_input(d.rows * d.D * d.H, mask);
      const int64_t I = d.input_size(l);
      for (int64_t k = 0; k < d.D; ++k) {
        if (need_weights) weights(d.rows, I, d.H, d.bias);
        if (l == 0 && !need_input) continue;
        const int64_t out = l == 0 ? e : s, of_mask = mask && k + 1 == d.D ? e : 0;
        multiply(l == 0 ? "dx" : "dx of a layer", d.rows, I, G * d.H, false, d.rows * I * (out - e + (k == 1 ? out : 0) + of_mask));
      }
    }
  }

  void cell_backward(int64_t B, int64_t I, int64_t H, bool bias, bool need_input, bool need_weights) {
    if (B * H > 0)
      add("gates", {{cores<T>(), 0, B * H * (3 * e + (Cell::kSavesGates ? 4 * s : 0) + (G > 1 ? 2 : 1) * G * e + s)}});
    multiply("dh", B, H, G * H, false, B * H * s);
    if (need_input) multiply("dx", B, I, G * H, false, 0);
    if (need_weights) weights(B, I, H, bias);
  }
};

template <class Cell>
struct Recurrent {
  template <class Math>
  using Launches = cuda::Stack<Cell, Math, NoScratch>;

  static void forward(const Call& call, const cuda::Device& device, Steps& steps) {
    const Lengths given(call.tensor(0), call.tensor(1), call.arguments.at(4), call.flag(5), call.flag(6));
    const sequence::Dims& d = given.d;
    const bool dropout = call.has(3), save = call.flag(8);
    with_element(call.tensor(0).dtype, [&]<class T>(T) {
      cuda::with_math<T>(call.flag(9), device, [&]<class Math>(Math) {
        Works<Cell, Math> works{device};
        works.forward(d, dropout, save);
        using S = cuda::SumOf<T>;
        const std::vector<sequence::Weights<T>> w(d.L * d.D, bias_or_not<T>(d.bias));
        NoScratch scratch;
        steps.add("", works.all, [&] {
          Launches<Math>{{}, device, {}, scratch}.forward(
              {d, false, somewhere<T>(), somewhere<T>(), w.data(), dropout ? somewhere<T>() : nullptr, somewhere<T>(),
               somewhere<T>(), somewhere<S>(), save && Cell::kSavesGates ? somewhere<S>() : nullptr});
        });
      });
    });
  }

  static void backward(const Call& call, const cuda::Device& device, Steps& steps) {
    const Lengths given(call.tensor(2), call.tensor(3), call.arguments.at(6), call.flag(9), call.flag(10));
    const sequence::Dims& d = given.d;
    const bool gy = call.has(0), ghn = call.has(1), dropout = call.has(5), need_input = call.flag(12), need_weights = call.flag(13);
    with_element(call.tensor(2).dtype, [&]<class T>(T) {
      cuda::with_math<T>(call.flag(14), device, [&]<class Math>(Math) {
        Works<Cell, Math> works{device};
        works.backward(d, gy, ghn, dropout, need_input, need_weights);
        using S = cuda::SumOf<T>;
        const std::vector<sequence::Weights<T>> w(d.L * d.D, bias_or_not<T>(d.bias));
        T* const b = d.bias ? somewhere<T>() : nullptr;
        const std::vector<sequence::WeightGradients<T>> gw(d.L * d.D, {somewhere<T>(), somewhere<T>(), b, b});
        NoScratch scratch;
        steps.add("", works.all, [&] {
          Launches<Math>{{}, device, {}, scratch}.backward(
              {d, false, gy ? somewhere<T>() : nullptr, ghn ? somewhere<T>() : nullptr, somewhere<T>(), somewhere<T>(), w.data(),
               dropout ? somewhere<T>() : nullptr, somewhere<T>(), somewhere<S>(), Cell::kSavesGates ? somewhere<S>() : nullptr,
               need_input ? somewhere<T>() : nullptr, somewhere<T>(), need_weights ? gw.data() : nullptr});
        });
      });
    });
  }

  static void cell_forward(const Call& call, const cuda::Device&, Steps& steps) {
    const Shape &x = call.tensor(0), &h = call.tensor(1);
    const int64_t B = x.sizes.at(0), I = x.sizes.at(1), H = h.sizes.at(1), G = Cell::kGates;
    const bool bias = call.has(4), save = call.flag(7) && Cell::kSavesGates;
    with_element(x.dtype, [&]<class T>(T) {
      using S = cuda::SumOf<T>;
      const int64_t values = B * (I + H) + G * H * (I + H) + (bias ? 2 * G * H : 0) + B * H;
      std::vector<Work> works;
      if (B * H > 0)
        works = {{cores<T>(), 2 * B * G * H * (I + H), values * int64_t(sizeof(T)) + (save ? 4 * B * H * int64_t(sizeof(S)) : 0)}};
      const T* b = bias ? somewhere<T>() : nullptr;
      const cuda::CellForward<T> p{B, I, H, somewhere<T>(), somewhere<T>(), I, H, somewhere<T>(), somewhere<T>(), b, b,
                                   somewhere<T>(), save ? somewhere<S>() : nullptr};
      steps.add("h", works, [&] { cuda::cell_forward(Cell{}, p, {}); });
    });
  }

  static void cell_backward(const Call& call, const cuda::Device& device, Steps& steps) {
    const Shape &x = call.tensor(1), &h = call.tensor(2);
    const int64_t B = x.sizes.at(0), I = x.sizes.at(1), H = h.sizes.at(1);
    const bool bias = call.flag(7), need_input = call.flag(9), need_weights = call.flag(10);
    with_element(x.dtype, [&]<class T>(T) {
      cuda::with_math<T>(call.flag(11), device, [&]<class Math>(Math) {
        Works<Cell, Math> works{device};
        works.cell_backward(B, I, H, bias, need_input, need_weights);
        T *const v = somewhere<T>(), *const b = bias ? v : nullptr;
        const sequence::WeightGradients<T> gw{v, v, b, b};
        NoScratch scratch;
        steps.add("", works.all, [&] {
          Launches<Math>{{}, device, {}, scratch}.cell_backward(B, I, H, v, v, v, v, somewhere<cuda::SumOf<T>>(),
                                                                bias_or_not<T>(bias), need_input ? v : nullptr, v,
                                                                need_weights ? &gw : nullptr);
        });
      });
    });
  }

 private:
  template <class T>
  static sequence::Weights<T> bias_or_not(bool bias) {
    const T *const w = somewhere<T>(), *const b = bias ? w : nullptr;
    return {w, w, b, b};
  }
};

}  // namespace ts::plans
