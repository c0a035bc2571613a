// The host's side of csrc/cuda/mma.cuh: cp.async, ldmatrix and mma.sync as the PTX manual describes them.
#pragma once

#include "cuda_shim.h"

namespace ts::cuda {

// ---------------------------------------------------------------------------------------------- cp.async

constexpr bool kAsyncCopies = true;

// What a copy writes is undefined until it is waited for: NaN here. It lands at the wait, not before.
inline void cp_async16(void* to, const void* from, int valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    shim::fail("cp.async of 16 bytes from %p to %p: not on a 16-byte boundary", from, to);
  std::memset(to, 0xff, 16);
  shim::self().open.push_back({to, from, 16, valid});
}
inline void cp_async_commit() {
  shim::Thread& t = shim::self();
  t.groups.push_back(std::move(t.open));
  t.open.clear();
}
template <int kPending>
void cp_async_wait() {
  auto& groups = shim::self().groups;
  while (groups.size() > kPending) {
    for (const shim::Copy& c : groups.front()) {
      std::memcpy(c.to, c.from, c.valid);
      std::memset(static_cast<char*>(c.to) + c.valid, 0, c.bytes - c.valid);
    }
    groups.erase(groups.begin());
  }
}

// ---------------------------------------------------------------------------------------------- ldmatrix

// Four 8x8 matrices of 16-bit elements. Lane 8 i + j brings the address of row j of matrix i; register i of lane l receives
// elements 2 (l % 4) and the next of row l / 4 of matrix i: of its column, transposed, with `trans`.
struct MatrixRow {
  const uint16_t* row;
  uint32_t* result;
};
template <bool kTransposed>
void load_matrices(void** arguments, unsigned) {
  const uint16_t* rows[32];
  for (int i = 0; i < 32; ++i) {
    rows[i] = static_cast<MatrixRow*>(arguments[i])->row;
    if (reinterpret_cast<uintptr_t>(rows[i]) % 16) shim::fail("ldmatrix: lane %d: row not on a 16-byte boundary", i);
  }
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) {
      const int r = l / 4, c = l % 4 * 2;
      const uint32_t low = kTransposed ? rows[8 * i + c][r] : rows[8 * i + r][c];
      const uint32_t high = kTransposed ? rows[8 * i + c + 1][r] : rows[8 * i + r][c + 1];
      static_cast<MatrixRow*>(arguments[l])->result[i] = low | high << 16;
    }
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, shim::Site site = shim::Site::current()) {
  MatrixRow argument{static_cast<const uint16_t*>(row), r};
  shim::meet(0xffffffffu, &load_matrices<false>, &argument, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, shim::Site site = shim::Site::current()) {
  MatrixRow argument{static_cast<const uint16_t*>(row), r};
  shim::meet(0xffffffffu, &load_matrices<true>, &argument, site);
}

// ---------------------------------------------------------------------------------------------- mma.sync

struct Fragments {
  float* c;
  const uint32_t *a, *b;
};

inline float element(float, uint32_t word, int) { return std::bit_cast<float>(word & 0xffffe000u); }  // TF32: 10 bits of mantissa
inline float element(__half, uint32_t word, int half) { return __half2float({static_cast<uint16_t>(word >> 16 * half)}); }
inline float element(__nv_bfloat16, uint32_t word, int half) {
  return __bfloat162float({static_cast<uint16_t>(word >> 16 * half)});
}

// D[16, 8] += A[16, k] B[k, 8], k = 8 for TF32 (m16n8k8) and 16 for 16-bit types (m16n8k16). With g = lane / 4, t = lane % 4
// and words of one TF32 or two 16-bit elements next to each other along k, four words a row of A in each half of k:
//   A: register r holds row g + 8 (r % 2), word t of half r / 2;  B: register r holds column g, word t of half r;
//   C, D: register r holds row g + 8 (r / 2), column 2 t + r % 2.
template <class T>
void multiply_fragments(void** arguments, unsigned) {
  constexpr int kPerWord = 4 / sizeof(T), kDepth = 8 * kPerWord;
  float a[16][kDepth], b[8][kDepth];
  for (int l = 0; l < 32; ++l) {
    const auto* f = static_cast<Fragments*>(arguments[l]);
    const int g = l / 4, t = l % 4;
    for (int e = 0; e < kPerWord; ++e) {
      for (int r = 0; r < 4; ++r) a[g + 8 * (r % 2)][(t + 4 * (r / 2)) * kPerWord + e] = element(T{}, f->a[r], e);
      for (int r = 0; r < 2; ++r) b[g][(t + 4 * r) * kPerWord + e] = element(T{}, f->b[r], e);
    }
  }
  for (int l = 0; l < 32; ++l)
    for (int r = 0; r < 4; ++r) {
      const int row = l / 4 + 8 * (r / 2), column = l % 4 * 2 + r % 2;
      float sum = static_cast<Fragments*>(arguments[l])->c[r];
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[column][k];
      static_cast<Fragments*>(arguments[l])->c[r] = sum;
    }
}
template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], shim::Site site = shim::Site::current()) {
  Fragments f{c, a, b};
  shim::meet(0xffffffffu, &multiply_fragments<T>, &f, site);
}

// To the nearest TF32, ties away from zero (cvt.rna.tf32.f32).
inline uint32_t to_tf32(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  return f != f || std::isinf(f) ? u : (u + 0x1000u) & 0xffffe000u;
}

}  // namespace ts::cuda
