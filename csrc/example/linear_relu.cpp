// torchsmith from C++: its library is loaded, and an op called through PyTorch's dispatcher.
//
//   linear_relu path/to/torchsmith/_cpu.so      prints the largest difference from at::linear; exit code 1 if it is not small
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <dlfcn.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: %s path/to/torchsmith/_cpu.so\n", argv[0]), 2;
  if (!dlopen(argv[1], RTLD_NOW)) return std::fprintf(stderr, "%s\n", dlerror()), 2;  // it registers its ops

  // The schema, as torch.ops.torchsmith.linear_forward._schema shows it: (input, weight, bias?, relu, allow_tf32) -> y.
  using Linear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, bool, bool);
  const auto linear =
      c10::Dispatcher::singleton().findSchemaOrThrow("torchsmith::linear_forward", "").typed<Linear>();

  const at::Tensor x = at::randn({64, 300}), weight = at::randn({50, 300}), bias = at::randn({50});
  const at::Tensor y = linear.call(x, weight, bias, /*relu=*/true, /*allow_tf32=*/false);

  const double difference = y.sub(at::relu(at::linear(x, weight, bias))).abs().max().item<double>();
  std::printf("torchsmith::linear_forward on %ld x %ld: differs from at::linear by %g\n", long(y.size(0)),
              long(y.size(1)), difference);
  return difference < 1e-4 ? 0 : 1;  // sums of 300 products of about 1
}
