// torchsmith._native: everything native that is not a tensor op. Build facts, the CPU instruction set found and forced,
// threads, the registry of kernels, the launch plans of the CUDA kernels (plans/). Tensor ops are bound on the libtorch stable ABI in csrc/cpu; no torch header is
// included here, so this module is built per Python version and never per torch version.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "build_info.h"  // written by the build: TS_VERSION, TS_FLAGS, TS_TORCH_BUILT, TS_CUDA_ARCHS
#include "cpu/ceiling.h"
#include "cpu/isa.h"
#include "cpu/vmath_probe.h"

namespace py = pybind11;

void bind_plans(py::module_& m);       // plans/bind.cpp
void bind_short_call(py::module_& m);  // short_call.cpp
void bind_call_key(py::module_& m);    // call_key.cpp
void bind_direct(py::module_& m);      // direct.cpp

namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

std::vector<std::string> isa_built() { return split(ts_isa_built(), ','); }

// What force_isa takes on this machine: every set that is built, up to the best one found.
std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const auto& name : isa_built()) {
    names.push_back(name);
    if (name == ts_isa_found()) break;
  }
  return names;
}

[[noreturn]] void refuse_isa(const std::string& what, const std::string& name, bool known) {
  std::string allowed;
  for (const auto& one : isa_available()) allowed += (allowed.empty() ? "'" : ", '") + one + "'";
  throw py::value_error(what + "'" + name + "' " + (known ? "is not available on this machine" : "is not an instruction set") +
                        "; allowed here: " + allowed);
}

void force_isa(const std::optional<std::string>& name) {
  if (name && name->empty()) refuse_isa("isa ", "", false);
  if (const int rc = ts_isa_force(name ? name->c_str() : "")) refuse_isa("isa ", *name, rc == 2);
}

// The library ignores a TORCHSMITH_ISA it cannot honour; a person who sets it wants to hear so at once.
void check_environment() {
  const char* value = std::getenv("TORCHSMITH_ISA");
  if (!value || !*value) return;
  const int rc = ts_isa_force(value);
  ts_isa_force("");
  if (rc) refuse_isa("TORCHSMITH_ISA: ", value, rc == 2);
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

py::dict build_info() {
  py::dict info;
  info["version"] = TS_VERSION;
  info["compiler"] = compiler();
  info["flags"] = TS_FLAGS;
  info["torch"] = TS_TORCH_BUILT;
  info["torch_target"] = TS_TORCH_TARGET;
  info["python"] = PY_VERSION;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  info["isa"] = isa_built();
  info["cuda_archs"] = split(TS_CUDA_ARCHS, ' ');
  return info;
}

std::vector<py::dict> registry() {
  std::vector<py::dict> rows;
  for (const auto& line : split(ts_registry(), '\n')) {
    std::istringstream fields(line);
    std::string op, backend, dtypes;
    fields >> op >> backend;
    std::getline(fields >> std::ws, dtypes);
    for (auto& c : dtypes)
      if (c == ',') c = ' ';
    py::dict row;
    row["op"] = op;
    row["backend"] = backend;
    row["dtypes"] = split(dtypes, ' ');
    rows.push_back(row);
  }
  return rows;
}

py::bytes vector_math(const std::string& name, const py::buffer& values) {
  const char* const names[] = {"exp", "sigmoid", "tanh"};  // in the order of ts_vmath_float
  int which = 0;
  while (which < 3 && name != names[which]) ++which;
  if (which == 3) throw py::value_error("'" + name + "' is not a vector function; allowed: 'exp', 'sigmoid', 'tanh'");
  const py::buffer_info info = values.request();
  const bool wide = info.item_type_is_equivalent_to<double>();
  if (!wide && !info.item_type_is_equivalent_to<float>())
    throw py::type_error("vector_math takes a buffer of float32 or float64, got item format '" + info.format + "'");
  if (!PyBuffer_IsContiguous(info.view(), 'C'))
    throw py::value_error("vector_math takes a contiguous buffer");
  // Written before anyone else can see it, which is when a bytes object may be.
  const auto result = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, info.size * info.itemsize));
  if (!result) throw py::error_already_set();
  void* const out = PyBytes_AS_STRING(result.ptr());
  if (wide) ts_vmath_double(which, static_cast<const double*>(info.ptr), static_cast<double*>(out), info.size);
  else ts_vmath_float(which, static_cast<const float*>(info.ptr), static_cast<float*>(out), info.size);
  return result;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build facts, CPU instruction set, threads and the registry of kernels of torchsmith.";
  check_environment();
  m.def("build_info", &build_info,
        "Facts of this build: version, compiler, flags, torch built against and targeted, python, isa, cuda_archs.");
  m.def("isa_found", [] { return std::string(ts_isa_found()); }, "The best instruction set of this machine and build.");
  m.def("isa_active", [] { return std::string(ts_isa_active()); }, "The instruction set the CPU kernels use now.");
  m.def("isa_built", &isa_built, "Every instruction set this build holds, least first.");
  m.def("isa_available", &isa_available, "Every instruction set force_isa takes on this machine, least first.");
  m.def("force_isa", &force_isa, py::arg("name").none(true),
        "Use this instruction set from the next call on, in every thread; None goes back to TORCHSMITH_ISA or the best found.\n"
        "Raises ValueError, naming what is allowed, for a name that is unknown or not on this machine.");
  m.def("threads", &ts_threads, "The number of threads the CPU kernels may use: torch.get_num_threads().");
  m.def("vector_math", &vector_math, py::arg("name"), py::arg("values"),
        "exp, sigmoid or tanh of float32 or float64 numbers as the CPU kernels compute them, on the active instruction set.\n"
        "Takes a contiguous buffer of either (a NumPy array, array.array('f')); returns the bytes of as many results.");
  m.def("fma_ceiling", &ts_ceiling_fma, py::arg("seconds") = 0.1, py::call_guard<py::gil_scoped_release>(),
        "float32 GFLOP/s of one thread doing nothing but multiply-adds in registers, under the active instruction set:\n"
        "the best of short turns over about that many seconds. Releases the GIL.");
  m.def("registry", &registry, "Every native kernel: a list of {'op', 'backend', 'dtypes'}.");
  bind_plans(m);
  bind_short_call(m);
  bind_call_key(m);
  bind_direct(m);
}
