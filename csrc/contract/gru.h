// gru, as torch.nn.GRU (the reset gate multiplies after the matrix product):
//   r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
//   n = tanh(W_in x + b_in + r * (W_hn h + b_hn))   h' = (1 - z) * n + z * h
// Shapes: contract/sequence.h, gates = 3 in the order r, z, n.
//
// Backward, with dh = dL/dh' and q = W_hn h + b_hn:
//   dn = dh (1 - z) (1 - n^2)    dz = dh (h - n) z (1 - z)    dr = dn q r (1 - r)
//   gradient at W_i x: (dr, dz, dn);  at W_h h: (dr, dz, dn r);  dh (earlier) = dh z + (dr, dz, dn r) W_hh
#pragma once

#include "sequence.h"
