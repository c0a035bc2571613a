// The launch plans of the GEMMs, over many shapes and devices: tiles and shares cover the product, once each, and fit the device.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cuda/linear.cuh"

using namespace ts::cuda;

namespace {

void expect(bool holds, const char* what, const GemmPlan& p, const Device& d) {
  if (holds) return;
  std::printf("%s: M %ld N %ld K %ld, sm %d with %d multiprocessors: tile %d x %d, %ld shares of %ld\n", what, long(p.M),
              long(p.N), long(p.K), d.sm, d.sms, p.bm, p.bn, long(p.shares), long(p.share));
  std::exit(1);
}

template <class Math>
void check(int64_t M, int64_t N, int64_t K, bool row_sums, const Device& d) {
  using T = typename Math::Element;
  const GemmPlan p = plan_gemm<Math>(M, N, K, row_sums, d);
  const auto covers = [](int64_t parts, int64_t size, int64_t n) { return parts * size >= n && (parts - 1) * size < n; };
  expect(M == 0 || covers(p.tiles_m, p.bm, M), "tiles do not cover the rows", p, d);
  expect(N == 0 ? p.tiles_n == 1 : covers(p.tiles_n, p.bn, N), "tiles do not cover the columns", p, d);
  expect(K == 0 ? p.shares == 1 : covers(p.shares, p.share, K), "shares do not cover k", p, d);
  expect(p.share % p.bk == 0, "a share ends inside a step", p, d);
  expect(p.shares <= 65535, "the grid's second dimension ends at 65535", p, d);
  expect(p.shares == 1 || p.share >= kStepsOfAShare * p.bk, "a share is too short to pay", p, d);
  expect(p.shares == 1 || p.tiles_m * p.tiles_n * p.shares <= d.sms, "more shares than multiprocessors", p, d);
  expect(p.workspace == (p.shares == 1 ? 0 : int64_t(p.shares * (M * N + (row_sums ? M : 0)) * sizeof(SumOf<T>))), "workspace", p, d);
  expect(p.bm != kLarge || p.tiles_m * p.tiles_n >= d.sms, "large tiles leave multiprocessors idle", p, d);
  expect(p.flops == 2 * M * N * K && p.bytes == int64_t((M * K + N * K + M * N) * sizeof(T)), "flops or bytes", p, d);
}

template <class T, bool kA, bool kB, template <class> class Math>
constexpr size_t shared_bytes() {
  using Big = Tile<T, kLarge, kLarge, 2, 4, Math<T>::kStages>;
  return GemmLayout<Math<T>, Big, Strided<T, kA>, Strided<T, kB>>::kBytes;
}
// Against the machine's own division, at the numbers where a rounding would show.
void check_division() {
  const int64_t most = INT64_MAX;
  for (int64_t d : {int64_t(1), int64_t(2), int64_t(3), int64_t(5), int64_t(7), int64_t(28), int64_t(641), int64_t(65536),
                    int64_t(65537), (int64_t(1) << 31) - 1, int64_t(1) << 31, (int64_t(1) << 32) + 1, most / 3, most - 1, most})
    for (int64_t q : {int64_t(0), int64_t(1), int64_t(2), int64_t(1000), most / d / 2, most / d - 1, most / d})
      for (int64_t near : {-1, 0, 1}) {
        if (q < 0 || (near > 0 && q * d == most) || q * d + near < 0) continue;
        const int64_t n = q * d + near;
        if (Divisor(d).divide(n) == n / d) continue;
        std::printf("%ld / %ld gives %ld\n", long(n), long(d), long(Divisor(d).divide(n)));
        std::exit(1);
      }
}

// What a block of Turing may have, the least of all devices.
constexpr size_t kLeast = 64 * 1024;
static_assert(shared_bytes<float, true, true, Simt>() <= kLeast && shared_bytes<float, true, true, Mma>() <= kLeast);
static_assert(shared_bytes<float, true, false, Mma>() <= kLeast && shared_bytes<float, false, false, Mma>() <= kLeast);
static_assert(shared_bytes<half, true, true, Mma>() <= kLeast && shared_bytes<half, false, false, Mma>() <= kLeast);

}  // namespace

int main() {
  check_division();
  long plans = 0;
  const int64_t sizes[] = {0, 1, 3, 63, 64, 65, 128, 129, 500, 1024, 4097, 100000, int64_t(1) << 31};
  for (const Device& d : {Device{75, 40, 65536}, Device{80, 1, 166912}, Device{90, 132, 232448}, Device{120, 188, 101376}})
    for (const int64_t M : sizes)
      for (const int64_t N : sizes)
        for (const int64_t K : sizes)
          for (const bool sums : {false, true}) {
            check<Simt<float>>(M, N, K, sums, d);
            check<Simt<double>>(M, N, K, sums, d);
            check<Mma<half>>(M, N, K, sums, d);
            check<Mma<float>>(M, N, K, sums, d);
            plans += 4;
          }
  std::printf("%ld plans hold\n", plans);
}
