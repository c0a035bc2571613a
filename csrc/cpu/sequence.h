// The layer stack that rnn.cpp and gru.cpp run with their own cell: for each layer and direction one input GEMM over all
// rows, then the steps, with the recurrent weights packed once. Batch rows do not meet in the recurrence, so threads take
// shares of the batch through all steps: no barrier between steps. Contract and layout: contract/sequence.h.
//
// A Cell has:  kGates;
//   forward(rows, H, xg, hg, h, y, y_pitch, saved): new h and y of `rows` rows from the input part xg [rows, kGates * H]
//     and the recurrent part hg (same shape); saved [rows, 4 * H] or null;
//   backward(rows, H, dh, h_prev, y, y_pitch, saved, dxg, dhg): from dh the gradients at xg and hg; leaves in dh what
//     reaches the earlier state beside dhg W_hh.
#pragma once

#include "../contract/sequence.h"
#include "gemm.h"
#include "vmath.h"

namespace ts::TS_ISA {

using sequence::Dims;

// Shares of the batch for one direction: none smaller than is worth a thread over the whole sequence.
TS_INLINE int64_t batch_grain(const Dims& d, int64_t gates) {
  return max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, d.T * gates * d.H * d.H));
}

template <class T, class Cell>
void run_steps(const Dims& d, const Cell& cell, bool reverse, const T* xg, const T* w_hh, const T* b_hh, T* h, T* y,
               int64_t pitch, T* saved) {
  constexpr int64_t G = Cell::kGates;
  const int64_t H = d.H;
  const RightPacked<T> packed =
      RightPacked<T>::pack(scratch<T>(Slot::transposed, RightPacked<T>::size(H, G * H)), H, G * H, RightStrided<T>{w_hh, 1, H});
  parallel(d.B, batch_grain(d, G), [&](int64_t begin, int64_t end) {
    T* hg = scratch<T>(Slot::pixels, (end - begin) * G * H);
    for (int64_t step = 0; step < d.T; ++step) {
      const int64_t t = reverse ? d.T - 1 - step : step;
      const int64_t rows = min_of(end, d.sizes[t]) - begin, row = d.offsets[t] + begin;
      if (rows <= 0) continue;
      gemm_packed<T>(rows, LeftStrided<T>{h + begin * H, H, 1}, packed, hg, G * H, {.column_bias = b_hh});
      cell.forward(rows, H, xg + row * G * H, hg, h + begin * H, y + row * pitch, pitch,
                   saved ? saved + row * 4 * H : nullptr);
    }
  });
}

// out = in * mask, or a copy's stand-in: in itself where there is no mask.
template <class T>
const T* masked(const T* in, const T* mask, int64_t count, Slot slot) {
  if (!mask) return in;
  T* out = scratch<T>(slot, count);
  for_vectors<T>(count, [&](int64_t i, int n) { store_some<T>(out + i, load_some<T>(in + i, n) * load_some<T>(mask + i, n), n); });
  return out;
}

template <class T, class Cell>
void sequence_forward(const sequence::Forward<T>& p, const Cell& cell) {
  constexpr int64_t G = Cell::kGates;
  const Dims& d = p.d;
  const int64_t H = d.H, width = d.D * H;
  std::memcpy(p.hn, p.hx, sizeof(T) * d.L * d.D * d.B * H);
  for (int64_t l = 0; l < d.L; ++l) {
    const T* below = l == 0 ? p.x : p.hidden + (l - 1) * d.rows * width;
    const T* x = l == 0 ? below : masked<T>(below, p.dropout ? p.dropout + (l - 1) * d.rows * width : nullptr,
                                            d.rows * width, Slot::input);
    T* y = l + 1 == d.L ? p.y : p.hidden + l * d.rows * width;
    for (int64_t k = 0; k < d.D; ++k) {
      const int64_t at = l * d.D + k, I = d.input_size(l);
      const sequence::Weights<T>& w = p.weights[at];
      T* xg = scratch<T>(Slot::gates, d.rows * G * H);
      gemm<T>(d.rows, G * H, I, LeftStrided<T>{x, I, 1}, RightStrided<T>{w.ih, 1, I}, xg, G * H, {.column_bias = w.b_ih});
      run_steps<T>(d, cell, k == 1, xg, w.hh, w.b_hh, p.hn + at * d.B * H, y + k * H, width,
                   p.gates ? p.gates + at * d.rows * 4 * H : nullptr);
    }
  }
}

// h_prev[row]: the state that each row's step started from, gathered from the layer's outputs and hx.
template <class T>
void gather_previous(const Dims& d, bool reverse, const T* hx, const T* y, int64_t pitch, T* h_prev) {
  for (int64_t t = 0; t < d.T; ++t) {
    const int64_t before = reverse ? t + 1 : t - 1;
    const int64_t known = before < 0 || before >= d.T ? 0 : min_of(d.sizes[t], d.sizes[before]);
    for (int64_t b = 0; b < d.sizes[t]; ++b)
      std::memcpy(h_prev + (d.offsets[t] + b) * d.H,
                  b < known ? y + (d.offsets[before] + b) * pitch : hx + b * d.H, sizeof(T) * d.H);
  }
}

template <class T>
struct LayerGradient {  // of one layer and direction
  const T *gy, *y, *hx, *h_prev, *gates;
  T *dh, *dxg, *dhg;
  int64_t pitch;
};

template <class T, class Cell>
void run_steps_back(const Dims& d, const Cell& cell, bool reverse, const T* w_hh, const LayerGradient<T>& g) {
  constexpr int64_t G = Cell::kGates;
  const int64_t H = d.H;
  const RightPacked<T> packed =
      RightPacked<T>::pack(scratch<T>(Slot::transposed, RightPacked<T>::size(G * H, H)), G * H, H, RightStrided<T>{w_hh, H, 1});
  parallel(d.B, batch_grain(d, G), [&](int64_t begin, int64_t end) {
    for (int64_t step = 0; step < d.T; ++step) {
      const int64_t t = reverse ? step : d.T - 1 - step;
      const int64_t rows = min_of(end, d.sizes[t]) - begin, row = d.offsets[t] + begin;
      if (rows <= 0) continue;
      T* dh = g.dh + begin * H;
      for (int64_t b = 0; b < rows && g.gy; ++b)
        for_vectors<T>(H, [&](int64_t i, int n) {
          T* to = dh + b * H + i;
          store_some<T>(to, load_some<T>(to, n) + load_some<T>(g.gy + (row + b) * g.pitch + i, n), n);
        });
      cell.backward(rows, H, dh, g.h_prev + row * H, g.y + row * g.pitch, g.pitch,
                    g.gates ? g.gates + row * 4 * H : nullptr, g.dxg + row * G * H, g.dhg + row * G * H);
      gemm_packed<T>(rows, LeftStrided<T>{g.dhg + row * G * H, G * H, 1}, packed, dh, H, {.accumulate = true});
    }
  });
}

template <class T, class Cell>
void sequence_backward(const sequence::Backward<T>& p, const Cell& cell) {
  constexpr int64_t G = Cell::kGates;
  const Dims& d = p.d;
  const int64_t H = d.H, width = d.D * H, count = d.rows * width;
  if (p.ghn) std::memcpy(p.ghx, p.ghn, sizeof(T) * d.L * d.D * d.B * H);
  else std::memset(p.ghx, 0, sizeof(T) * d.L * d.D * d.B * H);
  const T* gy = p.gy;
  for (int64_t l = d.L - 1; l >= 0; --l) {
    const int64_t I = d.input_size(l);
    const T* y = l + 1 == d.L ? p.y : p.hidden + l * count;
    const T* mask = l > 0 && p.dropout ? p.dropout + (l - 1) * count : nullptr;
    const T* x = l == 0 ? p.x : masked<T>(p.hidden + (l - 1) * count, mask, count, Slot::input);
    T* gx = l == 0 ? p.gx : scratch<T>(l % 2 ? Slot::batch : Slot::gradient, count);
    for (int64_t k = 0; k < d.D; ++k) {
      const int64_t at = l * d.D + k;
      T* dxg = scratch<T>(Slot::gates, d.rows * G * H);
      T* dhg = Cell::kOneGradient ? dxg : scratch<T>(Slot::image, d.rows * G * H);
      T* h_prev = scratch<T>(Slot::state, d.rows * H);
      gather_previous<T>(d, k == 1, p.hx + at * d.B * H, y + k * H, width, h_prev);
      run_steps_back<T>(d, cell, k == 1, p.weights[at].hh,
                        LayerGradient<T>{gy ? gy + k * H : nullptr, y + k * H, p.hx + at * d.B * H, h_prev,
                                         p.gates ? p.gates + at * d.rows * 4 * H : nullptr, p.ghx + at * d.B * H, dxg,
                                         dhg, width});
      if (p.gweights) {
        const sequence::WeightGradients<T>& w = p.gweights[at];
        gemm<T>(G * H, I, d.rows, LeftStrided<T>{dxg, 1, G * H}, RightStrided<T>{x, I, 1}, w.ih, I, {});
        gemm<T>(G * H, H, d.rows, LeftStrided<T>{dhg, 1, G * H}, RightStrided<T>{h_prev, H, 1}, w.hh, H, {});
        if (w.b_ih) sum_rows<T>(dxg, d.rows, G * H, w.b_ih);
        if (w.b_hh) sum_rows<T>(dhg, d.rows, G * H, w.b_hh);
      }
      if (gx)
        gemm<T>(d.rows, I, G * H, LeftStrided<T>{dxg, G * H, 1}, RightStrided<T>{p.weights[at].ih, I, 1}, gx, I,
                {.accumulate = k == 1});
    }
    if (l > 0) {
      if (mask)
        for_vectors<T>(count, [&](int64_t i, int n) {
          store_some<T>(gx + i, load_some<T>(gx + i, n) * load_some<T>(mask + i, n), n);
        });
      gy = gx;
    }
  }
}

}  // namespace ts::TS_ISA
