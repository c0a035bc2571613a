// What torchsmith._native and the CPU library hand each other for a direct call (direct.h).
#pragma once

#include "dlpack.h"

namespace ts::direct {

union Value {
  const dlpack::Tensor* tensor;  // null: None
  int64_t number;                // or bool
  struct {
    const int64_t* data;
    int64_t count;
  } numbers;
  struct {
    const dlpack::Tensor* data;
    int64_t count;
  } tensors;
};

// Operands beyond it are not handed over: what a call saves is nothing beside their work.
constexpr int64_t kMostElements = 1 << 18, kMostCast = 4096;  // of 16 bits, which may have to be cast: torch casts more faster
constexpr int kMostResults = 64;
struct Returned {
  dlpack::Managed* tensors[kMostResults];
  int count = 0;
};

// An op as torchsmith._native sees it. A letter for each argument: t Tensor, ? Tensor or None, w Tensors, b bool, i int,
// l ints; for each result: t Tensor, w Tensors; one in a tuple stands behind "(".
struct Op {
  const char *name, *arguments, *results;
  int (*call)(const Value* arguments, Returned& returned);  // 0: done; 1: the call has to go through torch
};

}  // namespace ts::direct

// The op of that name, or null.
extern "C" __attribute__((visibility("default"))) const ts::direct::Op* ts_direct_op(const char* name);
