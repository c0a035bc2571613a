// gru cell and sequence on CUDA tensors: the torch side is recurrent_glue.cuh.
#include "gru.cuh"

#include "recurrent_glue.cuh"

namespace ts::cuda {
namespace {
struct Gru {
  using Cell = GruCell;
  static Cell cell(bool) { return {}; }
};
}  // namespace
}  // namespace ts::cuda

TS_CUDA_KERNELS(m) {
  m.impl("gru_cell_forward", TORCH_BOX(&ts::cuda::cell_forward_cuda<ts::cuda::Gru>));
  m.impl("gru_cell_backward", TORCH_BOX(&ts::cuda::cell_backward_cuda<ts::cuda::Gru>));
  m.impl("gru_forward", TORCH_BOX(&ts::cuda::sequence_forward_cuda<ts::cuda::Gru>));
  m.impl("gru_backward", TORCH_BOX(&ts::cuda::sequence_backward_cuda<ts::cuda::Gru>));
}
static const ts::cuda::Registered cell_forward{"gru_cell_forward"};
static const ts::cuda::Registered cell_backward{"gru_cell_backward"};
static const ts::cuda::Registered forward{"gru_forward"};
static const ts::cuda::Registered backward{"gru_backward"};
