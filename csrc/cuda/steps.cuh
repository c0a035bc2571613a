// The steps of a recurrent layer in one launch: W_hh stays in shared memory from the first step to the last.
//
// Where the hidden size fits one multiprocessor, a block takes some batch rows of one direction through all steps and no
// block waits for another. Above, a cooperative grid: a block has a slice of the hidden units for the whole batch, the
// state (backward: the gates' gradients) goes through global memory, and one grid barrier a step separates writing from
// reading. A slice whose weights exceed shared memory reads them from L2.
//
// Memory: the state and the gates of a thread's rows are in registers, W_hh in shared memory; global memory sees x W_ih^T once
// (read), y (written) and, for backward, r, z, n, W_hn h + b_hn: 4 H values a row.
//
// The arithmetic is plain multiply-adds of the widened values: a step's product is small and waits for the step before.
#pragma once

#include "cell.cuh"

namespace ts::cuda {

// ---------------------------------------------------------------------------------------------- the plan

struct StepsPlan {
  bool together;           // a cooperative grid, slices of the hidden units; else blocks of batch rows
  bool resident;           // the weights of a slice lie in shared memory
  int slice, units;        // hidden units of a block, and of those at a time
  int groups, threads;     // a group has kRowsOfThread batch rows; thread = group * units + unit
  int depth;               // of the product (H, backward kGates * H), rounded up to 16 bytes
  int tile;                // elements of the batch rows in shared memory
  int64_t blocks;          // slices, or blocks of batch rows
  size_t shared;
  __host__ __device__ int batch() const { return groups * kRowsOfThread; }
};

constexpr int kStepsThreads = 256;  // with 512, half of the registers a thread may have: three gates' sums spill
constexpr int kOneSmHidden = 128;    // its weights, three gates in float32, fill the shared memory of an H200
constexpr int kFewestUnits = 8;      // of a slice: fewer, and the barrier costs more than the product
constexpr int kUnitsAtOnce = 128;
constexpr int kTileDeep = 64;        // of the state that passes through shared memory at a time
constexpr int kTileBytes = 32 * 1024;

template <class T>
StepsPlan plan_steps(int64_t H, int64_t B, int64_t D, int gates, bool backward, const Device& device,
                     int64_t one_sm = kOneSmHidden) {
  using W = SumOf<T>;
  const auto least = [](int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); };
  const auto at_least_one = [](int64_t a) { return a > 1 ? a : int64_t(1); };
  StepsPlan p{};
  const int64_t depth = backward ? gates * H : H;
  p.depth = static_cast<int>(ceil_div(depth, int64_t(kPerChunk<W>)) * kPerChunk<W>);
  const size_t of_unit = size_t(p.depth) * (backward ? 1 : gates) * sizeof(T);
  const auto finish = [&] {
    p.threads = ceil_div(p.units * p.groups, kWarpSize) * kWarpSize;
    p.shared = p.tile * sizeof(W) + (p.resident ? of_unit * p.slice : 0);
  };
  if (H <= one_sm) {
    p.resident = true;
    p.slice = p.units = static_cast<int>(H);
    // No more rows a block than it takes to give every multiprocessor a block.
    p.groups = least(at_least_one(ceil_div(B * D, int64_t(kRowsOfThread) * device.sms)), at_least_one(kStepsThreads / at_least_one(H)));
    for (; p.groups > 0; --p.groups) {
      p.tile = (backward ? 1 : 2) * p.batch() * p.depth;
      p.blocks = ceil_div(B, int64_t(p.batch()));
      finish();
      if (p.shared <= static_cast<size_t>(device.shared_limit)) return p;
    }
  }
  p.together = true;
  p.slice = static_cast<int>(ceil_div(H, int64_t(least(ceil_div(H, int64_t(kFewestUnits)), device.sms))));
  p.blocks = ceil_div(H, int64_t(p.slice));  // at most one a multiprocessor: all run at once
  p.units = least(p.slice, kUnitsAtOnce);
  p.groups = least(ceil_div(B, int64_t(kRowsOfThread)), kStepsThreads / p.units);
  p.groups = least(p.groups, kTileBytes / (kRowsOfThread * kTileDeep * sizeof(W)));
  p.tile = p.batch() * kTileDeep;
  p.resident = p.tile * sizeof(W) + of_unit * p.slice <= static_cast<size_t>(device.shared_limit);
  finish();
  return p;
}

// ---------------------------------------------------------------------------------------------- steps of a sequence

struct Steps {
  int64_t T, B, H, rows;
  const int64_t* offsets;  // [T + 1] on the device, first rows of the steps; null: B rows each
  __device__ __forceinline__ int64_t first(int64_t t) const { return offsets ? offsets[t] : t * B; }
  __device__ __forceinline__ int64_t count(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : B; }
};

// Kernel parameters carry a packed sequence's offsets to the device: a captured graph keeps them by value, and no host
// memory has to outlive the launch.
struct OffsetsPart {
  static constexpr int kMost = 256;
  int64_t first, count, values[kMost];
};
template <class Index>
__global__ void __launch_bounds__(OffsetsPart::kMost) offsets_kernel(Index* offsets, OffsetsPart part) {
  if (threadIdx.x < part.count) offsets[part.first + threadIdx.x] = part.values[threadIdx.x];
}
// From first rows [T] on the host to [T + 1] on the device.
inline void send_offsets(int64_t* to, const int64_t* offsets, int64_t T, int64_t rows, cudaStream_t stream) {
  for (int64_t first = 0; first <= T; first += OffsetsPart::kMost) {
    OffsetsPart part{first, T + 1 - first, {}};
    if (part.count > OffsetsPart::kMost) part.count = OffsetsPart::kMost;
    for (int64_t i = 0; i < part.count; ++i) part.values[i] = first + i < T ? offsets[first + i] : rows;
    launch<offsets_kernel<int64_t>>({dim3(1), dim3(OffsetsPart::kMost), 0, stream}, to, part);
  }
}

template <bool kTogether>
__device__ __forceinline__ void everyone() {
  if constexpr (kTogether) grid_sync();
  else __syncthreads();
}

// The place of a thread: its unit and group; threads past the last group help to load and compute nothing that counts.
struct Place {
  int unit, group;
  bool active;
  __device__ __forceinline__ Place(const StepsPlan& plan) {
    unit = threadIdx.x % plan.units;
    active = static_cast<int>(threadIdx.x) / plan.units < plan.groups;
    group = active ? threadIdx.x / plan.units : 0;
  }
};

// The product over all of the depth by tiles: value(b, k) is loaded for rows [b0, b0 + batch), 0 from `rows` on.
template <int kColumns, class W, class Value, class Weight>
__device__ __forceinline__ void tiled_product(W (&sum)[kColumns][kRowsOfThread], const StepsPlan& plan, const Place& at,
                                              W* tile, int64_t depth, int64_t b0, int64_t rows, const Value& value,
                                              const Weight& weight) {
  for (int64_t k0 = 0; k0 < plan.depth; k0 += kTileDeep) {
    const int deep = plan.depth - k0 < kTileDeep ? static_cast<int>(plan.depth - k0) : kTileDeep;
    __syncthreads();  // all are done with the tile before
    for (int i = threadIdx.x; i < plan.tile; i += blockDim.x) {
      const int64_t b = b0 + i / kTileDeep, k = k0 + i % kTileDeep;
      tile[i] = b < rows && k < depth ? value(b, k) : W(0);
    }
    __syncthreads();
    multiply(sum, tile + at.group * kRowsOfThread * kTileDeep, kTileDeep, deep,
             [&](int g, int k) { return weight(g, static_cast<int>(k0) + k); });
  }
}

// ---------------------------------------------------------------------------------------------- forward

template <class T>
struct StepsForward {
  Steps steps;
  int64_t pitch;             // of y: directions * H
  int direction;             // of the launch's first blocks
  const SumOf<T>* xg;        // [D, rows, kGates * H], x W_ih^T + b_ih
  const T *w_hh[2], *b_hh[2];
  const T* hx;               // [D, B, H]
  Either<T> y;               // [rows, D * H]
  T* hn;                     // [D, B, H]
  SumOf<T>* kept;            // [D, rows, 4 * H] or null
  SumOf<T>* state;           // [D, 2, B, H], of a cooperative grid
};

template <class Cell, class T, bool kTogether>
__global__ void __launch_bounds__(kStepsThreads, 1) steps_forward_kernel(Cell cell, StepsForward<T> p, StepsPlan plan) {
  using W = SumOf<T>;
  constexpr int G = Cell::kGates;
  const Steps& s = p.steps;
  const int64_t H = s.H, B = s.B;
  const int d = p.direction + blockIdx.y;
  const int64_t j0 = kTogether ? blockIdx.x * int64_t(plan.slice) : 0;
  const int mine = static_cast<int>(H - j0 < plan.slice ? H - j0 : plan.slice);
  const int64_t begin = kTogether ? 0 : blockIdx.x * int64_t(plan.batch());
  const int64_t end = kTogether || begin + plan.batch() > B ? B : begin + plan.batch();
  const T *w_hh = p.w_hh[d], *b_hh = p.b_hh[d], *hx = p.hx + d * B * H;
  W* tile = shared<W>();
  T* held = reinterpret_cast<T*>(tile + plan.tile);  // [depth, G, slice]
  const Place at(plan);
  const auto state = [&](int which, int64_t b, int64_t j) -> W& {
    if constexpr (kTogether) return p.state[((d * 2 + which) * B + b) * H + j];
    else return tile[(which * plan.batch() + b - begin) * plan.depth + j];
  };

  if (plan.resident)
    for (int i = threadIdx.x; i < plan.depth * G * plan.slice; i += blockDim.x) {
      const int u = i % plan.slice, g = i / plan.slice % G, k = i / plan.slice / G;
      held[i] = u < mine && k < H ? w_hh[(g * H + j0 + u) * H + k] : narrow<T>(0);
    }
  if constexpr (kTogether) {
    for (int64_t i = threadIdx.x; i < B * mine; i += blockDim.x)
      state(0, i / mine, j0 + i % mine) = widen(hx[i / mine * H + j0 + i % mine]);
  } else {
    for (int i = threadIdx.x; i < plan.tile; i += blockDim.x) {
      const int64_t b = begin + i / plan.depth;
      const int j = i % plan.depth;
      tile[i] = b < end && i < plan.tile / 2 && j < H ? W(widen(hx[b * H + j])) : W(0);
    }
  }
  everyone<kTogether>();

  int now = 0;
  for (int64_t step = 0; step < s.T; ++step, now ^= 1) {
    const int64_t t = d == 1 ? s.T - 1 - step : step, first = s.first(t), count = s.count(t);
    for (int64_t b0 = begin; b0 < end; b0 += plan.batch())
      for (int u0 = 0; u0 < mine; u0 += plan.units) {
        const int u = u0 + at.unit < mine ? u0 + at.unit : mine - 1;
        const int64_t j = j0 + u;
        W sum[G][kRowsOfThread] = {};
        if (b0 < count) {
          const auto from_shared = [&](int g, int k) { return W(widen(held[(k * G + g) * plan.slice + u])); };
          if constexpr (kTogether) {
            const auto value = [&](int64_t b, int64_t k) { return state(now, b, k); };
            const auto from_global = [&](int g, int k) { return k < H ? W(widen(w_hh[(g * H + j) * H + k])) : W(0); };
            if (plan.resident) tiled_product(sum, plan, at, tile, H, b0, B, value, from_shared);
            else tiled_product(sum, plan, at, tile, H, b0, B, value, from_global);
          } else {
            multiply(sum, &state(now, begin + at.group * kRowsOfThread, 0), plan.depth, plan.depth, from_shared);
          }
        }
        if (!at.active || u0 + at.unit >= mine) continue;
#pragma unroll
        for (int r = 0; r < kRowsOfThread; ++r) {
          const int64_t b = b0 + at.group * kRowsOfThread + r;
          if (b >= end) break;
          W h = state(now, b, j);
          if (b < count) {
            const int64_t row = first + b, gate = (d * s.rows + row) * G * H + j;
            W x[G], q[G], kept[4];
#pragma unroll
            for (int g = 0; g < G; ++g) {
              x[g] = p.xg[gate + g * H];
              q[g] = sum[g][r] + (b_hh ? W(widen(b_hh[g * H + j])) : W(0));
            }
            h = cell.forward(x, q, h, kept);
            p.y.put(row * p.pitch + d * H + j, h);
            if constexpr (Cell::kSavesGates)
              if (p.kept)
                for (int i = 0; i < 4; ++i) p.kept[((d * s.rows + row) * 4 + i) * H + j] = kept[i];
          }
          state(now ^ 1, b, j) = h;  // of ended and not yet begun sequences, too: the next step reads this copy
        }
      }
    everyone<kTogether>();
  }
  for (int64_t i = threadIdx.x; i < (end - begin) * mine; i += blockDim.x) {
    const int64_t b = begin + i / mine, j = j0 + i % mine;
    p.hn[(d * B + b) * H + j] = narrow<T>(state(now, b, j));
  }
}

// ---------------------------------------------------------------------------------------------- backward

template <class T>
struct StepsBackward {
  Steps steps;
  int64_t pitch;              // of y and gy: directions * H
  int direction;
  Either<T> gy, y;            // [rows, D * H]; gy may be none
  const T* ghn;               // [D, B, H] or null
  const T* w_hh[2];
  const T* hx;                // [D, B, H]
  const SumOf<T>* kept;       // [D, rows, 4 * H]
  T *dxg, *dhg;               // [D, rows, kGates * H]; one and the same for rnn
  T* before;                  // [D, rows, H], the state that each row's step started from
  SumOf<T>* dh;               // [D, B, H], each cell one thread's own
  T* ghx;                     // [D, B, H]
};

template <class Cell, class T, bool kTogether>
__global__ void __launch_bounds__(kStepsThreads, 1) steps_backward_kernel(Cell cell, StepsBackward<T> p, StepsPlan plan) {
  using W = SumOf<T>;
  constexpr int G = Cell::kGates;
  const Steps& s = p.steps;
  const int64_t H = s.H, B = s.B;
  const int d = p.direction + blockIdx.y;
  const int64_t j0 = kTogether ? blockIdx.x * int64_t(plan.slice) : 0;
  const int mine = static_cast<int>(H - j0 < plan.slice ? H - j0 : plan.slice);
  const int64_t begin = kTogether ? 0 : blockIdx.x * int64_t(plan.batch());
  const int64_t end = kTogether || begin + plan.batch() > B ? B : begin + plan.batch();
  const T *w_hh = p.w_hh[d], *hx = p.hx + d * B * H;
  W *dh = p.dh + d * B * H, *tile = shared<W>();
  T* held = reinterpret_cast<T*>(tile + plan.tile);  // [depth, slice]
  const Place at(plan);
  // Calls f(batch row, unit) for this thread's cells among those at (b0, u0).
  const auto each = [&](int64_t b0, int u0, const auto& f) {
    if (!at.active || u0 + at.unit >= mine) return;
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      const int64_t b = b0 + at.group * kRowsOfThread + r;
      if (b < end) f(b, j0 + u0 + at.unit, r);
    }
  };
  const auto each_part = [&](const auto& f) {
    for (int64_t b0 = begin; b0 < end; b0 += plan.batch())
      for (int u0 = 0; u0 < mine; u0 += plan.units) f(b0, u0);
  };

  if (plan.resident)
    for (int i = threadIdx.x; i < plan.depth * plan.slice; i += blockDim.x) {
      const int u = i % plan.slice, m = i / plan.slice;
      held[i] = u < mine && m < G * H ? w_hh[m * H + j0 + u] : narrow<T>(0);
    }
  if constexpr (!kTogether)
    for (int i = threadIdx.x; i < plan.tile; i += blockDim.x) tile[i] = 0;
  each_part([&](int64_t b0, int u0) {
    each(b0, u0, [&](int64_t b, int64_t j, int) { dh[b * H + j] = p.ghn ? W(widen(p.ghn[(d * B + b) * H + j])) : W(0); });
  });
  __syncthreads();

  for (int64_t step = 0; step < s.T; ++step) {
    const int64_t t = d == 1 ? step : s.T - 1 - step, first = s.first(t), count = s.count(t);
    const int64_t earlier = d == 1 ? t + 1 : t - 1;
    const bool known = earlier >= 0 && earlier < s.T;
    const int64_t earlier_first = known ? s.first(earlier) : 0, earlier_count = known ? s.count(earlier) : 0;
    each_part([&](int64_t b0, int u0) {
      each(b0, u0, [&](int64_t b, int64_t j, int) {
        if (b >= count) return;
        const int64_t row = first + b, out = row * p.pitch + d * H + j;
        const W h = b < earlier_count ? p.y.get((earlier_first + b) * p.pitch + d * H + j) : W(widen(hx[b * H + j]));
        const W g = dh[b * H + j] + (p.gy.given() ? p.gy.get(out) : W(0));
        W kept[4] = {}, dx[G], dq[G];
        if constexpr (Cell::kSavesGates)
          for (int i = 0; i < 4; ++i) kept[i] = p.kept[((d * s.rows + row) * 4 + i) * H + j];
        dh[b * H + j] = cell.backward(g, h, p.y.get(out), kept, dx, dq);
        p.before[(d * s.rows + row) * H + j] = narrow<T>(h);
#pragma unroll
        for (int k = 0; k < G; ++k) {
          const int64_t to = ((d * s.rows + row) * G + k) * H + j;
          p.dxg[to] = narrow<T>(dx[k]);
          if constexpr (G > 1) p.dhg[to] = narrow<T>(dq[k]);
          if constexpr (!kTogether) tile[(b - begin) * plan.depth + k * H + j] = dq[k];
        }
      });
    });
    everyone<kTogether>();  // every step has rows of its own in dhg: no second barrier of the grid
    each_part([&](int64_t b0, int u0) {
      if (b0 >= count) return;
      const int u = u0 + at.unit < mine ? u0 + at.unit : mine - 1;
      W sum[1][kRowsOfThread] = {};
      const auto from_shared = [&](int, int m) { return W(widen(held[m * plan.slice + u])); };
      if constexpr (kTogether) {
        const T* dhg = p.dhg + (d * s.rows + first) * G * H;
        const auto value = [&](int64_t b, int64_t m) { return W(widen(dhg[b * G * H + m])); };
        const auto from_global = [&](int, int m) { return m < G * H ? W(widen(w_hh[m * H + j0 + u])) : W(0); };
        if (plan.resident) tiled_product(sum, plan, at, tile, G * H, b0, count, value, from_shared);
        else tiled_product(sum, plan, at, tile, G * H, b0, count, value, from_global);
      } else {
        multiply(sum, tile + at.group * kRowsOfThread * plan.depth, plan.depth, plan.depth, from_shared);
      }
      each(b0, u0, [&](int64_t b, int64_t j, int r) {
        if (b < count) dh[b * H + j] += sum[0][r];
      });
    });
    if constexpr (!kTogether) __syncthreads();  // the tile is read: the next step may write it
  }
  each_part([&](int64_t b0, int u0) {
    each(b0, u0, [&](int64_t b, int64_t j, int) { p.ghx[(d * B + b) * H + j] = narrow<T>(dh[b * H + j]); });
  });
}

// ---------------------------------------------------------------------------------------------- launching

// All directions side by side, or, where they share the multiprocessors, one after the other.
template <auto alone, auto together, class Cell, class P>
void launch_steps(const Cell& cell, P p, const StepsPlan& plan, int directions, cudaStream_t stream) {
  if (p.steps.B == 0 || p.steps.H == 0) return;
  const auto blocks = static_cast<unsigned>(plan.blocks);
  const dim3 threads(plan.threads);
  if (!plan.together) return launch<alone>({dim3(blocks, directions), threads, plan.shared, stream}, cell, p, plan);
  for (p.direction = 0; p.direction < directions; ++p.direction)
    launch<together>({dim3(blocks), threads, plan.shared, stream, true}, cell, p, plan);
}

}  // namespace ts::cuda
