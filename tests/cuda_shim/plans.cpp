// The launch plans, over many shapes and devices: the tiles and shares of a product, the blocks of a recurrent layer's steps
// cover their work, once each, and fit the device.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cuda/linear.cuh"
#include "../../csrc/cuda/steps.cuh"

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

// The cells (batch row, hidden unit) that the threads of a recurrent layer's steps take, as the kernels share them out.
template <class T>
void check_steps(int64_t H, int64_t B, int64_t D, int gates, bool backward, const Device& d) {
  using W = SumOf<T>;
  const StepsPlan p = plan_steps<T>(H, B, D, gates, backward, d);
  const auto expect = [&](bool holds, const char* what) {
    if (holds) return;
    std::printf("%s: %s of %ld hidden units, %ld rows, %ld directions, %d gates of %zu bytes, sm %d with %d multiprocessors: ",
                what, backward ? "backward" : "forward", long(H), long(B), long(D), gates, sizeof(T), d.sm, d.sms);
    std::printf("%ld blocks of %d threads, %d units of a slice of %d, %d groups, %zu bytes\n", long(p.blocks), p.threads,
                p.units, p.slice, p.groups, p.shared);
    std::exit(1);
  };
  expect(p.groups > 0 && p.units > 0 && p.units <= p.slice, "no threads");
  expect(p.threads % kWarpSize == 0 && p.threads <= kStepsThreads && p.threads >= p.units * p.groups, "threads");
  expect(p.shared <= size_t(d.shared_limit), "more shared memory than a block may have");
  expect(!p.together || p.blocks <= d.sms, "a cooperative grid that does not run at once");
  expect(p.together || p.blocks <= 65535, "a grid of blocks of batch rows");
  expect(p.together || p.resident, "blocks of batch rows keep their weights");
  expect(p.depth >= (backward ? gates * H : H) && p.depth % kPerChunk<W> == 0 && kTileDeep % kPerChunk<W> == 0, "depth");
  expect(p.tile == p.batch() * (p.together ? kTileDeep : p.depth * (backward ? 1 : 2)), "the tile");
  const size_t weights = size_t(p.depth) * (backward ? 1 : gates) * p.slice * sizeof(T);
  expect(p.shared == p.tile * sizeof(W) + (p.resident ? weights : 0), "shared memory that nothing lies in");
  std::vector<unsigned char> taken(B * H, 0);
  for (int64_t block = 0; block < p.blocks; ++block) {
    const int64_t j0 = p.together ? block * p.slice : 0, begin = p.together ? 0 : block * p.batch();
    const int64_t mine = H - j0 < p.slice ? H - j0 : p.slice;
    const int64_t end = p.together || begin + p.batch() > B ? B : begin + p.batch();
    expect(mine > 0 && end > begin, "a block with nothing to do");
    for (int thread = 0; thread < p.threads; ++thread) {
      const int unit = thread % p.units, group = thread / p.units;
      if (group >= p.groups) continue;
      for (int64_t b0 = begin; b0 < end; b0 += p.batch())
        for (int64_t u = unit; u < mine; u += p.units)
          for (int64_t r = 0; r < kRowsOfThread; ++r) {
            const int64_t b = b0 + group * kRowsOfThread + r;
            if (b < end) ++taken[b * H + j0 + u];
          }
    }
  }
  for (const unsigned char times : taken) expect(times == 1, "a cell that is not taken exactly once");
}

long check_all_steps(const Device& d) {
  long plans = 0;
  for (const int64_t H : {1, 2, 7, 8, 31, 32, 33, 100, 127, 128, 129, 257, 512, 1100})
    for (const int64_t B : {1, 3, 4, 5, 16, 33, 130})
      for (const int64_t D : {1, 2})
        for (const int gates : {1, 3})
          for (const bool backward : {false, true}) {
            check_steps<float>(H, B, D, gates, backward, d);
            check_steps<double>(H, B, D, gates, backward, d);
            check_steps<half>(H, B, D, gates, backward, d);
            plans += 3;
          }
  return plans;
}

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
  for (const Device& d : {Device{75, 40, 65536}, Device{80, 1, 166912}, Device{86, 28, 101376}, Device{90, 132, 232448}})
    plans += check_all_steps(d);
  std::printf("%ld plans hold\n", plans);
}
