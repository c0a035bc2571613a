// The torch side of the recurrent ops: for NAME in rnn, gru the four native ops NAME_cell_forward, NAME_cell_backward,
// NAME_forward, NAME_backward. A cell is a sequence of one step.
#pragma once

#include "../contract/sequence.h"
#include "glue.h"

namespace ts {

struct Batch {  // the steps of a sequence, from batch_sizes or from a padded [T, B, I] input
  sequence::Dims d{};
  Ints sizes, offsets;
};

inline Batch batch_of(const Tensor& input, const Tensor& hx, const Maybe& batch_sizes, bool bidirectional, bool bias) {
  require(hx.dim() == 3, "hx needs 3 dimensions (layers * directions, batch, hidden)");
  require(input.dim() == (batch_sizes.has_value() ? 2 : 3), "input needs 3 dimensions, or 2 with batch_sizes");
  Batch b;
  b.d.D = bidirectional ? 2 : 1;
  require(hx.size(0) % b.d.D == 0, "hx: the first dimension is layers * directions");
  b.d.L = hx.size(0) / b.d.D;
  b.d.B = hx.size(1);
  b.d.H = hx.size(2);
  b.d.I = input.size(input.dim() - 1);
  b.d.bias = bias;
  if (batch_sizes.has_value()) {
    require(batch_sizes->scalar_type() == ScalarType::Long && batch_sizes->dim() == 1 && batch_sizes->is_cpu(),
            "batch_sizes: a one-dimensional int64 tensor on the CPU is needed");
    const Tensor dense_sizes = dense(*batch_sizes);
    const int64_t* p = in<int64_t>(dense_sizes);
    b.sizes.assign(p, p + dense_sizes.numel());
    b.d.rows = input.size(0);
  } else {
    require(input.size(1) == b.d.B, "input and hx have different batch sizes");
    if (b.d.B > 0) b.sizes.assign(input.size(0), b.d.B);
    b.d.rows = input.size(0) * b.d.B;
  }
  b.d.T = static_cast<int64_t>(b.sizes.size());
  sequence::check_sizes(b.sizes.data(), b.d.T, b.d.B, b.d.rows);
  b.offsets.resize(b.sizes.size());
  for (int64_t t = 1; t < b.d.T; ++t) b.offsets[t] = b.offsets[t - 1] + b.sizes[t - 1];
  b.d.sizes = b.sizes.data();
  b.d.offsets = b.offsets.data();
  return b;
}

// Checks shapes and gives contiguous weights of the kernels' type, 4 (or 2 without bias) for each layer and direction.
inline std::vector<Tensor> weights_of(const sequence::Dims& d, const std::vector<Tensor>& weights, int64_t gates,
                                      ScalarType type, ScalarType kernel) {
  const size_t each = d.bias ? 4 : 2;
  require(weights.size() == each * d.L * d.D, "weights: " + std::to_string(each * d.L * d.D) + " tensors needed, got " +
                                                  std::to_string(weights.size()));
  std::vector<Tensor> out;
  out.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    const int64_t layer = static_cast<int64_t>(i / each) / d.D;
    const Ints expected = i % each == 0   ? Ints{gates * d.H, d.input_size(layer)}
                          : i % each == 1 ? Ints{gates * d.H, d.H}
                                          : Ints{gates * d.H};
    require(sizes_of(w) == expected, "weights: tensor " + std::to_string(i) + " has the wrong shape");
    require(w.scalar_type() == type, "weights: all arguments need one dtype");
    out.push_back(operand(w, kernel));
  }
  return out;
}

template <class T>
std::vector<sequence::Weights<T>> pointers(const sequence::Dims& d, const std::vector<Tensor>& w) {
  std::vector<sequence::Weights<T>> p;
  const size_t each = d.bias ? 4 : 2;
  for (size_t i = 0; i < w.size(); i += each)
    p.push_back({in<T>(w[i]), in<T>(w[i + 1]), d.bias ? in<T>(w[i + 2]) : nullptr, d.bias ? in<T>(w[i + 3]) : nullptr});
  return p;
}

// In full width: hidden [L - 1, rows, D * H] then gates [L * D, rows, 4 * H]: what backward needs beside inputs and outputs.
inline int64_t hidden_count(const sequence::Dims& d) { return (d.L - 1) * d.rows * d.D * d.H; }
inline int64_t gates_count(const sequence::Dims& d) { return d.L * d.D * d.rows * 4 * d.H; }

template <class Op>
std::tuple<Tensor, Tensor, Tensor> sequence_forward(const Tensor& input, const Tensor& hx, const std::vector<Tensor>& weights,
                                                    const Maybe& dropout, const Maybe& batch_sizes, bool bidirectional,
                                                    bool bias, bool relu, bool save) {
  check_types("sequence", input, hx, dropout);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Batch b = batch_of(input, hx, batch_sizes, bidirectional, bias);
  const sequence::Dims& d = b.d;
  const std::vector<Tensor> w = weights_of(d, weights, Op::kGates, type, c);
  const Tensor x = operand(input, c), h = operand(hx, c);
  const Maybe mask = operand(dropout, c);
  require(!mask.has_value() || mask->numel() == hidden_count(d), "dropout: [layers - 1, rows, directions * hidden] needed");
  Ints sizes = sizes_of(input);
  sizes.back() = d.D * d.H;
  const Tensor y = empty(sizes, c), hn = empty(sizes_of(hx), c);
  const bool gates = save && Op::kSavesGates;
  const Tensor reserve = empty({hidden_count(d) + (gates ? gates_count(d) : 0)}, compute_type(type));
  with_kernel_type(c, [&]<class T>(T) {
    const auto pw = pointers<T>(d, w);
    Wide<T>* saved = out<Wide<T>>(reserve);
    Op::template forward<T>({d, relu, in<T>(x), in<T>(h), pw.data(), in<T>(mask), out<T>(y), out<T>(hn), saved,
                             gates ? saved + hidden_count(d) : nullptr});
  });
  return {cast(y, type), cast(hn, type), save ? reserve : empty({0}, compute_type(type))};
}

template <class Op>
std::tuple<Tensor, Tensor, std::vector<Tensor>> sequence_backward(
    const Maybe& grad_output, const Maybe& grad_hn, const Tensor& input, const Tensor& hx, const std::vector<Tensor>& weights,
    const Maybe& dropout, const Maybe& batch_sizes, const Tensor& output, const Tensor& reserve, bool bidirectional,
    bool bias, bool relu, bool need_input, bool need_weights) {
  check_types("sequence", input, hx, dropout, output, grad_output, grad_hn);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Batch b = batch_of(input, hx, batch_sizes, bidirectional, bias);
  const sequence::Dims& d = b.d;
  const std::vector<Tensor> w = weights_of(d, weights, Op::kGates, type, c);
  const int64_t outputs = d.rows * d.D * d.H;
  require(output.numel() == outputs && (!grad_output.has_value() || grad_output->numel() == outputs) &&
              (!grad_hn.has_value() || grad_hn->numel() == hx.numel()) && reserve.scalar_type() == compute_type(type) &&
              reserve.numel() == hidden_count(d) + (Op::kSavesGates ? gates_count(d) : 0),
          "sequence: gradients or saved values do not fit the forward pass");
  const Tensor x = operand(input, c), h = operand(hx, c), y = operand(output, c), saved = dense(reserve);
  const Maybe mask = operand(dropout, c), gy = operand(grad_output, c), ghn = operand(grad_hn, c);
  const Tensor gx = empty(need_input ? sizes_of(input) : Ints{0}, c), ghx = empty(sizes_of(hx), c);
  std::vector<Tensor> gw;
  if (need_weights)
    for (const Tensor& t : w) gw.push_back(empty(sizes_of(t), c));
  with_kernel_type(c, [&]<class T>(T) {
    const auto pw = pointers<T>(d, w);
    std::vector<sequence::WeightGradients<T>> pg;
    const size_t each = d.bias ? 4 : 2;
    for (size_t i = 0; i < gw.size(); i += each)
      pg.push_back({out<T>(gw[i]), out<T>(gw[i + 1]), d.bias ? out<T>(gw[i + 2]) : nullptr,
                    d.bias ? out<T>(gw[i + 3]) : nullptr});
    Op::template backward<T>({d, relu, in<T>(gy), in<T>(ghn), in<T>(x), in<T>(h), pw.data(), in<T>(mask), in<T>(y),
                              in<Wide<T>>(saved), Op::kSavesGates ? in<Wide<T>>(saved) + hidden_count(d) : nullptr,
                              out_if<T>(need_input, gx), out<T>(ghx), need_weights ? pg.data() : nullptr});
  });
  for (Tensor& t : gw) t = cast(t, type);
  return {cast(gx, type), cast(ghx, type), gw};
}

// One step: input [B, I], hx [B, H].
inline Batch one_step(const Tensor& input, const Tensor& hx, bool bias) {
  require(input.dim() == 2 && hx.dim() == 2 && input.size(0) == hx.size(0), "cell: input [B, I] and hx [B, H] needed");
  Batch b;
  const int64_t B = hx.size(0);
  b.d = {B > 0, B, B, input.size(1), hx.size(1), 1, 1, nullptr, nullptr, bias};
  b.sizes = {B};
  b.offsets = {0};
  b.d.sizes = b.sizes.data();
  b.d.offsets = b.offsets.data();
  return b;
}

template <class Op>
std::tuple<Tensor, Tensor> cell_forward(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                                        const Maybe& b_ih, const Maybe& b_hh, bool relu, bool save) {
  check_types("cell", input, hx, w_ih, w_hh, b_ih, b_hh);
  require(b_ih.has_value() == b_hh.has_value(), "cell: give both biases or none");
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Batch b = one_step(input, hx, b_ih.has_value());
  std::vector<Tensor> weights{w_ih, w_hh};
  if (b_ih.has_value()) weights.insert(weights.end(), {*b_ih, *b_hh});
  const std::vector<Tensor> w = weights_of(b.d, weights, Op::kGates, type, c);
  const Tensor x = operand(input, c), h = operand(hx, c);
  const Tensor y = empty(sizes_of(hx), c), hn = empty(sizes_of(hx), c);
  const bool gates = save && Op::kSavesGates;
  const Tensor reserve = empty({gates ? gates_count(b.d) : 0}, compute_type(type));
  with_kernel_type(c, [&]<class T>(T) {
    const auto pw = pointers<T>(b.d, w);
    Op::template forward<T>({b.d, relu, in<T>(x), in<T>(h), pw.data(), nullptr, out<T>(y), out<T>(hn), nullptr,
                             gates ? out<Wide<T>>(reserve) : nullptr});
  });
  return {cast(hn, type), reserve};
}

template <class Op>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cell_backward(
    const Tensor& grad, const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh, const Tensor& output,
    const Tensor& reserve, bool bias, bool relu, bool need_input, bool need_weights) {
  check_types("cell", input, grad, hx, w_ih, w_hh, output);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Batch b = one_step(input, hx, false);
  const std::vector<Tensor> w = weights_of(b.d, {w_ih, w_hh}, Op::kGates, type, c);
  require(grad.numel() == hx.numel() && output.numel() == hx.numel() && reserve.scalar_type() == compute_type(type) &&
              reserve.numel() == (Op::kSavesGates ? gates_count(b.d) : 0),
          "cell: gradient or saved values do not fit the forward pass");
  const Tensor x = operand(input, c), h = operand(hx, c), y = operand(output, c), g = operand(grad, c);
  const Tensor saved = dense(reserve), gx = empty(need_input ? sizes_of(input) : Ints{0}, c), ghx = empty(sizes_of(hx), c);
  const int64_t rows = Op::kGates * b.d.H;
  const Tensor g_ih = empty(need_weights ? sizes_of(w_ih) : Ints{0}, c), g_hh = empty(need_weights ? sizes_of(w_hh) : Ints{0}, c);
  const Ints bias_size{need_weights && bias ? rows : 0};
  const Tensor gb_ih = empty(bias_size, c), gb_hh = empty(bias_size, c);
  with_kernel_type(c, [&]<class T>(T) {
    const auto pw = pointers<T>(b.d, w);
    const bool biases = need_weights && bias;
    const sequence::WeightGradients<T> pg{out<T>(g_ih), out<T>(g_hh), out_if<T>(biases, gb_ih), out_if<T>(biases, gb_hh)};
    Op::template backward<T>({b.d, relu, nullptr, in<T>(g), in<T>(x), in<T>(h), pw.data(), nullptr, in<T>(y), nullptr,
                              Op::kSavesGates ? in<Wide<T>>(saved) : nullptr, out_if<T>(need_input, gx), out<T>(ghx),
                              need_weights ? &pg : nullptr});
  });
  return {cast(gx, type), cast(ghx, type), cast(g_ih, type), cast(g_hh, type), cast(gb_ih, type), cast(gb_hh, type)};
}

}  // namespace ts

#define TS_REGISTER_SEQUENCE(name, Op)                                                                                  \
  STABLE_TORCH_LIBRARY_FRAGMENT(torchsmith, m) {                                                                        \
    m.def(#name "_cell_forward(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "         \
                "bool relu, bool save) -> (Tensor, Tensor)");                                                           \
    m.def(#name "_cell_backward(Tensor grad, Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor output, "        \
                "Tensor reserve, bool bias, bool relu, bool need_input, bool need_weights) -> "                         \
                "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");                                                    \
    m.def(#name "_forward(Tensor input, Tensor hx, Tensor[] weights, Tensor? dropout, Tensor? batch_sizes, "            \
                "bool bidirectional, bool bias, bool relu, bool save) -> (Tensor, Tensor, Tensor)");                    \
    m.def(#name "_backward(Tensor? grad_output, Tensor? grad_hn, Tensor input, Tensor hx, Tensor[] weights, "           \
                "Tensor? dropout, Tensor? batch_sizes, Tensor output, Tensor reserve, bool bidirectional, bool bias, "  \
                "bool relu, bool need_input, bool need_weights) -> (Tensor, Tensor, Tensor[])");                        \
  }                                                                                                                     \
  STABLE_TORCH_LIBRARY_IMPL(torchsmith, CPU, m) {                                                                       \
    m.impl(#name "_cell_forward", TORCH_BOX(&ts::cell_forward<Op>));                                                    \
    m.impl(#name "_cell_backward", TORCH_BOX(&ts::cell_backward<Op>));                                                  \
    m.impl(#name "_forward", TORCH_BOX(&ts::sequence_forward<Op>));                                                     \
    m.impl(#name "_backward", TORCH_BOX(&ts::sequence_backward<Op>));                                                   \
  }                                                                                                                     \
  static const ts::Registered cell_forward{#name "_cell_forward", "cpu", ts::kAllFloats};                               \
  static const ts::Registered cell_backward{#name "_cell_backward", "cpu", ts::kAllFloats};                             \
  static const ts::Registered forward{#name "_forward", "cpu", ts::kAllFloats};                                         \
  static const ts::Registered backward{#name "_backward", "cpu", ts::kAllFloats};
