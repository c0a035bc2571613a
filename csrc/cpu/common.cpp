// Scratch memory and the parallel loop: compiled once, for the baseline.
#ifdef TS_GLUE
#include "common.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <new>

namespace ts {
namespace {

struct Scratch {
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
  } buffers[static_cast<int>(Slot::count)];
  ~Scratch() {
    for (Buffer& b : buffers) std::free(b.data);
  }
};
thread_local Scratch scratch;
thread_local bool inside = false;  // torch runs a nested parallel loop serially; the kernels want to know beforehand

struct Inside {
  bool before = inside;
  Inside() { inside = true; }
  ~Inside() { inside = before; }
};

}  // namespace

void* scratch_bytes(Slot slot, size_t bytes) {
  Scratch::Buffer& b = scratch.buffers[static_cast<int>(slot)];
  if (b.bytes < bytes) {
    std::free(b.data);
    b.bytes = (bytes + bytes / 4 + 4095) / 4096 * 4096;  // a quarter more: growing shapes do not reallocate each time
    b.data = std::aligned_alloc(4096, b.bytes);
    if (b.data == nullptr) {
      b.bytes = 0;
      throw std::bad_alloc();
    }
  }
  return b.data;
}

int threads() { return inside ? 1 : static_cast<int>(torch::stable::get_num_threads()); }

void parallel_ranges(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* ctx) {
  if (n <= 0) return;
  if (n <= grain || threads() == 1) return body(ctx, 0, n);
  torch::stable::parallel_for(0, n, grain, [=](int64_t begin, int64_t end) {
    Inside guard;
    body(ctx, begin, end);
  });
}

}  // namespace ts
#endif
