// linear, linear+ReLU on the CPU: three GEMMs with fused epilogues; dot products for a few rows. Formulas and shapes: contract/linear.h.
#include "../contract/linear.h"

#include "gemm.h"

namespace ts {
TS_DECLARE(linear_forward, linear::Forward)
TS_DECLARE(linear_backward, linear::Backward)
}  // namespace ts

namespace ts::TS_ISA {

// A few rows of x: dot products along K straight from W, R rows of W at a time. Packing W for a GEMM would read and write
// it once more than the product itself reads it.
constexpr int64_t kFewRowsOfX = 4;

template <class T, int M, int R>
TS_INLINE void dot_rows(const linear::Forward<T>& p, int64_t n) {
  constexpr int L = kLanes<T>;
  const int64_t K = p.d.K, N = p.d.N;
  Vec<T> sum[M][R] = {};
  const auto step = [&](int64_t k, int lanes) __attribute__((always_inline)) {
    Vec<T> x[M];
    for (int m = 0; m < M; ++m) x[m] = load_some<T>(p.x + m * K + k, lanes);
    for (int r = 0; r < R; ++r) {
      const Vec<T> w = load_some<T>(p.w + (n + r) * K + k, lanes);
      for (int m = 0; m < M; ++m) sum[m][r] += x[m] * w;
    }
  };
  int64_t k = 0;
  for (; k + L <= K; k += L) step(k, L);
  if (k < K) step(k, static_cast<int>(K - k));
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) {
      const T y = sum_lanes<T>(sum[m][r]) + (p.bias ? p.bias[n + r] : T(0));
      p.y[m * N + n + r] = p.d.relu && y < T(0) ? T(0) : y;
    }
}

template <class T, int M = kFewRowsOfX>
void few_rows(const linear::Forward<T>& p) {
  if constexpr (M > 1)
    if (p.d.M < M) return few_rows<T, M - 1>(p);
  constexpr int R = 4;  // rows of W: independent sums hide the latency of an FMA
  parallel(ceil_div(p.d.N, R), kParallelWork / (R * M * p.d.K + 1) + 1, [&](int64_t begin, int64_t end) {
    int64_t n = begin * R;
    for (; n + R <= min_of(p.d.N, end * R); n += R) dot_rows<T, M, R>(p, n);
    for (; n < min_of(p.d.N, end * R); ++n) dot_rows<T, M, 1>(p, n);
  });
}

template <class T>
void linear_forward(const linear::Forward<T>& p) {
  const auto [M, K, N, relu] = p.d;
  if (M > 0 && M <= kFewRowsOfX) return few_rows<T>(p);
  gemm<T>(M, N, K, LeftStrided<T>{p.x, K, 1}, RightStrided<T>{p.w, 1, K}, p.y, N,
          {.column_bias = p.bias, .relu = relu});
}

template <class T>
void linear_backward(const linear::Backward<T>& p) {
  const auto [M, K, N, relu] = p.d;
  const T* g = p.g;
  if (relu) {
    T* masked = scratch<T>(Slot::gradient, M * N);
    parallel(M, max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, N)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * N; i < end * N; i += kLanes<T>) {
        const int n = static_cast<int>(min_of<int64_t>(kLanes<T>, end * N - i));
        store_n<T>(masked + i, relu_gradient<T>(load_n<T>(p.g + i, n), load_n<T>(p.y + i, n)), n);
      }
    });
    g = masked;
  }
  if (p.dx) gemm<T>(M, K, N, LeftStrided<T>{g, N, 1}, RightStrided<T>{p.w, K, 1}, p.dx, K, {});
  if (p.dw) gemm<T>(N, K, M, LeftStrided<T>{g, 1, N}, RightStrided<T>{p.x, K, 1}, p.dw, K, {});
  if (p.db) sum_rows<T>(g, M, N, p.db);
}

TS_INSTANTIATE(linear_forward, linear::Forward)
TS_INSTANTIATE(linear_backward, linear::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "glue.h"

namespace ts {
namespace {

linear::Dims dims_of(const Tensor& input, const Tensor& weight, int64_t bias, bool relu) {
  require(weight.dim() == 2, "linear: weight needs 2 dimensions, got " + std::to_string(weight.dim()));
  require(input.dim() >= 1, "linear: input needs at least 1 dimension");
  const int64_t features = input.size(input.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < input.dim(); ++d) rows *= input.size(d);
  return linear::dims(rows, features, weight.size(0), weight.size(1), bias, relu);
}

Tensor linear_forward(const Tensor& input, const Tensor& weight, const Maybe& bias, bool relu) {
  check_types("linear", input, weight, bias);
  const auto type = input.scalar_type();
  const linear::Dims d = dims_of(input, weight, size_of_bias(bias), relu);
  const Tensor x = operand(input, type), w = operand(weight, type);
  const Maybe b = operand(bias, type);
  Ints sizes = sizes_of(input);
  sizes.back() = d.N;
  const Tensor y = empty(sizes, compute_type(type));
  with_type(type, [&]<class T>(T) {
    const linear::Forward<T> p{d, in<T>(x), in<T>(w), in<T>(b), out<T>(y)};
    TS_CALL(linear_forward<T>, p);
  });
  return cast(y, type);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const Maybe& output, bool relu, bool need_input, bool need_weight,
                                                   bool need_bias) {
  check_types("linear", input, grad, weight, output);
  const auto type = input.scalar_type();
  const linear::Dims d = dims_of(input, weight, -1, relu);
  require(grad.numel() == d.M * d.N, "linear: the gradient does not have the output's shape");
  require(!relu || (output.has_value() && output->numel() == grad.numel()), "linear: relu needs the output");
  const Tensor g = operand(grad, type), x = operand(input, type), w = operand(weight, type);
  const Maybe y = operand(output, type);
  const auto c = compute_type(type);
  const Tensor dx = empty(need_input ? sizes_of(input) : Ints{0}, c);
  const Tensor dw = empty(need_weight ? Ints{d.N, d.K} : Ints{0}, c);
  const Tensor db = empty(need_bias ? Ints{d.N} : Ints{0}, c);
  with_type(type, [&]<class T>(T) {
    const linear::Backward<T> p{d,
                                in<T>(g),
                                in<T>(x),
                                in<T>(w),
                                in<T>(y),
                                out_if<T>(need_input, dx),
                                out_if<T>(need_weight, dw),
                                out_if<T>(need_bias, db)};
    TS_CALL(linear_backward<T>, p);
  });
  return {cast(dx, type), cast(dw, type), cast(db, type)};
}

}  // namespace
}  // namespace ts

STABLE_TORCH_LIBRARY_FRAGMENT(torchsmith, m) {
  m.def("linear_forward(Tensor input, Tensor weight, Tensor? bias, bool relu) -> Tensor");
  m.def("linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor? output, bool relu, bool need_input, "
        "bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(torchsmith, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&ts::linear_forward));
  m.impl("linear_backward", TORCH_BOX(&ts::linear_backward));
}
static const ts::Registered forward{"linear_forward", "cpu", ts::kAllFloats};
static const ts::Registered backward{"linear_backward", "cpu", ts::kAllFloats};
#endif
