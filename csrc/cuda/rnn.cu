// rnn cell and sequence on CUDA tensors: the torch side is recurrent_glue.cuh.
#define TS_OWNS_PRODUCTS  // see sequence.cuh
#include "rnn.cuh"

#include "recurrent_glue.cuh"

namespace ts::cuda {
namespace {
struct Rnn {
  using Cell = RnnCell;
  static Cell cell(bool relu) { return {relu}; }
};
}  // namespace
}  // namespace ts::cuda

TS_CUDA_KERNELS(m) {
  m.impl("rnn_cell_forward", TORCH_BOX(&ts::cuda::cell_forward_cuda<ts::cuda::Rnn>));
  m.impl("rnn_cell_backward", TORCH_BOX(&ts::cuda::cell_backward_cuda<ts::cuda::Rnn>));
  m.impl("rnn_forward", TORCH_BOX(&ts::cuda::sequence_forward_cuda<ts::cuda::Rnn>));
  m.impl("rnn_backward", TORCH_BOX(&ts::cuda::sequence_backward_cuda<ts::cuda::Rnn>));
}
static const ts::cuda::Registered cell_forward{"rnn_cell_forward"};
static const ts::cuda::Registered cell_backward{"rnn_cell_backward"};
static const ts::cuda::Registered forward{"rnn_forward"};
static const ts::cuda::Registered backward{"rnn_backward"};
