// linear, linear+ReLU on the CPU: three GEMMs with fused epilogues; a few rows straight from W. Formulas and shapes: contract/linear.h.
#include "../contract/linear.h"

#include "gemm.h"
#include "sum_rows.h"

namespace ts {
TS_DECLARE(linear_forward, linear::Forward)
TS_DECLARE(linear_backward, linear::Backward)
}  // namespace ts

namespace ts::TS_ISA {

// A few rows of x: straight from W, since packing W for a GEMM would read and write it once more than the product itself
// reads it. W passes line after line, some rows at a time; those behind them are asked for meanwhile, since no hardware knows
// that they follow. More than four at a time are read more slowly; sums or factors are at most 16, or 8 of 16 registers.
constexpr int64_t kFewRowsOfX = kVectorBytes == 64 ? 8 : 4;
template <int M>
constexpr int kRowsOfW = M <= (kVectorBytes == 64 ? 4 : 2) ? 4 : 2;

// The sum of each vector's lanes. One by one they take more instructions than two rows' products of 784.
template <class T, int S>
TS_INLINE void sum_each(const Vec<T> (&v)[S], T (&sums)[S]) {
  constexpr int L = kLanes<T>;
  for (int first = 0; first < S; first += L) {
    Vec<T> block[L];
    for (int i = 0; i < L; ++i) block[i] = first + i < S ? v[first + i] : Vec<T>{};
    transpose<T>(block);
    for (int width = L / 2; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) block[i] += block[i + width];
    store_some<T>(sums + first, block[0], min_of(L, S - first));
  }
}

// Forward: dot products along K, R rows of W at a time.
template <class T, int M, int R>
TS_INLINE void dot_rows(const linear::Forward<T>& p, int64_t n) {
  using W = Wide<T>;
  constexpr int L = kPair<T> * kLanes<W>;
  const int64_t K = p.d.K, N = p.d.N;
  Vec<W> sum[M * R] = {};
  const auto step = [&](int64_t k, int elements) __attribute__((always_inline)) {
    Vec<Lane<T>> x[M];
    for (int m = 0; m < M; ++m) x[m] = load_lanes(p.x + m * K + k, elements);
    for (int r = 0; r < R; ++r) {
      const Vec<Lane<T>> w = load_lanes(p.w + (n + r) * K + k, elements);
      __builtin_prefetch(p.w + (n + r + R) * K + k);
      for (int m = 0; m < M; ++m) sum[m * R + r] = multiply_add(sum[m * R + r], x[m], w);
    }
  };
  int64_t k = 0;
  for (; k + L <= K; k += L) step(k, L);
  if (k < K) step(k, static_cast<int>(K - k));
  W sums[M * R];
  sum_each<W>(sum, sums);
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) {
      const W y = sums[m * R + r] + (p.bias ? widened(p.bias + n + r) : W(0));
      put(p.y + m * N + n + r, p.d.relu && y < W(0) ? W(0) : y);
    }
}

template <class T, int M = kFewRowsOfX>
void few_rows(const linear::Forward<T>& p) {
  if constexpr (M > 1)
    if (p.d.M < M) return few_rows<T, M - 1>(p);
  constexpr int R = kRowsOfW<M>;
  parallel(ceil_div(p.d.N, R), kParallelWork / (R * M * p.d.K + 1) + 1, [&](int64_t begin, int64_t end) {
    int64_t n = begin * R;
    const int64_t stop = min_of(p.d.N, end * R);
    for (; n + R <= stop; n += R) dot_rows<T, M, R>(p, n);
    for (; n < stop; ++n) dot_rows<T, M, 1>(p, n);
  });
}

// dx[m][k] = sum over n of g[m][n] w[n][k]. Adds to sums[m][k - begin] those of R rows of W from n on, columns [begin, end).
template <class T, int M, int R>
TS_INLINE void few_rows_dx_add(const linear::Backward<T>& p, const T* g, Wide<T>* sums, int64_t pitch, int64_t n, int64_t begin,
                               int64_t end) {
  using W = Wide<T>;
  const int64_t K = p.d.K, N = p.d.N;
  Vec<W> factor[M][R];
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) factor[m][r] = splat<W>(widened(g + m * N + n + r));
  const T* const w = p.w + n * K + begin;
  for_vectors<W>(end - begin, [&](int64_t k, int lanes) {
    Vec<W> row[R];
    for (int r = 0; r < R; ++r) {
      row[r] = load_wide(w + r * K + k, lanes);
      __builtin_prefetch(w + (r + R) * K + k);
    }
    for (int m = 0; m < M; ++m) {
      Vec<W> sum = load<W>(sums + m * pitch + k);
      for (int r = 0; r < R; ++r) sum += factor[m][r] * row[r];
      store<W>(sums + m * pitch + k, sum);
    }
  });
}

template <class T, int M = kFewRowsOfX>
void few_rows_dx(const linear::Backward<T>& p, const T* g) {
  if constexpr (M > 1)
    if (p.d.M < M) return few_rows_dx<T, M - 1>(p, g);
  using W = Wide<T>;
  constexpr int R = kRowsOfW<M>;
  constexpr int64_t kShare = 4 * kLanes<W>, kNear = 4096 / M / kShare * kShare;  // columns whose sums stay in the L1 cache
  const int64_t K = p.d.K, N = p.d.N;
  parallel(ceil_div(K, kShare), kParallelWork / (kShare * M * N + 1) + 1, [&](int64_t begin, int64_t end) {
    // A thread's own: in dx the next line is another thread's, and cores that fetch lines in pairs would take it from each other.
    W* const sums = scratch<W>(Slot::wide, M * kNear);
    const int64_t last = min_of(p.d.K, end * kShare);
    for (int64_t k = begin * kShare; k < last; k += kNear) {
      const int64_t stop = min_of(last, k + kNear), rows = p.d.N;
      std::memset(sums, 0, sizeof(W) * M * kNear);
      int64_t n = 0;
      for (; n + R <= rows; n += R) few_rows_dx_add<T, M, R>(p, g, sums, kNear, n, k, stop);
      for (; n < rows; ++n) few_rows_dx_add<T, M, 1>(p, g, sums, kNear, n, k, stop);
      for (int m = 0; m < M; ++m) copy_as(p.dx + m * p.d.K + k, sums + m * kNear, stop - k);
    }
  });
}

// dw[n][k] = sum over m of g[m][n] x[m][k], written once.
template <class T, int M = kFewRowsOfX>
void few_rows_dw(const linear::Backward<T>& p, const T* g) {
  if constexpr (M > 1)
    if (p.d.M < M) return few_rows_dw<T, M - 1>(p, g);
  using W = Wide<T>;
  const int64_t K = p.d.K, N = p.d.N;
  parallel(N, kParallelWork / (M * K + 1) + 1, [&](int64_t begin, int64_t end) {
    const T* const x = p.x;  // not read again after each store, which might be to p
    const int64_t width = K;
    for (int64_t n = begin; n < end; ++n) {
      Vec<W> gn[M];
      for (int m = 0; m < M; ++m) gn[m] = splat<W>(widened(g + m * N + n));
      T* const to = p.dw + n * width;
      for_vectors<W>(width, [&](int64_t k, int lanes) {
        Vec<W> sum = gn[0] * load_wide(x + k, lanes);
        for (int m = 1; m < M; ++m) sum += gn[m] * load_wide(x + m * width + k, lanes);
        store_wide(to + k, sum, lanes);
      });
    }
  });
}

// C [M, N] of a left factor that lies row by row without gaps.
template <class T, class Right>
void left_rows_gemm(int64_t M, int64_t N, int64_t K, const T* a, const Right& right, T* c, const Epilogue<T>& epilogue) {
  if constexpr (kPair<T> == 1)  // bf16's pairs may be cut by the end of a row
    if (N <= kDirectColumns) return gemm<T>(M, N, K, LeftDirect<T>{a, K}, right, c, N, epilogue);
  gemm<T>(M, N, K, LeftStrided<T>{a, K, 1}, right, c, N, epilogue);
}

template <class T>
void linear_forward(const linear::Forward<T>& p) {
  const auto [M, K, N, relu] = p.d;
  if (M > 0 && M <= kFewRowsOfX) return few_rows<T>(p);
  // Lanes run along N and W is packed, or y^T = W x^T: lanes along M, x packed, W read as it lies, y transposed at the end.
  // In multiply-adds an element costs 5 to be packed and 12 to be transposed; lanes beyond the matrix are multiplied too.
  using W = Wide<T>;
  const auto padded = [](int64_t n) { return ceil_div(n, kLanes<W>) * kLanes<W>; };
  if (padded(M) * N * K + 12 * M * N + 5 * M * K < padded(N) * M * K + 5 * N * K) {
    W *yt = scratch<W>(Slot::transposed, M * N), *y = wide_room(p.y, M * N, Slot::wide);
    const RightStrided<T> xt{p.x, 1, K};
    const Epilogue<T> epilogue{.row_bias = p.bias, .relu = relu};
    if constexpr (kPair<T> == 1) gemm<T>(N, M, K, LeftDirect<T>{p.w, K}, xt, yt, M, epilogue);
    else gemm<T>(N, M, K, LeftStrided<T>{p.w, K, 1}, xt, yt, M, epilogue);  // W's pairs may be cut by the end of a row
    transpose_copy<W>(y, N, yt, M, N, M);
    return rounded(p.y, y, M * N);
  }
  left_rows_gemm<T>(M, N, K, p.x, RightStrided<T>{p.w, 1, K}, p.y, {.column_bias = p.bias, .relu = relu});
}

template <class T>
void linear_backward(const linear::Backward<T>& p) {
  using W = Wide<T>;
  const auto [M, K, N, relu] = p.d;
  const T* g = p.g;
  if (relu) {
    T* masked = scratch<T>(Slot::gradient, M * N);
    parallel(M, max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, N)), [&](int64_t begin, int64_t end) {
      const T *const from = p.g + begin * p.d.N, *const y = p.y + begin * p.d.N;  // not read again after each store
      T* const to = masked + begin * p.d.N;
      for_vectors<W>((end - begin) * p.d.N, [&](int64_t i, int n) {
        store_wide(to + i, relu_gradient<W>(load_wide(from + i, n), load_wide(y + i, n)), n);
      });
    });
    g = masked;
  }
  const bool few = M > 0 && M <= kFewRowsOfX;
  if (p.dx && few) few_rows_dx<T>(p, g);
  else if (p.dx) left_rows_gemm<T>(M, K, N, g, RightStrided<T>{p.w, K, 1}, p.dx, {});
  if (p.dw && few) few_rows_dw<T>(p, g);
  else if (p.dw) gemm<T>(N, K, M, LeftStrided<T>{g, 1, N}, RightStrided<T>{p.x, K, 1}, p.dw, K, {});
  if (p.db) sum_rows(g, M, N, p.db);
}

TS_INSTANTIATE_BF16(linear_forward, linear::Forward)
TS_INSTANTIATE_BF16(linear_backward, linear::Backward)
}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include "../glue/linear.h"
#include "glue.h"

namespace ts {
namespace {

// allow_tf32 concerns CUDA alone.
template <class Tensor>
Tensor linear_forward(const Tensor& input, const Tensor& weight, const Maybe<Tensor>& bias, bool relu, bool /*allow_tf32*/) {
  const linear::Dims d = linear::forward_dims(input, weight, bias, relu);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Tensor x = operand(input, c), w = operand(weight, c);
  const Maybe<Tensor> b = operand(bias, c);
  Ints sizes = sizes_of(input);
  sizes.back() = d.N;
  const Tensor y = empty(input, sizes, c);
  with_kernel_type(c, [&]<class T>(T) {
    const linear::Forward<T> p{d, in<T>(x), in<T>(w), in<T>(b), out<T>(y)};
    TS_CALL(linear_forward<T>, p);
  });
  return cast(y, type);
}

template <class Tensor>
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const Maybe<Tensor>& output, bool relu, bool need_input, bool need_weight,
                                                   bool need_bias, bool /*allow_tf32*/) {
  const linear::Dims d = linear::backward_dims(grad, input, weight, output, relu);
  const auto type = input.scalar_type(), c = kernel_type(type);
  const Tensor g = operand(grad, c), x = operand(input, c), w = operand(weight, c);
  const Maybe<Tensor> y = operand(output, c);
  const Tensor dx = empty(input, need_input ? sizes_of(input) : Ints{0}, c);
  const Tensor dw = empty(input, need_weight ? Ints{d.N, d.K} : Ints{0}, c);
  const Tensor db = empty(input, need_bias ? Ints{d.N} : Ints{0}, c);
  with_kernel_type(c, [&]<class T>(T) {
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
  m.def("linear_forward(Tensor input, Tensor weight, Tensor? bias, bool relu, bool allow_tf32=False) -> Tensor");
  m.def("linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor? output, bool relu, bool need_input, "
        "bool need_weight, bool need_bias, bool allow_tf32=False) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(torchsmith, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&ts::linear_forward<ts::Tensor>));
  m.impl("linear_backward", TORCH_BOX(&ts::linear_backward<ts::Tensor>));
}
static const ts::Registered forward{"linear_forward", "cpu", ts::kAllFloats};
static const ts::Registered backward{"linear_backward", "cpu", ts::kAllFloats};
static const ts::Direct<&ts::linear_forward<ts::View>> direct_forward{"linear_forward"};
static const ts::Direct<&ts::linear_backward<ts::View>> direct_backward{"linear_backward"};
#endif
