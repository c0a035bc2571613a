// Which instruction set the kernels use, and the registry of kernels. See isa.h.
//
// Like every file here this one is offered to the compiler once per instruction set, but all of it exists once, so it
// lives in the glue object alone and is compiled without any -m flag: it runs before we know what the machine has.
#if defined(TS_GLUE)
#include "isa.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

// As gemm_tile.h decides it.
#if defined(TS_BUILT_AVX512_BF16) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define TS_BUILT_AVX512_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ts {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512", "avx512_bf16", "avx512_amx"};
constexpr int kCount = 5;
constexpr int kNotForced = -1;

constexpr bool built(Isa isa) {
  switch (isa) {
    case Isa::base: return true;
#if defined(TS_BUILT_AVX2)
    case Isa::avx2: return true;
#endif
#if defined(TS_BUILT_AVX512)
    case Isa::avx512: return true;
#endif
#if defined(TS_BUILT_AVX512_BF16)
    case Isa::avx512_bf16: return true;
#endif
#if defined(TS_BUILT_AVX512_AMX)
    case Isa::avx512_amx: return true;
#endif
    default: return false;
  }
}

// Whether there is a matrix unit for bfloat16, and the system lets this process use it: its registers are large, so Linux
// wants to be asked before it makes room for them. The answer holds for all threads, and for children made by fork.
bool may_use_matrix_unit() {
#if defined(TS_BUILT_AVX512_AMX)
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTiles)) != (kBf16 | kTiles)) return false;
  static const bool granted = syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

// The features named here are those of the -m flags in buildtools/toolchain.py. f16c is not asked for: old compilers do
// not know the name, and every processor with AVX2 and FMA has it.
bool machine_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::base: return true;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512_bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
    case Isa::avx512_amx: return machine_has(Isa::avx512_bf16) && may_use_matrix_unit();
  }
  return false;
#else
  return isa == Isa::base;
#endif
}

bool usable(Isa isa) { return built(isa) && machine_has(isa); }

int parse(const char* name) {
  for (int i = 0; i < kCount; ++i)
    if (std::strcmp(name, kNames[i]) == 0) return i;
  return -1;
}

// TORCHSMITH_ISA, read once. A value that cannot be honoured is ignored here; torchsmith._native refuses it at import.
int from_environment() {
  static const int isa = [] {
    const char* value = std::getenv("TORCHSMITH_ISA");
    const int asked = value ? parse(value) : -1;
    return asked >= 0 && usable(static_cast<Isa>(asked)) ? asked : static_cast<int>(isa_found());
  }();
  return isa;
}

std::atomic<int> forced{kNotForced};

struct Row {
  std::string op, backend, dtypes;
};

// A function-local static, because rows arrive from the static constructors of other files, in any order.
struct Registry {
  std::mutex lock;
  std::vector<Row> rows;
};
Registry& registry() {
  static Registry* one = new Registry;  // never destroyed: a caller may still ask while the process ends
  return *one;
}

}  // namespace

Isa isa_found() {
  static const Isa best = [] {
    for (int i = kCount - 1; i > 0; --i)
      if (usable(static_cast<Isa>(i))) return static_cast<Isa>(i);
    return Isa::base;
  }();
  return best;
}

Isa isa_active() {
  const int isa = forced.load(std::memory_order_relaxed);
  return static_cast<Isa>(isa == kNotForced ? from_environment() : isa);
}

Registered::Registered(const char* op, const char* backend, const char* dtypes) {
  const std::lock_guard guard(registry().lock);
  registry().rows.push_back({op, backend, dtypes});
}

}  // namespace ts

extern "C" {

const char* ts_isa_found() { return ts::kNames[static_cast<int>(ts::isa_found())]; }

const char* ts_isa_active() { return ts::kNames[static_cast<int>(ts::isa_active())]; }

const char* ts_isa_built() {
  static const std::string names = [] {
    std::string all;
    for (int i = 0; i < ts::kCount; ++i)
      if (ts::built(static_cast<ts::Isa>(i))) all.append(all.empty() ? "" : ",").append(ts::kNames[i]);
    return all;
  }();
  return names.c_str();
}

int ts_isa_force(const char* name) {
  if (!name || !*name) {
    ts::forced.store(ts::kNotForced, std::memory_order_relaxed);
    return 0;
  }
  const int isa = ts::parse(name);
  if (isa < 0) return 1;
  if (!ts::usable(static_cast<ts::Isa>(isa))) return 2;
  ts::forced.store(isa, std::memory_order_relaxed);
  return 0;
}

int ts_threads() {
  std::uint32_t threads = 1;
  return torch_get_num_threads(&threads) == 0 ? static_cast<int>(threads) : 1;
}

const char* ts_registry() {
  thread_local std::string text;  // lives until this thread asks again
  const std::lock_guard guard(ts::registry().lock);
  auto rows = ts::registry().rows;
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return std::tie(a.op, a.backend) < std::tie(b.op, b.backend);
  });
  text.clear();
  for (const auto& row : rows) text += row.op + " " + row.backend + " " + row.dtypes + "\n";
  return text.c_str();
}

void ts_register(const char* op, const char* backend, const char* dtypes) { ts::Registered(op, backend, dtypes); }

}  // extern "C"
#endif  // TS_GLUE
