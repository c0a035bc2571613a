// torchsmith._native.short_call: a call of a small op, straight to its kernel where its surroundings and tensors allow that,
// in C. The seven questions to torch and the call take 3 us from Python, twice that with cold caches, in which a small kernel
// is done. Only torch's Python attributes are read, as Python would read them: no torch header, no ABI.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

// What a function made below was given, in the order of its tuple `self`.
enum Given { kAutocast, kTransforms, kGradEnabled, kForwardAd, kCompiler, kElsewhere, kLast, kKey, kTensors, kPlain, kRecorded };

enum class Way { long_one, plain, recorded };

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

Way way_of(PyObject* self, PyObject* const* tensors, Py_ssize_t count) {
  static PyObject* const is_cpu = PyUnicode_InternFromString("is_cpu");
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  const auto given = [&](Given what) { return PyTuple_GET_ITEM(self, what); };
  if (compiling(given(kCompiler)) || asks(given(kAutocast), true) || asks(given(kTransforms), true) ||
      forward_mode(given(kForwardAd)))
    return Way::long_one;
  bool recorded = false, grad = asks(given(kGradEnabled), true);
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (tensors[i] == Py_None) continue;
    if (!holds(PyObject_GetAttr(tensors[i], is_cpu), false)) return Way::long_one;
    if (grad && holds(PyObject_GetAttr(tensors[i], requires_grad), false)) {
      recorded = true;
      grad = false;  // no need to ask the others
    }
  }
  return recorded ? Way::recorded : Way::plain;
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
  const Way way = elsewhere ? Way::long_one : way_of(self, args + 1, tensors);
  if (way == Way::long_one) Py_RETURN_NONE;
  if (PyObject_SetItem(given(kLast), given(kKey), args[0])) return nullptr;
  PyObject* const result = PyObject_Vectorcall(given(way == Way::recorded ? kRecorded : kPlain), args + 1,
                                               static_cast<size_t>(count - 1), nullptr);
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
         py::set elsewhere, py::dict last, py::str key, py::int_ tensors, py::object plain, py::object recorded) {
        const py::tuple state = py::make_tuple(autocast, transforms, grad_enabled, forward_ad, compiler, elsewhere, last, key,
                                               tensors, plain, recorded);
        PyObject* const function = PyCFunction_New(&definition, state.ptr());
        if (!function) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(function);
      },
      py::arg("autocast"), py::arg("transforms"), py::arg("grad_enabled"), py::arg("forward_ad"), py::arg("compiler"),
      py::arg("elsewhere"), py::arg("last"), py::arg("key"), py::arg("tensors"), py::arg("plain"), py::arg("recorded"),
      "A function of an op's name and its kernel's arguments, of which the first `tensors` are tensors or None. It calls\n"
      "`recorded`, where autograd has to record, or `plain` with the arguments, notes the op in `last[key]` and returns the\n"
      "result, of a tuple the first. It returns None where the call has to go the long way: under autocast, a transform, forward\n"
      "mode or export, with what is no CPU tensor, for an op among those `elsewhere`, and after a RuntimeError of the kernel.\n"
      "Given are the functions that tell of autocast, transforms and grad mode, and the dicts of torch.autograd.forward_ad and\n"
      "torch.compiler.");
}
