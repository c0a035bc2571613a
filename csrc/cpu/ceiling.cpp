// acc_i = acc_i * a + b, for kChains independent accumulators that stay in registers: two flops a lane, nothing else.
//
// An FMA takes 4-5 cycles and two start each cycle, so at least ten must be in flight. A compiler that sees accumulators
// with equal values computes one for all of them (our first probe fell for that); so each passes through an empty asm
// in every turn, after which the compiler knows nothing about its value, but must keep it in a register.
#include "ceiling.h"

#include "common.h"
#include "simd.h"

namespace ts {
template <class T>
struct CeilingArgs {
  int64_t turns;
  T* sink;  // one value of each chain's sum, so that the work has a reader
};
TS_DECLARE(fma_chains, CeilingArgs)
}  // namespace ts

#if defined(__x86_64__) && defined(__AVX512F__)
#define TS_REGISTER "+v"
#elif defined(__x86_64__)
#define TS_REGISTER "+x"
#elif defined(__aarch64__)
#define TS_REGISTER "+w"
#else
#define TS_REGISTER "+m"  // slower than registers, but never too high
#endif

namespace ts::TS_ISA {

constexpr int kChains = 12;  // 12 accumulators and two constants fit the 16 registers of SSE and AVX2

template <class T>
void fma_chains(const CeilingArgs<T>& args) {
  // The fixed point b / (1 - a) = 1 attracts: no overflow, no denormal, however long it runs.
  const Vec<T> a = splat<T>(T(0.5)), b = splat<T>(T(0.5));
  Vec<T> acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = splat<T>(T(i));
  for (int64_t turn = 0; turn < args.turns; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      Vec<T> next = acc[i] * a + b;  // named: an array's element in an asm would pin the whole array to memory
      asm volatile("" : TS_REGISTER(next));
      acc[i] = next;
    }
  }
  for (int i = 0; i < kChains; ++i) *args.sink += sum_lanes<T>(acc[i]);
}

TS_INSTANTIATE(fma_chains, CeilingArgs)

// What one turn does, which the glue must know of every set.
template <class T>
int64_t flops_of_a_turn() {
  return int64_t{2} * kChains * kLanes<T>;
}
template int64_t flops_of_a_turn<float>();

}  // namespace ts::TS_ISA

#ifdef TS_GLUE
#include <ctime>

namespace ts {
#if defined(__x86_64__)
namespace avx2 {
template <class T>
int64_t flops_of_a_turn();
}
namespace avx512 {
template <class T>
int64_t flops_of_a_turn();
}
#endif
namespace {

int64_t flops_of_a_turn() {
#if defined(__x86_64__)
  if (isa_active() >= Isa::avx512) return avx512::flops_of_a_turn<float>();
  if (isa_active() == Isa::avx2) return avx2::flops_of_a_turn<float>();
#endif
  return base::flops_of_a_turn<float>();
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace
}  // namespace ts

double ts_ceiling_fma(double seconds) {
  constexpr int64_t kTurns = 200000;  // about 0.5 ms: long beside the clock, short beside what interrupts
  float sink = 0;
  const ts::CeilingArgs<float> args{kTurns, &sink};
  const double flops = static_cast<double>(kTurns) * static_cast<double>(ts::flops_of_a_turn());
  double best = 0;
  const double start = ts::now();
  do {
    const double before = ts::now();
    TS_CALL(fma_chains<float>, args);
    const double rate = flops / (ts::now() - before) * 1e-9;
    if (rate > best) best = rate;
  } while (ts::now() - start < seconds);
  return best;
}
#endif
