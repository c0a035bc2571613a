// gru cell and sequence: the launches of gru.cuh, told by recurrent.h.
#include "../cuda/gru.cuh"

#include "recurrent.h"

namespace ts::plans {
namespace {

using Row = Recurrent<cuda::GruCell>;
const Registered forward("gru_forward", &Row::forward);
const Registered backward("gru_backward", &Row::backward);
const Registered cell_forward("gru_cell_forward", &Row::cell_forward);
const Registered cell_backward("gru_cell_backward", &Row::cell_backward);

}  // namespace
}  // namespace ts::plans
