// A fiber: a stack with a guard page below it, and the switch from one stack to another. About 5 ns a switch; with
// AddressSanitizer, which must be told of each, about 25.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {

// A kernel's locals, with AddressSanitizer's red zones around each array: 20 KB were seen.
constexpr size_t kStackBytes = 128 * 1024;

class Stack {
 public:
  Stack() {
    const size_t page = sysconf(_SC_PAGESIZE);
    void* p = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE) != 0) {
      std::perror("cuda shim: no memory for a fiber's stack");
      std::abort();
    }
    bottom_ = static_cast<char*>(p) + page;
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* bottom() const { return bottom_; }
  char* top() const { return bottom_ + kStackBytes; }

 private:
  char* bottom_;  // never unmapped: stacks are kept for the next launch
};

// Where a suspended stack goes on, and what the sanitizer knows of it.
struct Context {
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context;
#endif
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};

#if defined(__x86_64__)
// Saves the registers a call preserves on the stack that is left, and takes up those of the stack that is entered.
__attribute__((naked, noinline)) static void switch_stack(void** /*left*/, void* /*entered*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
      "movq %rsp, (%rdi); movq %rsi, %rsp\n\t"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n\t"
      "ret");
}
#endif

inline void prepare(Context& c, const Stack& stack, void (*entry)()) {
  c.fake_stack = nullptr;
  c.bottom = stack.bottom();
  c.size = kStackBytes;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stack.top());
  *--top = nullptr;  // the entry starts as after a call: 8 bytes off a 16-byte boundary
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  c.sp = top;
#else
  getcontext(&c.context);
  c.context.uc_stack.ss_sp = stack.bottom();
  c.context.uc_stack.ss_size = kStackBytes;
  c.context.uc_link = nullptr;
  makecontext(&c.context, entry, 0);
#endif
}

// Called first thing on a stack just entered; `left` is the stack that was left, if its bounds are not known yet.
inline void entered([[maybe_unused]] Context& now, [[maybe_unused]] Context* left) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(now.fake_stack, left ? &left->bottom : nullptr, left ? &left->size : nullptr);
#endif
}

// Goes from `from` to `to`. `last`: `from` will never be entered again.
inline void switch_to(Context& from, Context& to, [[maybe_unused]] bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(__x86_64__)
  switch_stack(&from.sp, to.sp);
#else
  swapcontext(&from.context, &to.context);
#endif
  entered(from, nullptr);
}

}  // namespace shim
