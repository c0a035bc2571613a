// A recurrent layer stack over sequences of different lengths: what rnn and gru share.
//
// Rows are packed by time, as in torch.nn.utils.rnn.PackedSequence: the batch_sizes[t] sequences that are at least t + 1
// long, longest first, then those of t + 1, ... A padded batch is the case of equal batch_sizes. The hidden state of all
// sequences is [B, H]; step t changes its first batch_sizes[t] rows, in either direction:
//   forward:  rows whose sequence has ended keep its last state; reverse: rows that have not begun keep hx.
//
// Rows may be those of a table, an embedding's weight: with `index`, x is [table, I], and row r of the packed ones reads
// x[index[r]]. W_ih then multiplies the table instead of every row, forward and backward.
#pragma once

#include "check.h"
#include "types.h"

namespace ts::sequence {

struct Dims {
  int64_t T, B, rows;         // steps, sequences, rows of all steps together
  int64_t I, H, L, D;         // input features, hidden features, layers, directions (1 or 2)
  const int64_t* sizes;       // [T], batch_sizes: positive, never growing
  const int64_t* offsets;     // [T], first row of each step
  bool bias;
  const int64_t* index = nullptr;  // [rows], each in [0, table); null: x has every row itself
  int64_t table = 0;
  int64_t input_size(int64_t layer) const { return layer == 0 ? I : D * H; }
};

inline void check_sizes(const int64_t* sizes, int64_t T, int64_t B, int64_t rows) {
  int64_t sum = 0;
  for (int64_t t = 0; t < T; ++t) {
    require(sizes[t] > 0 && sizes[t] <= B && (t == 0 || sizes[t] <= sizes[t - 1]),
            "batch_sizes: positive and never growing, the first not above the batch of hx");
    sum += sizes[t];
  }
  require(sum == rows, "batch_sizes sum to " + std::to_string(sum) + ", input has " + std::to_string(rows) + " rows");
}

// Weights of layer l, direction d, at [l * D + d]; `gates` is 1 for rnn, 3 (r, z, n) for gru.
template <class T>
struct Weights {
  const T* ih;    // [gates * H, input_size(l)]
  const T* hh;    // [gates * H, H]
  const T* b_ih;  // [gates * H] or null
  const T* b_hh;  // [gates * H] or null
};
template <class T>
struct WeightGradients {  // the shapes of Weights; all null if not wanted
  T *ih, *hh, *b_ih, *b_hh;
};

template <class T>
struct Forward {
  Dims d;
  bool relu;                  // rnn: relu instead of tanh
  const T* x;                 // [rows, I]; with index [table, I]
  const T* hx;                // [L * D, B, H]
  const Weights<T>* weights;  // [L * D]
  const T* dropout;           // [L - 1, rows, D * H], 0 or 1 / (1 - p); null: none
  T* y;                       // [rows, D * H], the last layer's states
  T* hn;                      // [L * D, B, H]
  Wide<T>* hidden;            // [L - 1, rows, D * H], the other layers' states (before dropout)
  Wide<T>* gates;             // gru: [L * D, rows, 4 * H] r, z, n, W_hn h + b_hn; null when no backward will come
};

template <class T>
struct Backward {
  Dims d;
  bool relu;
  const T* gy;   // [rows, D * H] or null
  const T* ghn;  // [L * D, B, H] or null
  const T* x;
  const T* hx;
  const Weights<T>* weights;
  const T* dropout;
  const T* y;
  const Wide<T>* hidden;
  const Wide<T>* gates;
  T* gx;                              // the shape of x, or null
  T* ghx;                             // [L * D, B, H]
  const WeightGradients<T>* gweights;  // [L * D] or null
};

}  // namespace ts::sequence
