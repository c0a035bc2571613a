// The rate of multiply-adds that no kernel of ours can beat: what `torchsmith bench --report` draws as the ceiling.
#pragma once

#include <cstdint>

extern "C" {
// float32 GFLOP/s of one thread under the active instruction set, the best of many short turns over about `seconds`.
__attribute__((visibility("default"))) double ts_ceiling_fma(double seconds);
}
