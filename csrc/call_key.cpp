// torchsmith._native.call_key: a number that is the same for calls that the table of measurements (tuned.py) describes alike,
// found in a microsecond. A description takes ten, and the same key in Python three: a small kernel is done by then, and its
// dozens of objects are out of the cache after a large one. As in short_call.cpp, only torch's Python attributes are read.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

namespace py = pybind11;

namespace {

struct Names {
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* device = PyUnicode_InternFromString("device");
  PyObject* data = PyUnicode_InternFromString("data");
  PyObject* batch_sizes = PyUnicode_InternFromString("batch_sizes");
  PyObject* zero = PyLong_FromLong(0);
};

const Names& names() {
  static const Names all;
  return all;
}

// Any error of Python's is left set and thrown as this; call_key hands it on.
py::object own(PyObject* value) {
  if (!value) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

bool truth(PyObject* value) {
  const int is = PyObject_IsTrue(own(value).ptr());
  if (is < 0) throw py::error_already_set();
  return is;
}

class Key {
 public:
  Key(bool grad, PyObject* packed) : grad_(grad), packed_(packed) { mix(grad); }

  void add(PyObject* value) {
    if (value == Py_None) return mix(1);
    if (PyTuple_CheckExact(value) || PyList_CheckExact(value)) {
      mix(2 + 4 * PySequence_Fast_GET_SIZE(value));
      for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); ++i) add(PySequence_Fast_GET_ITEM(value, i));
    } else if (PyType_IsSubtype(Py_TYPE(value), reinterpret_cast<PyTypeObject*>(packed_))) {
      const py::object sizes = own(PyObject_GetAttr(value, names().batch_sizes));
      const py::object first = own(PyObject_GetItem(sizes.ptr(), names().zero));
      mix(3);
      mix(own(PyNumber_Long(first.ptr())));
      mix(PyObject_Size(sizes.ptr()));
      tensor(own(PyObject_GetAttr(value, names().data)).ptr());
    } else {
      tensor(value);
    }
  }

  void mix(const py::object& value) { mix(value.ptr()); }
  void mix(PyObject* value) {
    const Py_hash_t hash = PyObject_Hash(value);
    if (hash == -1) throw py::error_already_set();
    mix(hash);
  }
  void mix(Py_ssize_t value) {  // an odd factor and a shift: every bit of what came before moves the upper half, and comes down
    bits_ = (bits_ ^ static_cast<size_t>(value)) * size_t{0x9E3779B97F4A7C15};
    bits_ ^= bits_ >> 29;
  }

  PyObject* number() const { return PyLong_FromSize_t(bits_); }

 private:
  void tensor(PyObject* t) {
    mix(own(PyObject_GetAttr(t, names().shape)));
    // What lies as usual needs no strides: a tuple less to make.
    if (truth(PyObject_CallMethodNoArgs(t, names().is_contiguous))) mix(4);
    else mix(own(PyObject_CallMethodNoArgs(t, names().stride)));
    if (grad_) mix(truth(PyObject_GetAttr(t, names().requires_grad)));
    if (first_) {  // the others of a call have its dtype and device, or the op refuses it
      first_ = false;
      mix(own(PyObject_GetAttr(t, names().dtype)));
      if (!truth(PyObject_GetAttr(t, names().is_cpu))) mix(own(PyObject_GetAttr(t, names().device)));
    }
  }

  size_t bits_ = 0;
  bool grad_, first_ = true;
  PyObject* packed_;
};

// self: the type PackedSequence; args: whether autograd is on, the tensors, the other arguments.
PyObject* call_key(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) return PyErr_Format(PyExc_TypeError, "call_key: expected grad, tensors and others, got %zd arguments", count);
  try {
    Key key(args[0] == Py_True, self);
    key.add(args[1]);
    key.mix(args[2]);
    key.mix(ts_threads());
    return key.number();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

PyMethodDef definition = {"call_key", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_key)), METH_FASTCALL,
                          "The key of a call: of whether autograd is on, its tensors and its other arguments."};

}  // namespace

void bind_call_key(py::module_& m) {
  m.def(
      "call_key",
      [](const py::type& packed) { return own(PyCFunction_New(&definition, packed.ptr())); }, py::arg("packed"),
      "A function of (grad, tensors, others) that gives the key of a call: tensors, Nones, packed sequences (of the type\n"
      "`packed`) and lists of them, by shape, strides, need of a gradient if `grad`, the first one's dtype and device; the other\n"
      "arguments by hash (TypeError where they have none); and the number of threads.");
}
