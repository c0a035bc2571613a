// torchsmith._native.call_way: what a call's surroundings and tensors let it do, asked in C. Seven questions to torch from
// Python take 1.5 us, twice that with cold caches, and a small kernel is done in 3. Only torch's Python attributes are read,
// as Python would read them: no torch header, no ABI.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

enum Way : long { kLong = 0, kPlain = 1, kRecorded = 2 };  // dispatch.py: LONG, PLAIN, RECORDED

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

// self: what the closure below was given, in its order; args: the op's name, then tensors and Nones.
PyObject* call_way(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  static PyObject* const is_cpu = PyUnicode_InternFromString("is_cpu");
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  const auto given = [&](int i) { return PyTuple_GET_ITEM(self, i); };
  if (count < 1) return PyErr_Format(PyExc_TypeError, "call_way: the op's name is needed");
  const int elsewhere = PySet_Contains(given(4), args[0]);
  if (elsewhere < 0) return nullptr;
  if (elsewhere || asks(given(0), true) || asks(given(1), true) || forward_mode(given(3))) return PyLong_FromLong(kLong);
  bool recorded = false, grad = asks(given(2), true);
  for (Py_ssize_t i = 1; i < count; ++i) {
    if (args[i] == Py_None) continue;
    if (!holds(PyObject_GetAttr(args[i], is_cpu), false)) return PyLong_FromLong(kLong);
    if (grad && holds(PyObject_GetAttr(args[i], requires_grad), false)) {
      recorded = true;
      grad = false;  // no need to ask the others
    }
  }
  if (PyObject_SetItem(given(5), given(6), args[0])) return nullptr;
  return PyLong_FromLong(recorded ? kRecorded : kPlain);
}

PyMethodDef definition = {"call_way", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_way)), METH_FASTCALL,
                          "0: the long way, 1: straight to the kernel, 2: to the kernel, and autograd records the call."};

}  // namespace

void bind_call_way(py::module_& m) {
  m.def(
      "call_way",
      [](py::object autocast, py::object transforms, py::object grad_enabled, py::dict forward_ad, py::set elsewhere,
         py::dict last, py::str key) {
        const py::tuple state = py::make_tuple(autocast, transforms, grad_enabled, forward_ad, elsewhere, last, key);
        PyObject* const function = PyCFunction_New(&definition, state.ptr());
        if (!function) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(function);
      },
      py::arg("autocast"), py::arg("transforms"), py::arg("grad_enabled"), py::arg("forward_ad"), py::arg("elsewhere"),
      py::arg("last"), py::arg("key"),
      "A function of an op's name, its tensors and Nones that tells how the call may go: 0 the long way (autocast, a transform\n"
      "or forward mode is on, not all are CPU tensors, or the op is among those `elsewhere`), 1 straight to the kernel, 2\n"
      "likewise but recorded by autograd. Of the last two it notes the op in `last[key]`. Given are the functions that tell of\n"
      "autocast, transforms and grad mode, and the dict of torch.autograd.forward_ad.");
}
