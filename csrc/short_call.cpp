// torchsmith._native.short_call: a call of a small op, straight to its kernel where its surroundings and tensors allow that,
// in C. The seven questions to torch and the call take 3 us from Python, twice that with cold caches, in which a small kernel
// is done. Only torch's Python attributes are read, as Python would read them: no torch header, no ABI.
#include <pybind11/pybind11.h>

#include <algorithm>

namespace py = pybind11;

namespace {

// What a function made below was given, in the order of its tuple `self`.
enum Given {
  kAutocast,
  kTransforms,
  kGradEnabled,
  kForwardAd,
  kCompiler,
  kElsewhere,
  kOnCuda,
  kLast,
  kKey,
  kTensors,
  kPlain,
  kRecorded,
  kTf32
};

struct Way {
  bool is_short = false, recorded = false, cuda = false;
};

// Whether a Python value is true; clears the error of one that was not to be had, which sends the call the long way.
bool holds(PyObject* value, bool otherwise) {
  const int truth = value ? PyObject_IsTrue(value) : -1;
  Py_XDECREF(value);
  if (truth < 0) PyErr_Clear();
  return truth < 0 ? otherwise : truth;
}

bool asks(PyObject* function, bool otherwise) { return holds(PyObject_CallNoArgs(function), otherwise); }

// torch.autograd.forward_ad's level is -1 outside of it.
bool forward_mode(PyObject* forward_ad) {
  static PyObject* const name = PyUnicode_InternFromString("_current_level");
  PyObject* const level = PyDict_GetItemWithError(forward_ad, name);  // borrowed
  const long value = level ? PyLong_AsLong(level) : 0;
  if (PyErr_Occurred()) PyErr_Clear();
  return value >= 0;
}

// What torch.compiler.is_compiling() reads: an export that runs the model's own Python.
bool compiling(PyObject* compiler) {
  static PyObject* const name = PyUnicode_InternFromString("_is_compiling_flag");
  PyObject* const flag = PyDict_GetItemWithError(compiler, name);  // borrowed
  Py_XINCREF(flag);
  return holds(flag, true);
}

Way way_of(PyObject* self, PyObject* name, PyObject* const* tensors, Py_ssize_t count) {
  static PyObject* const is_cpu = PyUnicode_InternFromString("is_cpu");
  static PyObject* const is_cuda = PyUnicode_InternFromString("is_cuda");
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  const auto given = [&](Given what) { return PyTuple_GET_ITEM(self, what); };
  if (compiling(given(kCompiler)) || asks(given(kAutocast), true) || asks(given(kTransforms), true) ||
      forward_mode(given(kForwardAd)))
    return {};
  Way way;
  bool grad = asks(given(kGradEnabled), true);
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (tensors[i] == Py_None) continue;
    if (way.cuda || !holds(PyObject_GetAttr(tensors[i], is_cpu), false)) {
      // The first decides; a CPU tensor among the others is the kernel's to refuse.
      if (!way.cuda && (i > 0 || PySet_Contains(given(kOnCuda), name) != 1)) return {};
      if (!holds(PyObject_GetAttr(tensors[i], is_cuda), false)) return {};
      way.cuda = true;
    }
    if (grad && holds(PyObject_GetAttr(tensors[i], requires_grad), false)) {
      way.recorded = true;
      grad = false;  // no need to ask the others
    }
  }
  way.is_short = true;
  return way;
}

// What explain() is told of a kernel's call: of a CPU kernel's the op's name alone, which costs nothing to make.
PyObject* noted(PyObject* name, bool cuda) {
  return cuda ? Py_BuildValue("(Oss)", name, "cpp", "cuda kernel") : Py_NewRef(name);
}

// The kernel's arguments, and for a CUDA kernel that takes it whether TF32 is allowed, which recorded calls ask themselves.
PyObject* computed(PyObject* self, const Way& way, PyObject* const* args, Py_ssize_t count) {
  const auto given = [&](Given what) { return PyTuple_GET_ITEM(self, what); };
  PyObject* const function = given(way.recorded ? kRecorded : kPlain);
  PyObject* const tf32 = given(kTf32);
  if (!way.cuda || way.recorded || tf32 == Py_None) return PyObject_Vectorcall(function, args, static_cast<size_t>(count), nullptr);
  constexpr Py_ssize_t kMost = 32;
  if (count >= kMost) return PyErr_Format(PyExc_TypeError, "short_call: more than %zd arguments", kMost);
  PyObject* const allowed = PyObject_CallOneArg(tf32, args[0]);
  if (!allowed) return nullptr;
  PyObject* all[kMost];
  std::copy(args, args + count, all);
  all[count] = allowed;
  PyObject* const result = PyObject_Vectorcall(function, all, static_cast<size_t>(count + 1), nullptr);
  Py_DECREF(allowed);
  return result;
}

// args: the op's name, then the kernel's arguments, tensors and Nones first.
PyObject* short_call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const auto given = [&](Given what) { return PyTuple_GET_ITEM(self, what); };
  const Py_ssize_t tensors = PyLong_AsSsize_t(given(kTensors));
  if (count <= tensors)
    return PyErr_Format(PyExc_TypeError, "short_call: expected the op's name and at least %zd tensors, got %zd arguments",
                        tensors, count);
  const int elsewhere = PySet_Contains(given(kElsewhere), args[0]);
  if (elsewhere < 0) return nullptr;
  const Way way = elsewhere ? Way{} : way_of(self, args[0], args + 1, tensors);
  if (!way.is_short) Py_RETURN_NONE;
  PyObject* const note = noted(args[0], way.cuda);
  const int failed = note ? PyObject_SetItem(given(kLast), given(kKey), note) : -1;
  Py_XDECREF(note);
  if (failed) return nullptr;
  PyObject* const result = computed(self, way, args + 1, count - 1);
  if (!result && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  if (!result || !PyTuple_CheckExact(result) || !PyTuple_GET_SIZE(result)) return result;
  PyObject* const first = Py_NewRef(PyTuple_GET_ITEM(result, 0));
  Py_DECREF(result);
  return first;
}

PyMethodDef definition = {"short_call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&short_call)),
                          METH_FASTCALL, "What the kernel returns, or None where the call has to go the long way."};

}  // namespace

void bind_short_call(py::module_& m) {
  m.def(
      "short_call",
      [](py::object autocast, py::object transforms, py::object grad_enabled, py::dict forward_ad, py::dict compiler,
         py::set elsewhere, py::set on_cuda, py::dict last, py::str key, py::int_ tensors, py::object plain,
         py::object recorded, py::object tf32) {
        const py::tuple state = py::make_tuple(autocast, transforms, grad_enabled, forward_ad, compiler, elsewhere, on_cuda, last,
                                               key, tensors, plain, recorded, tf32);
        PyObject* const function = PyCFunction_New(&definition, state.ptr());
        if (!function) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(function);
      },
      py::arg("autocast"), py::arg("transforms"), py::arg("grad_enabled"), py::arg("forward_ad"), py::arg("compiler"),
      py::arg("elsewhere"), py::arg("on_cuda"), py::arg("last"), py::arg("key"), py::arg("tensors"), py::arg("plain"),
      py::arg("recorded"), py::arg("tf32") = py::none(),
      "A function of an op's name and its kernel's arguments, of which the first `tensors` are tensors or None. It calls\n"
      "`recorded`, where autograd has to record, or `plain` with the arguments, notes the op in `last[key]` and returns the\n"
      "result, of a tuple the first. It returns None where the call has to go the long way: under autocast, a transform, forward\n"
      "mode or export, with what is no CPU tensor, or CUDA tensor of an op `on_cuda`, for an op among those `elsewhere`, and\n"
      "after a RuntimeError of the kernel. `tf32`, of the first tensor, is the last argument of `plain` for CUDA tensors.\n"
      "Given are the functions that tell of autocast, transforms and grad mode, and the dicts of torch.autograd.forward_ad and\n"
      "torch.compiler.");
}
