// The instruction sets the kernel bodies are compiled for, and the one in use.
//
// setup.py compiles every csrc/cpu/*.cpp once per instruction set with -DTS_ISA=<name> and that set's flags; the kernel
// bodies live in namespace ts::TS_ISA. The baseline object alone (TS_GLUE=1) also holds what exists once: torch headers,
// schemas, registration. So no function compiled for AVX-512 can be picked by the linker for a machine without it.
//
// avx512_bf16 is AVX-512 with products of bfloat16 pairs: it holds the bfloat16 kernels alone, and where it is in use
// float32 and float64 run on the avx512 bodies. avx512_amx is the same with products of matrices on the matrix unit (amx.h).
// Under any other set bfloat16 tensors are computed in float32.
#pragma once

namespace ts {

enum class Isa : int { base = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, avx512_amx = 4 };

Isa isa_found();   // the best that both this machine and this build have
Isa isa_active();  // what the kernels use: the forced one, else the found one

// One row of the registry that torchsmith._native reports. Construct one, static, beside each kernel's registration.
struct Registered {
  Registered(const char* op, const char* backend, const char* dtypes);
};

}  // namespace ts

// The C interface of the CPU library, which the pybind11 module torchsmith._native calls.
extern "C" {
__attribute__((visibility("default"))) const char* ts_isa_found();
__attribute__((visibility("default"))) const char* ts_isa_active();
__attribute__((visibility("default"))) const char* ts_isa_built();             // comma-separated, e.g. "base,avx2,avx512"
__attribute__((visibility("default"))) int ts_isa_force(const char* name);     // "" undoes; 0 done, 1 unknown name, 2 not on this machine
__attribute__((visibility("default"))) int ts_threads();                       // what torch.get_num_threads() gives the kernels
__attribute__((visibility("default"))) const char* ts_registry();              // lines "op backend dtypes"
__attribute__((visibility("default"))) void ts_register(const char* op, const char* backend, const char* dtypes);  // for other libraries
}
