// The torch side of the recurrent rows on CUDA: for NAME in rnn, gru the ops NAME_{cell_,}{forward,backward}. Operands that
// are not dense are copied, but for the rows of a cell's input and state in the forward pass, which may lie apart.
#pragma once

#include "../glue/sequence.h"
#include "cell.cuh"
#include "glue.cuh"
#include "sequence.cuh"

namespace ts::cuda {

inline ScalarType wide_type(ScalarType t) { return t == ScalarType::Double ? t : ScalarType::Float; }

// A call's temporary memory: tensors of the caching allocator.
struct Scratch {
  const OnDevice& on;
  std::vector<Tensor> taken;
  template <class T>
  T* take(int64_t count) {
    if (count == 0) return nullptr;
    taken.push_back(on.workspace(count * static_cast<int64_t>(sizeof(T))));
    return out<T>(taken.back());
  }
};

inline std::vector<Tensor> dense_weights(const Tensor& input, const sequence::Dims& d, const std::vector<Tensor>& weights,
                                         int64_t gates) {
  check_weights(d, weights, gates, input.scalar_type());
  std::vector<Tensor> w;
  w.reserve(weights.size());
  for (const Tensor& t : weights) {
    check_devices("sequence", input, t);
    w.push_back(ts::dense(t));
  }
  return w;
}

constexpr const char* kNoIndex = "index: the kernels for CUDA read each row of the input where it lies";

template <class Op>
std::tuple<Tensor, Tensor, Tensor> sequence_forward_cuda(
    const Tensor& input, const Tensor& hx, const std::vector<Tensor>& weights, const Maybe<Tensor>& dropout,
    const Maybe<Tensor>& batch_sizes, bool bidirectional, bool bias, bool relu, bool save, bool allow_tf32,
    const Maybe<Tensor>& index) {
  using Cell = typename Op::Cell;
  require(!index.has_value(), kNoIndex);
  check_types("sequence", input, hx, dropout);
  check_devices("sequence", input, hx, dropout);
  const auto type = input.scalar_type();
  const Batch b = batch_of<Tensor>(input, hx, batch_sizes, std::nullopt, bidirectional, bias);
  const sequence::Dims& d = b.d;
  const OnDevice on(input);
  const std::vector<Tensor> w = dense_weights(input, d, weights, Cell::kGates);
  const Tensor x = ts::dense(input), h = ts::dense(hx);
  const Maybe<Tensor> mask = dense(dropout);
  require(!mask.has_value() || mask->numel() == hidden_count(d), "dropout: [layers - 1, rows, directions * hidden] needed");
  Ints sizes = sizes_of(input);
  sizes.back() = d.D * d.H;
  const Tensor y = on.empty(sizes, type), hn = on.empty(sizes_of(hx), type);
  const bool gates = save && Cell::kSavesGates;
  const Tensor reserve = on.empty({hidden_count(d) + (gates ? gates_count(d) : 0)}, wide_type(type));
  with_element(type, [&]<class T>(T) {
    with_math<T>(allow_tf32, on.device(), [&]<class Math>(Math) {
      const auto pw = pointers<T>(d, w);
      SumOf<T>* saved = out<SumOf<T>>(reserve);
      Scratch scratch{on, {}};
      Stack<Cell, Math, Scratch>{Op::cell(relu), on.device(), on.stream(), scratch}.forward(
          {d, relu, in<T>(x), in<T>(h), pw.data(), in<T>(mask), out<T>(y), out<T>(hn), saved,
           gates ? saved + hidden_count(d) : nullptr});
    });
  });
  return {y, hn, save ? reserve : on.empty({0}, wide_type(type))};
}

template <class Op>
std::tuple<Tensor, Tensor, std::vector<Tensor>> sequence_backward_cuda(
    const Maybe<Tensor>& grad_output, const Maybe<Tensor>& grad_hn, const Tensor& input, const Tensor& hx,
    const std::vector<Tensor>& weights, const Maybe<Tensor>& dropout, const Maybe<Tensor>& batch_sizes, const Tensor& output,
    const Tensor& reserve, bool bidirectional, bool bias, bool relu, bool need_input, bool need_weights, bool allow_tf32,
    const Maybe<Tensor>& index) {
  using Cell = typename Op::Cell;
  require(!index.has_value(), kNoIndex);
  check_types("sequence", input, hx, dropout, output, grad_output, grad_hn);
  check_devices("sequence", input, hx, dropout, output, reserve, grad_output, grad_hn);
  const auto type = input.scalar_type();
  const Batch b = batch_of<Tensor>(input, hx, batch_sizes, std::nullopt, bidirectional, bias);
  const sequence::Dims& d = b.d;
  const OnDevice on(input);
  const std::vector<Tensor> w = dense_weights(input, d, weights, Cell::kGates);
  check_saved(d, hx, output, grad_output, grad_hn, reserve, wide_type(type), Cell::kSavesGates);
  const Tensor x = ts::dense(input), h = ts::dense(hx), y = ts::dense(output), saved = ts::dense(reserve);
  const Maybe<Tensor> mask = dense(dropout), gy = dense(grad_output), ghn = dense(grad_hn);
  require(!mask.has_value() || mask->numel() == hidden_count(d), "dropout: [layers - 1, rows, directions * hidden] needed");
  const Tensor gx = on.empty(need_input ? sizes_of(input) : Ints{0}, type), ghx = on.empty(sizes_of(hx), type);
  std::vector<Tensor> gw;
  if (need_weights)
    for (const Tensor& t : w) gw.push_back(on.empty(sizes_of(t), type));
  with_element(type, [&]<class T>(T) {
    with_math<T>(allow_tf32, on.device(), [&]<class Math>(Math) {
      const auto pw = pointers<T>(d, w);
      const auto pg = gradient_pointers<T>(d, gw);
      Scratch scratch{on, {}};
      Stack<Cell, Math, Scratch>{Op::cell(relu), on.device(), on.stream(), scratch}.backward(
          {d, relu, in<T>(gy), in<T>(ghn), in<T>(x), in<T>(h), pw.data(), in<T>(mask), in<T>(y), in<SumOf<T>>(saved),
           Cell::kSavesGates ? in<SumOf<T>>(saved) + hidden_count(d) : nullptr, out_if<T>(need_input, gx), out<T>(ghx),
           need_weights ? pg.data() : nullptr});
    });
  });
  return {gx, ghx, gw};
}

template <class Op>
std::tuple<Tensor, Tensor> cell_forward_cuda(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                                             const Maybe<Tensor>& b_ih, const Maybe<Tensor>& b_hh, bool relu, bool save) {
  using Cell = typename Op::Cell;
  check_types("cell", input, hx, w_ih, w_hh, b_ih, b_hh);
  check_devices("cell", input, hx, w_ih, w_hh, b_ih, b_hh);
  require(b_ih.has_value() == b_hh.has_value(), "cell: give both biases or none");
  const auto type = input.scalar_type();
  const Batch b = one_step(input, hx, b_ih.has_value());
  const OnDevice on(input);
  std::vector<Tensor> weights{w_ih, w_hh};
  if (b_ih.has_value()) weights.insert(weights.end(), {*b_ih, *b_hh});
  const std::vector<Tensor> w = dense_weights(input, b.d, weights, Cell::kGates);
  const Rows x = rows_of(input), h = rows_of(hx);
  const Tensor y = on.empty(sizes_of(hx), type);
  const bool gates = save && Cell::kSavesGates;
  const Tensor reserve = on.empty({gates ? gates_count(b.d) : 0}, wide_type(type));
  with_element(type, [&]<class T>(T) {
    const auto pw = pointers<T>(b.d, w)[0];
    const CellForward<T> p{b.d.B,  b.d.I,  b.d.H,   in<T>(x.tensor), in<T>(h.tensor), x.pitch, h.pitch,
                           pw.ih, pw.hh, pw.b_ih, pw.b_hh, out<T>(y), gates ? out<SumOf<T>>(reserve) : nullptr};
    cell_forward(Op::cell(relu), p, on.stream());
  });
  return {y, reserve};
}

template <class Op>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cell_backward_cuda(
    const Tensor& grad, const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh, const Tensor& output,
    const Tensor& reserve, bool bias, bool relu, bool need_input, bool need_weights, bool allow_tf32) {
  using Cell = typename Op::Cell;
  check_types("cell", input, grad, hx, w_ih, w_hh, output);
  check_devices("cell", input, grad, hx, w_ih, w_hh, output, reserve);
  const auto type = input.scalar_type();
  const Batch b = one_step(input, hx, false);
  const sequence::Dims& d = b.d;
  const OnDevice on(input);
  const std::vector<Tensor> w = dense_weights(input, d, {w_ih, w_hh}, Cell::kGates);
  check_saved_cell(d, hx, grad, output, reserve, wide_type(type), Cell::kSavesGates);
  const Tensor x = ts::dense(input), h = ts::dense(hx), y = ts::dense(output), g = ts::dense(grad), saved = ts::dense(reserve);
  const Tensor gx = on.empty(need_input ? sizes_of(input) : Ints{0}, type), ghx = on.empty(sizes_of(hx), type);
  const Tensor g_ih = on.empty(need_weights ? sizes_of(w_ih) : Ints{0}, type);
  const Tensor g_hh = on.empty(need_weights ? sizes_of(w_hh) : Ints{0}, type);
  const bool biases = need_weights && bias;
  const Ints bias_size{biases ? Cell::kGates * d.H : 0};
  const Tensor gb_ih = on.empty(bias_size, type), gb_hh = on.empty(bias_size, type);
  with_element(type, [&]<class T>(T) {
    with_math<T>(allow_tf32, on.device(), [&]<class Math>(Math) {
      const auto pw = pointers<T>(d, w)[0];
      const sequence::WeightGradients<T> pg{out<T>(g_ih), out<T>(g_hh), out_if<T>(biases, gb_ih), out_if<T>(biases, gb_hh)};
      Scratch scratch{on, {}};
      Stack<Cell, Math, Scratch>{Op::cell(relu), on.device(), on.stream(), scratch}.cell_backward(
          d.B, d.I, d.H, in<T>(g), in<T>(x), in<T>(h), in<T>(y), in<SumOf<T>>(saved), pw, out_if<T>(need_input, gx),
          out<T>(ghx), need_weights ? &pg : nullptr);
    });
  });
  return {gx, ghx, g_ih, g_hh, gb_ih, gb_hh};
}

}  // namespace ts::cuda
