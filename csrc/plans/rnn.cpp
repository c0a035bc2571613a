// rnn cell and sequence: the launches of rnn.cuh, told by recurrent.h.
#include "../cuda/rnn.cuh"

#include "recurrent.h"

namespace ts::plans {
namespace {

using Row = Recurrent<cuda::RnnCell>;
const Registered forward("rnn_forward", &Row::forward);
const Registered backward("rnn_backward", &Row::backward);
const Registered cell_forward("rnn_cell_forward", &Row::cell_forward);
const Registered cell_backward("rnn_cell_backward", &Row::cell_backward);

}  // namespace
}  // namespace ts::plans
