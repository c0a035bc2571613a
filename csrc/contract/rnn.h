// rnn (Elman):  h' = f(W_ih x + b_ih + W_hh h + b_hh),  f = tanh or ReLU.   Shapes: contract/sequence.h, gates = 1.
//
// Backward, with dh = dL/dh' (from above and from the next step):  da = dh * f'(.)  where tanh' = 1 - h'^2 and
// relu' = 0 where h' <= 0, else 1.   dx = da W_ih,  dh (earlier) = da W_hh,  dW_ih = da^T x,  dW_hh = da^T h,  db = sum of da.
#pragma once

#include "sequence.h"
