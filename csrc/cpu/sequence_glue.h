// The torch side of the recurrent ops: for NAME in rnn, gru the four native ops NAME_cell_forward, NAME_cell_backward,
// NAME_forward, NAME_backward. A cell is a sequence of one step. allow_tf32 concerns CUDA alone.
#pragma once

#include "../glue/sequence.h"
#include "glue.h"

namespace ts {

// Contiguous weights of the kernels' type.
template <class Tensor>
std::vector<Tensor> weights_of(const sequence::Dims& d, const std::vector<Tensor>& weights, int64_t gates,
                                      ScalarType type, ScalarType kernel) {
  check_weights(d, weights, gates, type);
  std::vector<Tensor> out;
  out.reserve(weights.size());
  for (const Tensor& w : weights) out.push_back(operand(w, kernel));
  return out;
}

// The gradient at the output as the kernels read it. One that has to be copied (batch_first) is copied to where the input's
// gradient will be, if that has its sizes: the peak of a training step is here.
template <class Tensor>
Maybe<Tensor> gradient_operand(const Maybe<Tensor>& grad, ScalarType type, const Tensor& room) {
  if (!grad.has_value() || (grad->is_contiguous() && grad->scalar_type() == type) || sizes_of(*grad) != sizes_of(room))
    return operand(grad, type);
  return copied_to(room, *grad);
}

template <class Op, class Tensor>
std::tuple<Tensor, Tensor, Tensor> sequence_forward(const Tensor& input, const Tensor& hx, const std::vector<Tensor>& weights,
                                                    const Maybe<Tensor>& dropout, const Maybe<Tensor>& batch_sizes,
                                                    bool bidirectional, bool bias, bool relu, bool save, bool /*allow_tf32*/,
                                                    const Maybe<Tensor>& index) {
  check_types("sequence", input, hx, dropout);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Batch b = batch_of(input, hx, batch_sizes, index, bidirectional, bias);
  const sequence::Dims& d = b.d;
  const std::vector<Tensor> w = weights_of(d, weights, Op::kGates, type, c);
  const Tensor x = operand(input, c), h = operand(hx, c);
  const Maybe<Tensor> mask = operand(dropout, c);
  require(!mask.has_value() || mask->numel() == hidden_count(d), "dropout: [layers - 1, rows, directions * hidden] needed");
  const Tensor y = empty(input, output_sizes(d, input, index), c), hn = empty(input, sizes_of(hx), c);
  const bool gates = save && Op::kSavesGates;
  const Tensor reserve = empty(input, {hidden_count(d) + (gates ? gates_count(d) : 0)}, compute_type(type));
  with_kernel_type(c, [&]<class T>(T) {
    const auto pw = pointers<T>(d, w);
    Wide<T>* saved = out<Wide<T>>(reserve);
    Op::template forward<T>({d, relu, in<T>(x), in<T>(h), pw.data(), in<T>(mask), out<T>(y), out<T>(hn), saved,
                             gates ? saved + hidden_count(d) : nullptr});
  });
  return {cast(y, type), cast(hn, type), save ? reserve : empty(input, {0}, compute_type(type))};
}

template <class Op, class Tensor>
std::tuple<Tensor, Tensor, std::vector<Tensor>> sequence_backward(
    const Maybe<Tensor>& grad_output, const Maybe<Tensor>& grad_hn, const Tensor& input, const Tensor& hx,
    const std::vector<Tensor>& weights, const Maybe<Tensor>& dropout, const Maybe<Tensor>& batch_sizes, const Tensor& output,
    const Tensor& reserve, bool bidirectional, bool bias, bool relu, bool need_input, bool need_weights, bool /*allow_tf32*/,
    const Maybe<Tensor>& index) {
  check_types("sequence", input, hx, dropout, output, grad_output, grad_hn);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Batch b = batch_of(input, hx, batch_sizes, index, bidirectional, bias);
  const sequence::Dims& d = b.d;
  const std::vector<Tensor> w = weights_of(d, weights, Op::kGates, type, c);
  check_saved(d, hx, output, grad_output, grad_hn, reserve, compute_type(type), Op::kSavesGates);
  const Tensor x = operand(input, c), h = operand(hx, c), y = operand(output, c), saved = dense(reserve);
  const Maybe<Tensor> mask = operand(dropout, c), ghn = operand(grad_hn, c);
  const Tensor gx = empty(input, need_input ? sizes_of(input) : Ints{0}, c), ghx = empty(input, sizes_of(hx), c);
  // The first layer, which writes gx, comes last; but a layer's first direction is done before the second reads gy.
  const Maybe<Tensor> gy = d.L > 1 || d.D == 1 ? gradient_operand(grad_output, c, gx) : operand(grad_output, c);
  std::vector<Tensor> gw;
  if (need_weights)
    for (const Tensor& t : w) gw.push_back(empty(input, sizes_of(t), c));
  with_kernel_type(c, [&]<class T>(T) {
    const auto pw = pointers<T>(d, w);
    const auto pg = gradient_pointers<T>(d, gw);
    Op::template backward<T>({d, relu, in<T>(gy), in<T>(ghn), in<T>(x), in<T>(h), pw.data(), in<T>(mask), in<T>(y),
                              in<Wide<T>>(saved), Op::kSavesGates ? in<Wide<T>>(saved) + hidden_count(d) : nullptr,
                              out_if<T>(need_input, gx), out<T>(ghx), need_weights ? pg.data() : nullptr});
  });
  for (Tensor& t : gw) t = cast(t, type);
  return {cast(gx, type), cast(ghx, type), gw};
}

template <class Op, class Tensor>
std::tuple<Tensor, Tensor> cell_forward(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                                        const Maybe<Tensor>& b_ih, const Maybe<Tensor>& b_hh, bool relu, bool save) {
  check_types("cell", input, hx, w_ih, w_hh, b_ih, b_hh);
  require(b_ih.has_value() == b_hh.has_value(), "cell: give both biases or none");
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Batch b = one_step(input, hx, b_ih.has_value());
  std::vector<Tensor> weights{w_ih, w_hh};
  if (b_ih.has_value()) weights.insert(weights.end(), {*b_ih, *b_hh});
  const std::vector<Tensor> w = weights_of(b.d, weights, Op::kGates, type, c);
  const Tensor x = operand(input, c), h = operand(hx, c);
  const Tensor hn = empty(input, sizes_of(hx), c);
  const bool gates = save && Op::kSavesGates;
  const Tensor reserve = empty(input, {gates ? gates_count(b.d) : 0}, compute_type(type));
  with_kernel_type(c, [&]<class T>(T) {
    const auto pw = pointers<T>(b.d, w);
    T* const y = out<T>(hn);  // one step's output is its state
    Op::template forward<T>({b.d, relu, in<T>(x), in<T>(h), pw.data(), nullptr, y, y, nullptr,
                             gates ? out<Wide<T>>(reserve) : nullptr});
  });
  return {cast(hn, type), reserve};
}

template <class Op, class Tensor>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cell_backward(
    const Tensor& grad, const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh, const Tensor& output,
    const Tensor& reserve, bool bias, bool relu, bool need_input, bool need_weights, bool /*allow_tf32*/) {
  check_types("cell", input, grad, hx, w_ih, w_hh, output);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Batch b = one_step(input, hx, false);
  const std::vector<Tensor> w = weights_of(b.d, std::vector<Tensor>{w_ih, w_hh}, Op::kGates, type, c);
  check_saved_cell(b.d, hx, grad, output, reserve, compute_type(type), Op::kSavesGates);
  const Tensor x = operand(input, c), h = operand(hx, c), y = operand(output, c), g = operand(grad, c);
  const Tensor saved = dense(reserve), ghx = empty(input, sizes_of(hx), c);
  const Tensor gx = empty(input, need_input ? sizes_of(input) : Ints{0}, c);
  const int64_t rows = Op::kGates * b.d.H;
  const Tensor g_ih = empty(input, need_weights ? sizes_of(w_ih) : Ints{0}, c);
  const Tensor g_hh = empty(input, need_weights ? sizes_of(w_hh) : Ints{0}, c);
  const Ints bias_size{need_weights && bias ? rows : 0};
  const Tensor gb_ih = empty(input, bias_size, c), gb_hh = empty(input, bias_size, c);
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
                "Tensor reserve, bool bias, bool relu, bool need_input, bool need_weights, bool allow_tf32=False) -> "  \
                "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");                                                    \
    m.def(#name "_forward(Tensor input, Tensor hx, Tensor[] weights, Tensor? dropout, Tensor? batch_sizes, "            \
                "bool bidirectional, bool bias, bool relu, bool save, bool allow_tf32=False, Tensor? index=None) -> "           \
                "(Tensor, Tensor, Tensor)");                                                                            \
    m.def(#name "_backward(Tensor? grad_output, Tensor? grad_hn, Tensor input, Tensor hx, Tensor[] weights, "           \
                "Tensor? dropout, Tensor? batch_sizes, Tensor output, Tensor reserve, bool bidirectional, bool bias, "  \
                "bool relu, bool need_input, bool need_weights, bool allow_tf32=False, Tensor? index=None) -> "         \
                "(Tensor, Tensor, Tensor[])");                                                                          \
  }                                                                                                                     \
  STABLE_TORCH_LIBRARY_IMPL(torchsmith, CPU, m) {                                                                       \
    m.impl(#name "_cell_forward", TORCH_BOX((&ts::cell_forward<Op, ts::Tensor>)));                                      \
    m.impl(#name "_cell_backward", TORCH_BOX((&ts::cell_backward<Op, ts::Tensor>)));                                    \
    m.impl(#name "_forward", TORCH_BOX((&ts::sequence_forward<Op, ts::Tensor>)));                                       \
    m.impl(#name "_backward", TORCH_BOX((&ts::sequence_backward<Op, ts::Tensor>)));                                     \
  }                                                                                                                     \
  static const ts::Registered cell_forward{#name "_cell_forward", "cpu", ts::kAllFloats};                               \
  static const ts::Registered cell_backward{#name "_cell_backward", "cpu", ts::kAllFloats};                             \
  static const ts::Registered forward{#name "_forward", "cpu", ts::kAllFloats};                                         \
  static const ts::Registered backward{#name "_backward", "cpu", ts::kAllFloats};                                       \
  static const ts::Direct<&ts::cell_forward<Op, ts::View>> direct_cell_forward{#name "_cell_forward"};                  \
  static const ts::Direct<&ts::cell_backward<Op, ts::View>> direct_cell_backward{#name "_cell_backward"};               \
  static const ts::Direct<&ts::sequence_forward<Op, ts::View>> direct_forward{#name "_forward"};                        \
  static const ts::Direct<&ts::sequence_backward<Op, ts::View>> direct_backward{#name "_backward"};
