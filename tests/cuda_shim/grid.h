// Runs a kernel's threads as fibers, block after block (a cooperative launch: all blocks together).
//
// A thread runs until it waits. Barriers, shuffles, votes and mma.sync are one mechanism, the rendezvous: a set of threads
// named beforehand, each bringing an argument; the last to arrive computes what all came for. Whoever can never be met
// (a thread that has exited, waits elsewhere, or names another set) ends the program with a message.
#pragma once

#include <cstdarg>
#include <cstring>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "fiber.h"

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace shim {

using Site = std::source_location;
constexpr unsigned kWarp = 32;

// What the machine pretends to be. Tests set it: launch plans depend on it.
struct Settings {
  int order = 0;             // 0 ascending, 1 descending, 2 random
  uint64_t seed = 1;         // of the random order
  int sm = 90;               // compute capability, 10 * major + minor
  int sms = 132;             // multiprocessors
  int shared_limit = 232448; // bytes of shared memory a block may ask for
};
inline Settings settings;

enum class State { ready, at_warp, at_block, at_grid, exited };

struct Copy {  // a cp.async under way
  void* to;
  const void* from;
  int bytes, valid;
};

struct Block;
struct Thread {
  Context context;
  std::unique_ptr<Stack> stack = std::make_unique<Stack>();
  State state;
  uint3 index;
  unsigned number;  // in the block
  Block* block;
  // What it waits for.
  unsigned mask;
  void (*meeting)(void** arguments, unsigned mask);
  void* argument;
  Site site;
  // cp.async: copies of the open group, then closed groups, oldest first.
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

struct Block {
  uint3 index;
  std::vector<Thread*> threads;
  unsigned char* shared = nullptr;
  unsigned at_barrier = 0, exited = 0;
  std::vector<unsigned> waiting;  // for each warp, the lanes at a rendezvous
};

struct Grid {
  const char* kernel = "";
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  const std::function<void()>* body = nullptr;
  std::vector<Block> blocks;  // those that run now
  unsigned at_grid = 0;
  Context scheduler;
  Thread* current = nullptr;
};
inline Grid running;

inline Thread& self() { return *running.current; }

[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
  std::fprintf(stderr, "cuda shim: %s", running.kernel);
  if (running.current) {
    const uint3 b = self().block->index, t = self().index;
    std::fprintf(stderr, ", block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
  }
  std::fputs(": ", stderr);
  va_list list;
  va_start(list, format);
  std::vfprintf(stderr, format, list);
  va_end(list);
  std::fputc('\n', stderr);
  std::abort();
}

inline std::string where(const Site& s) {
  const char* slash = std::strrchr(s.file_name(), '/');
  return std::string(slash ? slash + 1 : s.file_name()) + ":" + std::to_string(s.line());
}

inline void wait(State state, const Site& site) {
  Thread& t = self();
  t.state = state;
  t.site = site;
  switch_to(t.context, running.scheduler);
}

// ---------------------------------------------------------------------------------------------- rendezvous of a warp

// The calling lane brings `argument`; when every lane of `mask` has come to the same place, meeting(arguments, mask) runs
// once, where arguments[i] is lane i's.
inline void meet(unsigned mask, void (*meeting)(void**, unsigned), void* argument, const Site& site) {
  Thread& t = self();
  Block& b = *t.block;
  const unsigned lane = t.number % kWarp, warp = t.number / kWarp, first = warp * kWarp;
  if (!(mask >> lane & 1)) fail("%s: the mask %08x does not name the calling lane %u", where(site).c_str(), mask, lane);
  const unsigned lanes = b.threads.size() - first;
  if (lanes < kWarp && mask >> lanes) fail("%s: the mask %08x names lanes the block does not have", where(site).c_str(), mask);
  for (unsigned rest = b.exited ? mask : 0; rest; rest &= rest - 1) {
    const unsigned other = __builtin_ctz(rest);
    if (b.threads[first + other]->state == State::exited)
      fail("%s: waits for lane %u, which has exited", where(site).c_str(), other);
  }
  t.mask = mask;
  t.meeting = meeting;
  t.argument = argument;
  t.site = site;
  unsigned& waiting = b.waiting[warp];
  waiting |= 1u << lane;
  if ((waiting & mask) == mask) {
    void* arguments[kWarp] = {};
    Thread* const* const threads = b.threads.data() + first;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const unsigned i = __builtin_ctz(rest);
      Thread& other = *threads[i];
      if (other.mask != mask || other.meeting != meeting || other.site.line() != site.line() ||
          other.site.column() != site.column())
        fail("divergent warp: at %s with mask %08x, but lane %u is at %s with mask %08x", where(site).c_str(), mask, i,
             where(other.site).c_str(), other.mask);
      arguments[i] = other.argument;
    }
    meeting(arguments, mask);
    waiting &= ~mask;
    for (unsigned rest = mask; rest; rest &= rest - 1) threads[__builtin_ctz(rest)]->state = State::ready;
    switch_to(t.context, running.scheduler);  // so that threads go on in the order under test
  } else {
    wait(State::at_warp, site);
  }
}

// ---------------------------------------------------------------------------------------------- barriers

inline void block_barrier(const Site& site) {
  Thread& t = self();
  Block& b = *t.block;
  if (b.exited) fail("%s: %u threads of the block have exited before this barrier", where(site).c_str(), b.exited);
  t.state = State::at_block;
  t.site = site;
  if (++b.at_barrier == b.threads.size()) {
    Thread* const* const threads = b.threads.data();
    for (unsigned i = 0; i < b.at_barrier; ++i) {
      const Site& first = threads[i / kWarp * kWarp]->site;
      if (threads[i]->site.line() != first.line())
        fail("divergent barrier: lanes of one warp wait at %s and at %s", where(first).c_str(), where(threads[i]->site).c_str());
      threads[i]->state = State::ready;
    }
    b.at_barrier = 0;
  }
  switch_to(t.context, running.scheduler);
}

inline void grid_barrier(const Site& site) {
  if (!running.cooperative) fail("%s: grid barrier in a launch that is not cooperative", where(site).c_str());
  Thread& t = self();
  t.state = State::at_grid;
  t.site = site;
  if (++running.at_grid == running.blocks.size() * running.blocks[0].threads.size()) {
    running.at_grid = 0;
    for (Block& b : running.blocks)
      for (Thread* other : b.threads) other->state = State::ready;
  }
  switch_to(t.context, running.scheduler);
}

// ---------------------------------------------------------------------------------------------- the scheduler

inline void thread_main() {
  Thread& t = self();
  entered(t.context, &running.scheduler);
  (*running.body)();
  for (const auto& group : t.groups)
    if (!group.empty()) fail("exits with a cp.async it never waited for");
  if (!t.open.empty()) fail("exits with a cp.async it never committed");
  Block& b = *t.block;
  t.state = State::exited;
  ++b.exited;
  if (b.at_barrier) fail("exits while %u threads of its block wait at a barrier", b.at_barrier);
  const unsigned warp = t.number / kWarp, lane = t.number % kWarp;
  for (unsigned rest = b.waiting[warp]; rest; rest &= rest - 1) {
    const Thread& other = *b.threads[warp * kWarp + __builtin_ctz(rest)];
    if (other.mask >> lane & 1) fail("exits while lane %d waits for it at %s", __builtin_ctz(rest), where(other.site).c_str());
  }
  switch_to(t.context, running.scheduler, true);
}

inline uint64_t random_number() {  // xorshift64
  uint64_t& s = settings.seed;
  s ^= s << 13, s ^= s >> 7, s ^= s << 17;
  return s;
}

// 0..n-1 in the order under test.
inline void ordered(std::vector<unsigned>& order, unsigned n) {
  order.resize(n);
  unsigned* const at = order.data();
  for (unsigned i = 0; i < n; ++i) at[i] = settings.order == 1 ? n - 1 - i : i;
  if (settings.order != 2) return;
  for (unsigned i = n; i > 1; --i) {
    const unsigned j = (random_number() >> 32) * i >> 32, other = at[j];  // of i numbers one; a division would take longer
    at[j] = at[i - 1];
    at[i - 1] = other;
  }
}

// Lets a warp run until none of its threads can go on. Returns whether any ran.
inline bool run_warp(Block& b, unsigned warp, std::vector<unsigned>& order) {
  bool any = false;
  const unsigned first = warp * kWarp, lanes = std::min<size_t>(kWarp, b.threads.size() - first);
  Thread* const* const threads = b.threads.data() + first;
  for (bool more = true; more; any |= more) {
    more = false;
    ordered(order, lanes);
    for (unsigned i = 0; i < lanes; ++i) {
      Thread& t = *threads[order.data()[i]];
      if (t.state != State::ready) continue;
      running.current = &t;
      switch_to(running.scheduler, t.context);
      more = true;
    }
  }
  return any;
}

[[noreturn]] inline void deadlock() {
  std::string message = "deadlock; waiting threads:";
  int shown = 0;
  for (const Block& b : running.blocks)
    for (const Thread* t : b.threads)
      if (t->state != State::exited && shown++ < 8)
        message += " block " + std::to_string(b.index.x) + " thread " + std::to_string(t->number) + " at " + where(t->site) + ";";
  running.current = nullptr;
  fail("%s", message.c_str());
}

inline std::vector<std::unique_ptr<Thread>> pool;  // threads with their stacks, kept between launches

inline void run_blocks(unsigned long begin, unsigned long end, const std::vector<unsigned>* chosen) {
  const dim3 g = running.grid, d = running.block;
  const unsigned threads = d.x * d.y * d.z;
  running.blocks.assign(end - begin, {});
  while (pool.size() < (end - begin) * threads) pool.push_back(std::make_unique<Thread>());
  size_t next = 0;
  for (Block& b : running.blocks) {
    const unsigned long i = chosen ? (*chosen)[begin + (&b - running.blocks.data())] : begin + (&b - running.blocks.data());
    b.index = {unsigned(i % g.x), unsigned(i / g.x % g.y), unsigned(i / g.x / g.y)};
    // Exactly as large as asked for, so that the address sanitizer sees a step past its end.
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, running.shared_bytes) != 0) fail("no memory for %zu bytes of shared memory", running.shared_bytes);
    b.shared = static_cast<unsigned char*>(memory);
    std::memset(b.shared, 0xff, running.shared_bytes);  // NaN in every floating-point type
    b.waiting.assign((threads + kWarp - 1) / kWarp, 0);
    for (unsigned n = 0; n < threads; ++n) {
      Thread& t = *pool[next++];
      t.state = State::ready;
      t.number = n;
      t.index = {n % d.x, n / d.x % d.y, n / d.x / d.y};
      t.block = &b;
      t.open.clear();
      t.groups.clear();
      prepare(t.context, *t.stack, thread_main);
      b.threads.push_back(&t);
    }
  }
  std::vector<unsigned> blocks, warps, lanes;
  for (size_t left = running.blocks.size(); left > 0;) {
    bool progress = false;
    ordered(blocks, running.blocks.size());
    for (const unsigned i : blocks) {
      Block& b = running.blocks[i];
      if (b.exited == threads) continue;
      ordered(warps, b.waiting.size());
      for (const unsigned w : warps) progress |= run_warp(b, w, lanes);
      left -= b.exited == threads;
    }
    if (!progress && left > 0) deadlock();
  }
  for (Block& b : running.blocks) std::free(b.shared);
}

inline void run(const char* kernel, dim3 grid, dim3 block, size_t shared, bool cooperative, const std::function<void()>& body) {
  running.kernel = kernel;
  running.current = nullptr;
  const unsigned long blocks = static_cast<unsigned long>(grid.x) * grid.y * grid.z;
  const unsigned long threads = static_cast<unsigned long>(block.x) * block.y * block.z;
  if (blocks == 0 || threads == 0 || threads > 1024 || block.z > 64 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    fail("no device takes a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads", grid.x, grid.y, grid.z, block.x, block.y, block.z);
  if (shared > static_cast<size_t>(settings.shared_limit)) fail("%zu bytes of shared memory, the device has %d", shared, settings.shared_limit);
  running.grid = grid;
  running.block = block;
  running.shared_bytes = shared;
  running.cooperative = cooperative;
  running.body = &body;
  running.at_grid = 0;
  if (cooperative) {
    run_blocks(0, blocks, nullptr);
  } else {
    std::vector<unsigned> order;
    ordered(order, blocks);
    for (unsigned long i = 0; i < blocks; ++i) run_blocks(i, i + 1, &order);
  }
  running.current = nullptr;
}

}  // namespace shim
