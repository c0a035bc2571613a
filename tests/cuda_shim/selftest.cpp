// The shim tested: small kernels, right ones and ones with a mistake each. selftest <case> <order>
//
// A right kernel ends with "ok"; the mistakes must end in a sanitizer's report, the shim's message, or "wrong".
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/mma.cuh"

using namespace ts::cuda;

namespace {

constexpr int kThreads = 96;  // three warps

bool same(const std::vector<float>& got, const std::function<float(int)>& expected) {
  for (size_t i = 0; i < got.size(); ++i)
    if (!(got[i] == expected(static_cast<int>(i)))) return false;  // a NaN differs
  return true;
}
std::vector<float> poisoned(int n) { return std::vector<float>(n, std::nanf("")); }

// ---------------------------------------------------------------------------------------------- barriers and memory

template <bool kBarrier>
void reverse_kernel(const float* in, float* out) {
  float* tile = shared<float>();
  const int t = threadIdx.x;
  tile[t] = in[t];
  if (kBarrier) __syncthreads();
  out[t] = tile[kThreads - 1 - t];
}
template <bool kBarrier>
bool reverse() {
  std::vector<float> in(kThreads), out = poisoned(kThreads);
  for (int i = 0; i < kThreads; ++i) in[i] = i;
  launch<reverse_kernel<kBarrier>>({dim3(1), dim3(kThreads), kThreads * 4}, static_cast<const float*>(in.data()), out.data());
  return same(out, [](int i) { return kThreads - 1 - i; });
}

// Each step overwrites what the step before reads: the second barrier is between reading and the next writing.
template <bool kBarrier>
void steps_kernel(float* out) {
  float* tile = shared<float>();
  const int t = threadIdx.x;
  float sum = 0;
  for (int step = 0; step < 3; ++step) {
    tile[t] = step * kThreads + t;
    __syncthreads();
    sum += tile[(t + 1) % kThreads];
    if (kBarrier) __syncthreads();
  }
  out[t] = sum;
}
template <bool kBarrier>
bool steps() {
  auto out = poisoned(kThreads);
  launch<steps_kernel<kBarrier>>({dim3(1), dim3(kThreads), kThreads * 4}, out.data());
  return same(out, [](int i) { return 3 * kThreads + 3 * ((i + 1) % kThreads); });
}

void fill_kernel(float* out, int n, bool in_shared) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (in_shared) shared<float>()[i] = 1;
  else if (i < n) out[i] = i;
}
bool fill(int written, int size) {
  auto out = poisoned(size);
  launch<fill_kernel>({dim3(2), dim3(kThreads)}, out.data(), written, false);
  return same(out, [](int i) { return i; });
}
bool shared_overrun() {
  launch<fill_kernel>({dim3(1), dim3(kThreads), kThreads * 4 - 4}, nullptr, 0, true);
  return true;
}
void misaligned_kernel(const float* in, float* out) { store<float, 4>(out, load<float, 4>(in + 1)); }
bool misaligned() {
  alignas(16) float in[8] = {}, out[4];
  launch<misaligned_kernel>({dim3(1), dim3(1)}, static_cast<const float*>(in), static_cast<float*>(out));
  return true;
}
void stale_kernel(float* out) {
  float* tile = shared<float>();
  if (blockIdx.x == 0) tile[threadIdx.x] = 1;
  __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = tile[threadIdx.x];
}
bool stale_shared() {  // a second block does not find what the first one left
  auto out = poisoned(2 * kThreads);
  launch<stale_kernel>({dim3(2), dim3(kThreads), kThreads * 4}, out.data());
  return same(out, [](int) { return 1; });
}

// ---------------------------------------------------------------------------------------------- who waits for whom

void divergent_barrier_kernel() {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
void exited_kernel() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}
void half_warp_kernel() {
  if (threadIdx.x < 16) __syncwarp();
}
void masks_kernel() { __syncwarp(threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffffffffu); }
void unnamed_kernel() { __syncwarp(0xfffffffeu); }
void outside_source_kernel() {
  if (threadIdx.x % 32 < 16) __shfl_sync(0x0000ffffu, 1.f, 20);
}
void deadlock_kernel() {
  if (threadIdx.x == 32) __syncwarp(3u);  // lane 1 of that warp waits for it at the barrier
  else __syncthreads();
}
void not_cooperative_kernel() { grid_sync(); }
void empty_kernel() {}
template <auto kernel>
bool stops() {
  launch<kernel>({dim3(1), dim3(kThreads)});
  return true;
}
bool no_such_grid() {
  launch<empty_kernel>({dim3(1, 70000), dim3(kThreads)});
  return true;
}

// ---------------------------------------------------------------------------------------------- warps

void warp_kernel(float* out) {
  const int lane = threadIdx.x % 32;
  float sum = lane;
  for (int with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, with);
  const unsigned odd = __ballot_sync(kWholeWarp, lane % 2 == 1);
  float half = lane;  // two halves of a warp at once
  const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  for (int with = 8; with > 0; with /= 2) half += __shfl_xor_sync(mask, half, with);
  const bool any = __any_sync(mask, lane == 3), all = __all_sync(mask, lane < 16);
  const float down = __shfl_down_sync(kWholeWarp, float(lane), 1), up = __shfl_up_sync(kWholeWarp, float(lane), 1);
  const bool right = sum == 496 && odd == 0xaaaaaaaau && half == (lane < 16 ? 120 : 376) && any == (lane < 16) &&
                     all == (lane < 16) && down == (lane < 31 ? lane + 1 : 31) && up == (lane > 0 ? lane - 1 : 0);
  out[threadIdx.x] = right;
}
bool warps() {
  auto out = poisoned(kThreads);
  launch<warp_kernel>({dim3(1), dim3(kThreads)}, out.data());
  return same(out, [](int) { return 1; });
}

// ---------------------------------------------------------------------------------------------- asynchronous copies

template <int kPending, bool kCommitted>
void copy_kernel(const float* in, float* out) {
  float* tile = shared<float>();
  const int t = threadIdx.x;
  for (int stage = 0; stage < 2; ++stage) {
    cp_async16(tile + (stage * 32 + t) * 4, in + (stage * 32 + t) * 4, stage == 1 && t == 31 ? 8 : 16);
    if (kCommitted) cp_async_commit();
  }
  cp_async_wait<kPending>();
  __syncthreads();
  for (int i = 0; i < 8; ++i) out[i * 32 + t] = tile[i * 32 + t];
}
template <int kPending, bool kCommitted = true>
bool copies() {
  alignas(16) static float in[256];
  for (int i = 0; i < 256; ++i) in[i] = i;
  auto out = poisoned(256);
  launch<copy_kernel<kPending, kCommitted>>({dim3(1), dim3(32), 1024}, static_cast<const float*>(in), out.data());
  return same(out, [](int i) { return i < 254 ? i : 0; });
}

// ---------------------------------------------------------------------------------------------- tensor cores

template <class T>
T number(int v) {
  if constexpr (sizeof(T) == 4) return v;
  else return narrow<T>(v);
}
// c[16, 8] = a[16, k] b[k, 8], fragments gathered element by element from the layout in mma.cuh; kWrong exchanges two.
template <class T, bool kWrong>
void mma_kernel(const float* a, const float* b, float* c) {
  constexpr int kWord = 4 / sizeof(T), K = 8 * kWord;
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t fa[4], fb[2];
  const auto word = [&](const float* row) {
    T pair[kWord];
    for (int e = 0; e < kWord; ++e) pair[e] = number<T>(static_cast<int>(row[e]));
    uint32_t w;
    std::memcpy(&w, pair, 4);
    return w;
  };
  for (int r = 0; r < 4; ++r) fa[kWrong ? (r ^ 1) : r] = word(a + (g + 8 * (r % 2)) * K + (t + 4 * (r / 2)) * kWord);
  for (int r = 0; r < 2; ++r) fb[r] = word(b + g * K + (t + 4 * r) * kWord);  // b is given column by column
  float fc[4] = {};
  mma<T>(fc, fa, fb);
  for (int r = 0; r < 4; ++r) c[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = fc[r];
}
template <class T, bool kWrong = false>
bool products() {
  constexpr int K = 32 / sizeof(T);
  std::vector<float> a(16 * K), b(8 * K);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<int>(i * 7 % 13) - 6;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<int>(i * 5 % 11) - 5;
  auto c = poisoned(16 * 8);
  launch<mma_kernel<T, kWrong>>({dim3(1), dim3(32)}, static_cast<const float*>(a.data()), static_cast<const float*>(b.data()), c.data());
  return same(c, [&](int i) {
    float sum = 0;
    for (int k = 0; k < K; ++k) sum += a[i / 8 * K + k] * b[i % 8 * K + k];
    return sum;
  });
}
// ldmatrix of a 16 x 16 tile, straight and transposed, against the definition.
void ldmatrix_kernel(float* out) {
  half* tile = shared<half>();
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) tile[i] = narrow<half>(static_cast<float>(i));
  __syncthreads();
  uint32_t straight[4], transposed[4];
  ldmatrix_x4(straight, tile + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix_x4_trans(transposed, tile + lane % 16 * 16 + lane / 16 * 8);
  bool right = true;
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < 2; ++e) {
      const int row0 = i % 2 * 8, column0 = i / 2 * 8, r = lane / 4, c = lane % 4 * 2 + e;
      const half s{static_cast<uint16_t>(straight[i] >> 16 * e)}, x{static_cast<uint16_t>(transposed[i] >> 16 * e)};
      right &= widen(s) == (row0 + r) * 16 + column0 + c && widen(x) == (row0 + c) * 16 + column0 + r;
    }
  out[lane] = right;
}
bool matrices() {
  auto out = poisoned(32);
  launch<ldmatrix_kernel>({dim3(1), dim3(32), 512}, out.data());
  return same(out, [](int) { return 1; });
}
bool tf32() {  // ties away from zero, 10 bits kept
  const auto rounded = [](float f) { return std::bit_cast<float>(to_tf32(f)); };
  const float ulp = 0x1p-10f;
  return rounded(1 + ulp / 2) == 1 + ulp && rounded(1 + ulp * 0.49f) == 1 && rounded(-1 - ulp / 2) == -1 - ulp &&
         std::isnan(rounded(std::nanf(""))) && std::isinf(rounded(INFINITY));
}

// ---------------------------------------------------------------------------------------------- a cooperative grid

template <bool kBarrier>
void grid_kernel(float* cells, float* out) {
  const int i = blockIdx.x * kThreads + threadIdx.x, n = gridDim.x * kThreads;
  cells[i] = i;
  if (kBarrier) grid_sync();
  out[i] = cells[n - 1 - i];
}
template <bool kBarrier>
bool grids() {
  auto cells = poisoned(3 * kThreads), out = poisoned(3 * kThreads);
  launch<grid_kernel<kBarrier>>({dim3(3), dim3(kThreads), 0, {}, true}, cells.data(), out.data());
  return same(out, [](int i) { return 3 * kThreads - 1 - i; });
}

const std::map<std::string, std::function<bool()>> kCases = {
    {"barrier", reverse<true>},
    {"barrier-removed", reverse<false>},
    {"second-barrier", steps<true>},
    {"second-barrier-removed", steps<false>},
    {"all-written", [] { return fill(2 * kThreads, 2 * kThreads); }},
    {"cell-not-written", [] { return fill(2 * kThreads - 1, 2 * kThreads); }},
    {"store-past-the-end", [] { return fill(2 * kThreads, 2 * kThreads - 1); }},
    {"store-past-shared", shared_overrun},
    {"misaligned-vector", misaligned},
    {"shared-of-another-block", stale_shared},
    {"divergent-barrier", stops<divergent_barrier_kernel>},
    {"barrier-after-exit", stops<exited_kernel>},
    {"half-warp-at-whole-mask", stops<half_warp_kernel>},
    {"two-masks", stops<masks_kernel>},
    {"mask-without-self", stops<unnamed_kernel>},
    {"shuffle-from-outside", stops<outside_source_kernel>},
    {"deadlock", stops<deadlock_kernel>},
    {"grid-barrier-alone", stops<not_cooperative_kernel>},
    {"grid-too-large", no_such_grid},
    {"shuffles-and-votes", warps},
    {"copies", copies<0>},
    {"copy-read-early", copies<1>},
    {"copy-not-committed", copies<0, false>},
    {"mma-tf32", products<float>},
    {"mma-half", products<half>},
    {"mma-bfloat16", products<bfloat16>},
    {"mma-fragments-exchanged", products<half, true>},
    {"ldmatrix", matrices},
    {"tf32-rounding", tf32},
    {"cooperative-grid", grids<true>},
    {"cooperative-grid-without-barrier", grids<false>},
};

}  // namespace

int main(int argc, char** argv) {
  const auto found = argc == 3 ? kCases.find(argv[1]) : kCases.end();
  if (found == kCases.end()) {
    for (const auto& [name, run] : kCases) std::puts(name.c_str());
    return 2;
  }
  shim::settings.order = std::atoi(argv[2]);
  std::puts(found->second() ? "ok" : "wrong");
  return 0;
}
