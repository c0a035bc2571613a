// The recurrent ops' tensors -> their Dims, with the checks, the same on every device.
#pragma once

#include "../contract/sequence.h"
#include "tensors.h"

namespace ts {

struct Batch {  // the steps of a sequence, from batch_sizes or from a padded [T, B, I] input
  sequence::Dims d{};
  Ints sizes, offsets, index;
};

// index: of each row, in the form of `input` less its last dimension; `input` is then the table [table, I].
template <class Tensor>
Batch batch_of(const Tensor& input, const Tensor& hx, const Maybe<Tensor>& batch_sizes, const Maybe<Tensor>& index,
               bool bidirectional, bool bias) {
  require(hx.dim() == 3, "hx needs 3 dimensions (layers * directions, batch, hidden)");
  const Tensor& steps = index.has_value() ? *index : input;
  require(steps.dim() + index.has_value() == (batch_sizes.has_value() ? 2 : 3),
          "input needs 3 dimensions, or 2 with batch_sizes; index one less");
  Batch b;
  if (index.has_value()) {
    require(input.dim() == 2, "input needs 2 dimensions (table, features) with index");
    require(index->scalar_type() == ScalarType::Long && index->is_cpu(), "index: an int64 tensor on the CPU is needed");
    const Tensor dense_index = dense(*index);
    const int64_t* p = in<int64_t>(dense_index);
    b.index.assign(p, p + dense_index.numel());
    for (const int64_t row : b.index)
      require(row >= 0 && row < input.size(0), "index out of range: " + std::to_string(row) + " of " + std::to_string(input.size(0)));
    b.d.index = b.index.data();
    b.d.table = input.size(0);
  }
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
    b.d.rows = steps.size(0);
  } else {
    require(steps.size(1) == b.d.B, "input and hx have different batch sizes");
    if (b.d.B > 0) b.sizes.assign(steps.size(0), b.d.B);
    b.d.rows = steps.size(0) * b.d.B;
  }
  b.d.T = static_cast<int64_t>(b.sizes.size());
  sequence::check_sizes(b.sizes.data(), b.d.T, b.d.B, b.d.rows);
  b.offsets.resize(b.sizes.size());
  for (int64_t t = 1; t < b.d.T; ++t) b.offsets[t] = b.offsets[t - 1] + b.sizes[t - 1];
  b.d.sizes = b.sizes.data();
  b.d.offsets = b.offsets.data();
  return b;
}

// Checks shapes and dtypes of the weights: 4 (or 2 without bias) for each layer and direction.
template <class Tensor>
void check_weights(const sequence::Dims& d, const std::vector<Tensor>& weights, int64_t gates, ScalarType type) {
  const size_t each = d.bias ? 4 : 2;
  require(weights.size() == each * d.L * d.D, "weights: " + std::to_string(each * d.L * d.D) + " tensors needed, got " +
                                                  std::to_string(weights.size()));
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    const int64_t layer = static_cast<int64_t>(i / each) / d.D;
    const Ints expected = i % each == 0   ? Ints{gates * d.H, d.input_size(layer)}
                          : i % each == 1 ? Ints{gates * d.H, d.H}
                                          : Ints{gates * d.H};
    require(sizes_of(w) == expected, "weights: tensor " + std::to_string(i) + " has the wrong shape");
    require(w.scalar_type() == type, "weights: all arguments need one dtype");
  }
}

template <class T, class Tensor>
std::vector<sequence::Weights<T>> pointers(const sequence::Dims& d, const std::vector<Tensor>& w) {
  std::vector<sequence::Weights<T>> p;
  const size_t each = d.bias ? 4 : 2;
  for (size_t i = 0; i < w.size(); i += each)
    p.push_back({in<T>(w[i]), in<T>(w[i + 1]), d.bias ? in<T>(w[i + 2]) : nullptr, d.bias ? in<T>(w[i + 3]) : nullptr});
  return p;
}

template <class T, class Tensor>
std::vector<sequence::WeightGradients<T>> gradient_pointers(const sequence::Dims& d, const std::vector<Tensor>& g) {
  std::vector<sequence::WeightGradients<T>> p;
  const size_t each = d.bias ? 4 : 2;
  for (size_t i = 0; i < g.size(); i += each)
    p.push_back({out<T>(g[i]), out<T>(g[i + 1]), d.bias ? out<T>(g[i + 2]) : nullptr, d.bias ? out<T>(g[i + 3]) : nullptr});
  return p;
}

// In full width: hidden [L - 1, rows, D * H] then gates [L * D, rows, 4 * H]: what backward needs beside inputs and outputs.
inline int64_t hidden_count(const sequence::Dims& d) { return (d.L - 1) * d.rows * d.D * d.H; }
inline int64_t gates_count(const sequence::Dims& d) { return d.L * d.D * d.rows * 4 * d.H; }

// The sizes of the output: as `input`, or `index`, with the features of all directions at the end.
template <class Tensor>
Ints output_sizes(const sequence::Dims& d, const Tensor& input, const Maybe<Tensor>& index) {
  Ints sizes = sizes_of(index.has_value() ? *index : input);
  if (!index.has_value()) sizes.pop_back();
  sizes.push_back(d.D * d.H);
  return sizes;
}

// One step: input [B, I], hx [B, H].
template <class Tensor>
Batch one_step(const Tensor& input, const Tensor& hx, bool bias) {
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

// What backward is given, against the forward pass it belongs to. compute: the type of the saved values.
template <class Tensor>
void check_saved(const sequence::Dims& d, const Tensor& hx, const Tensor& output, const Maybe<Tensor>& grad_output,
                 const Maybe<Tensor>& grad_hn, const Tensor& reserve, ScalarType compute, bool saves_gates) {
  const int64_t outputs = d.rows * d.D * d.H;
  require(output.numel() == outputs && (!grad_output.has_value() || grad_output->numel() == outputs) &&
              (!grad_hn.has_value() || grad_hn->numel() == hx.numel()) && reserve.scalar_type() == compute &&
              reserve.numel() == hidden_count(d) + (saves_gates ? gates_count(d) : 0),
          "sequence: gradients or saved values do not fit the forward pass");
}
template <class Tensor>
void check_saved_cell(const sequence::Dims& d, const Tensor& hx, const Tensor& grad, const Tensor& output,
                      const Tensor& reserve, ScalarType compute, bool saves_gates) {
  require(grad.numel() == hx.numel() && output.numel() == hx.numel() && reserve.scalar_type() == compute &&
              reserve.numel() == (saves_gates ? gates_count(d) : 0),
          "cell: gradient or saved values do not fit the forward pass");
}

}  // namespace ts
