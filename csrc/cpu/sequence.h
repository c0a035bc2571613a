// The layer stack that rnn.cpp and gru.cpp run with their own cell: for each layer and direction one input GEMM over all
// rows, then the steps, with the recurrent weights packed once. Batch rows do not meet in the recurrence, so threads take
// shares of the batch through all steps: no barrier between steps. Contract and layout: contract/sequence.h.
//
// Memory: the gates of a step are computed from both products while these are in the cache; W_hh is packed once a layer and
// direction, and 3 H^2 of it stay in the caches through the steps. For backward r, z, n and W_hn h + b_hn are kept, 4 H values
// a row, and the states of the layers below the last; without gradients, neither.
//
// States, gates and gradients between steps and layers are Wide<T>: of bf16, only arguments, results and the factors of
// products are rounded. So a layer's input and output are T at the ends of the stack and Wide<T> inside: X, Y, GX, GY.
//
// A Cell has:  kGates;
//   forward(rows, H, xg, hg, h, y, y_pitch, saved): new h and y of `rows` rows from the input part xg (InputPart, of
//     kGates * H values a row) and the recurrent part hg [rows, kGates * H]; saved [rows, 4 * H] or null;
//   backward(rows, H, dh, h_prev, y, y_pitch, saved, dxg, dhg): from dh the gradients at xg and hg; leaves in dh what
//     reaches the earlier state beside dhg W_hh.
#pragma once

#include "../contract/sequence.h"
#include "project.h"
#include "sum_rows.h"
#include "vmath.h"

namespace ts::TS_ISA {

using sequence::Dims;

// Shares of the batch for one direction: none smaller than is worth a thread over the whole sequence.
TS_INLINE int64_t batch_grain(const Dims& d, int64_t gates) {
  return max_of<int64_t>(1, kParallelWork / max_of<int64_t>(1, d.T * gates * d.H * d.H));
}

// Whether W_hh is read by so few rows in all steps, such as a cell's, that packing it does not pay.
template <class T>
TS_INLINE bool unpacked(const Dims& d) { return d.T == 1 || (kPair<T> == 1 && are_few(d.rows, d.H)); }

// W_ih x + b_ih of some rows, `width` values each: those from `first` on, or of a table those that `index` names.
template <class W>
struct InputPart {
  const W* first;
  const int64_t* index;
  int64_t width;
  InputPart from(int64_t row) const {
    return index ? InputPart{first, index + row, width} : InputPart{first + row * width, nullptr, width};
  }
  const W* operator[](int64_t row) const { return first + (index ? index[row] : row) * width; }
};

template <class T, class Cell, class Y>
void run_steps(const Dims& d, const Cell& cell, bool reverse, const InputPart<Wide<T>>& xg, const T* w_hh, const T* b_hh, Wide<T>* h,
               Y* y, int64_t pitch, Wide<T>* saved) {
  constexpr int64_t G = Cell::kGates;
  using W = Wide<T>;
  const int64_t H = d.H;
  const auto steps = [&](int64_t begin, int64_t end, const auto& multiply) {
    W* hg = scratch<W>(Slot::pixels, (end - begin) * G * H);
    for (int64_t step = 0; step < d.T; ++step) {
      const int64_t t = reverse ? d.T - 1 - step : step;
      const int64_t rows = min_of(end, d.sizes[t]) - begin, row = d.offsets[t] + begin;
      if (rows <= 0) continue;
      multiply(rows, h + begin * H, hg);
      cell.forward(rows, H, xg.from(row), hg, h + begin * H, y + row * pitch, pitch,
                   saved ? saved + row * 4 * H : nullptr);
    }
  };
  if (unpacked<T>(d))
    return steps(0, d.B, [&](int64_t rows, const W* from, W* hg) { project<T>(rows, H, G * H, from, w_hh, b_hh, false, hg); });
  const RightPacked<T> packed = RightPacked<T>::pack(scratch<Lane<T>>(Slot::transposed, RightPacked<T>::size(H, G * H)), d.B,
                                                     H, G * H, RightStrided<T>{w_hh, 1, H});
  parallel(d.B, batch_grain(d, G), [&](int64_t begin, int64_t end) {
    steps(begin, end, [&](int64_t rows, const W* from, W* hg) {
      gemm_packed<T>(rows, LeftStrided<W>{from, H, 1}, packed, hg, G * H, {.column_bias = b_hh});
    });
  });
}

// out = in * mask, or a copy's stand-in: in itself where there is no mask.
template <class T>
const Wide<T>* masked(const Wide<T>* in, const T* mask, int64_t count, Slot slot) {
  using W = Wide<T>;
  if (!mask) return in;
  W* out = scratch<W>(slot, count);
  for_vectors<W>(count, [&](int64_t i, int n) { store_wide(out + i, load_wide(in + i, n) * load_wide(mask + i, n), n); });
  return out;
}

// Layer l of both directions; h: the states [B, H] of its directions.
template <class T, class Cell, class X, class Y>
void layer_forward(const sequence::Forward<T>& p, const Cell& cell, int64_t l, const X* x, Y* y, Wide<T>* h) {
  constexpr int64_t G = Cell::kGates;
  const Dims& d = p.d;
  const int64_t H = d.H, I = d.input_size(l);
  const int64_t* index = l == 0 ? d.index : nullptr;
  const int64_t rows = index ? d.table : d.rows;
  for (int64_t k = 0; k < d.D; ++k) {
    const int64_t at = l * d.D + k;
    const sequence::Weights<T>& w = p.weights[at];
    Wide<T>* xg = scratch<Wide<T>>(Slot::gates, rows * G * H);
    project<T>(rows, I, G * H, x, w.ih, w.b_ih, false, xg);
    run_steps<T>(d, cell, k == 1, InputPart<Wide<T>>{xg, index, G * H}, w.hh, w.b_hh, h + k * d.B * H, y + k * H, d.D * H,
                 p.gates ? p.gates + at * d.rows * 4 * H : nullptr);
  }
}

template <class T, class Cell>
void sequence_forward(const sequence::Forward<T>& p, const Cell& cell) {
  const Dims& d = p.d;
  const int64_t states = d.D * d.B * d.H, count = d.rows * d.D * d.H;
  Wide<T>* hn = wide_room(p.hn, d.L * states, Slot::state);
  copy_as(hn, p.hx, d.L * states);
  for (int64_t l = 0; l < d.L; ++l) {
    const auto from = [&](const auto* x) {
      if (l + 1 == d.L) layer_forward<T>(p, cell, l, x, p.y, hn + l * states);
      else layer_forward<T>(p, cell, l, x, p.hidden + l * count, hn + l * states);
    };
    if (l == 0) from(p.x);
    else from(masked<T>(p.hidden + (l - 1) * count, p.dropout ? p.dropout + (l - 1) * count : nullptr, count, Slot::input));
  }
  rounded(p.hn, hn, d.L * states);
}

// h_prev[row]: the state that each row's step started from, gathered from the layer's outputs and hx.
template <class T, class Y>
void gather_previous(const Dims& d, bool reverse, const T* hx, const Y* y, int64_t pitch, Wide<T>* h_prev) {
  for (int64_t t = 0; t < d.T; ++t) {
    const int64_t before = reverse ? t + 1 : t - 1;
    const int64_t known = before < 0 || before >= d.T ? 0 : min_of(d.sizes[t], d.sizes[before]);
    for (int64_t b = 0; b < d.sizes[t]; ++b) {
      Wide<T>* to = h_prev + (d.offsets[t] + b) * d.H;
      if (b < known) copy_as(to, y + (d.offsets[before] + b) * pitch, d.H);
      else copy_as(to, hx + b * d.H, d.H);
    }
  }
}

template <class T, class Y, class GY>
struct LayerGradient {  // of one layer and direction
  const GY* gy;
  const Y* y;
  const Wide<T>*h_prev, *gates;
  Wide<T>*dh, *dxg, *dhg;
  int64_t pitch;
};

template <class T, class Cell, class Y, class GY>
void run_steps_back(const Dims& d, const Cell& cell, bool reverse, const T* w_hh, const LayerGradient<T, Y, GY>& g) {
  constexpr int64_t G = Cell::kGates;
  using W = Wide<T>;
  const int64_t H = d.H;
  const auto steps = [&](int64_t begin, int64_t end, const auto& multiply) {
    for (int64_t step = 0; step < d.T; ++step) {
      const int64_t t = reverse ? step : d.T - 1 - step;
      const int64_t rows = min_of(end, d.sizes[t]) - begin, row = d.offsets[t] + begin;
      if (rows <= 0) continue;
      W* dh = g.dh + begin * H;
      for (int64_t b = 0; b < rows && g.gy; ++b) add_as(dh + b * H, g.gy + (row + b) * g.pitch, H, true);
      cell.backward(rows, H, dh, g.h_prev + row * H, g.y + row * g.pitch, g.pitch,
                    g.gates ? g.gates + row * 4 * H : nullptr, g.dxg + row * G * H, g.dhg + row * G * H);
      multiply(rows, g.dhg + row * G * H, dh);
    }
  };
  if (unpacked<T>(d))
    return steps(0, d.B, [&](int64_t rows, const W* dhg, W* dh) { project_back<T>(rows, H, G * H, dhg, w_hh, dh, true); });
  const RightPacked<T> packed = RightPacked<T>::pack(scratch<Lane<T>>(Slot::transposed, RightPacked<T>::size(G * H, H)),
                                                     d.B, G * H, H, RightStrided<T>{w_hh, H, 1});
  parallel(d.B, batch_grain(d, G), [&](int64_t begin, int64_t end) {
    steps(begin, end, [&](int64_t rows, const W* dhg, W* dh) {
      gemm_packed<T>(rows, LeftStrided<W>{dhg, G * H, 1}, packed, dh, H, {.accumulate = true});
    });
  });
}

// The gradients at the rows' input parts, `width` values each, summed for each row of the table. Threads take columns, so that
// sums are made in one order.
template <class W>
const W* summed_by_index(const Dims& d, const W* dxg, int64_t width) {
  W* const sums = scratch<W>(Slot::pixels, d.table * width);
  constexpr int64_t kShare = 4 * kLanes<W>;
  parallel(ceil_div(width, kShare), kParallelWork / (kShare * (d.rows + d.table)) + 1, [&](int64_t begin, int64_t end) {
    const int64_t c0 = begin * kShare, columns = min_of(width, end * kShare) - c0;
    for (int64_t r = 0; r < d.table; ++r) std::memset(sums + r * width + c0, 0, sizeof(W) * columns);
    for (int64_t r = 0; r < d.rows; ++r) add_as(sums + d.index[r] * width + c0, dxg + r * width + c0, columns, true);
  });
  return sums;
}

// Layer l of both directions: from the gradient at its output y those at its input x (if gx), weights and states dh.
template <class T, class Cell, class X, class Y, class GX, class GY>
void layer_backward(const sequence::Backward<T>& p, const Cell& cell, int64_t l, const GY* gy, const Y* y, const X* x, GX* gx,
                    Wide<T>* dh) {
  constexpr int64_t G = Cell::kGates;
  using W = Wide<T>;
  const Dims& d = p.d;
  const int64_t H = d.H, I = d.input_size(l);
  for (int64_t k = 0; k < d.D; ++k) {
    const int64_t at = l * d.D + k;
    W* dxg = scratch<W>(Slot::gates, d.rows * G * H);
    W* dhg = Cell::kOneGradient ? dxg : scratch<W>(Slot::image, d.rows * G * H);
    W* h_prev = scratch<W>(Slot::state, d.rows * H);
    gather_previous<T>(d, k == 1, p.hx + at * d.B * H, y + k * H, d.D * H, h_prev);
    run_steps_back<T>(d, cell, k == 1, p.weights[at].hh,
                      LayerGradient<T, Y, GY>{gy ? gy + k * H : nullptr, y + k * H, h_prev,
                                              p.gates ? p.gates + at * d.rows * 4 * H : nullptr, dh + k * d.B * H, dxg, dhg,
                                              d.D * H});
    const bool by_index = l == 0 && d.index;
    const int64_t rows = by_index ? d.table : d.rows;
    const W* at_x = by_index && (p.gweights || gx) ? summed_by_index(d, dxg, G * H) : dxg;
    if (p.gweights) {
      const sequence::WeightGradients<T>& w = p.gweights[at];
      weight_gradient<T>(rows, I, G * H, at_x, x, w.ih);
      weight_gradient<T>(d.rows, H, G * H, dhg, h_prev, w.hh);
      if (w.b_ih) sum_rows(at_x, rows, G * H, w.b_ih);
      if (w.b_hh) sum_rows(dhg, d.rows, G * H, w.b_hh);
    }
    if (gx) project_back<T>(rows, I, G * H, at_x, p.weights[at].ih, gx, k == 1);
  }
}

template <class T, class Cell>
void sequence_backward(const sequence::Backward<T>& p, const Cell& cell) {
  using W = Wide<T>;
  const Dims& d = p.d;
  const int64_t states = d.D * d.B * d.H, count = d.rows * d.D * d.H;
  W* dh = wide_room(p.ghx, d.L * states, Slot::wide);
  if (p.ghn) copy_as(dh, p.ghn, d.L * states);
  else std::memset(dh, 0, sizeof(W) * d.L * states);
  const W* g_hidden = nullptr;  // at the output of layer l, if it is not the last
  for (int64_t l = d.L - 1; l >= 0; --l) {
    const T* mask = l > 0 && p.dropout ? p.dropout + (l - 1) * count : nullptr;
    W* gx = l > 0 ? scratch<W>(l % 2 ? Slot::batch : Slot::gradient, count) : nullptr;
    const auto at_output = [&](const auto* gy, const auto* y) {
      if (l == 0) layer_backward<T>(p, cell, l, gy, y, p.x, p.gx, dh);
      else layer_backward<T>(p, cell, l, gy, y, masked<T>(p.hidden + (l - 1) * count, mask, count, Slot::input), gx, dh + l * states);
    };
    if (l + 1 == d.L) at_output(p.gy, p.y);
    else at_output(g_hidden, p.hidden + l * count);
    if (mask)
      for_vectors<W>(count, [&](int64_t i, int n) { store_wide(gx + i, load_wide(gx + i, n) * load_wide(mask + i, n), n); });
    g_hidden = gx;
  }
  rounded(p.ghx, dh, d.L * states);
}

}  // namespace ts::TS_ISA
