// torchsmith._native.call_key: a number that is the same for calls that the table of measurements (tuned.py) describes alike,
// found in half a microsecond. A description takes ten, and the same key in Python three: a small kernel is done by then, and
// its dozens of objects are out of the cache after a large one. _native.remembered answers a call that was asked before by it.
// A tensor's sizes come from DLPack's exchange API where torch has it, which makes no Python object of them; else, and for
// what that refuses, from the tensor's Python attributes. No torch header, no ABI of torch.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"
#include "exchange.h"

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

// What does not change from call to call: borrowed from the tuple `self` of a function made below, which keeps them.
struct Torch {
  PyObject *packed, *tensor, *parameter, *grad_enabled;
  const ts::dlpack::ExchangeAPI* api;  // null where torch has none
  Py_ssize_t most;                     // answers to keep
};
enum Given { kTorch, kPacked, kTensor, kParameter, kGradEnabled, kAnswers, kSlow, kWithoutGrad };

const Torch& torch_of(PyObject* self) {
  return *static_cast<const Torch*>(PyCapsule_GetPointer(PyTuple_GET_ITEM(self, kTorch), nullptr));
}

class Key {
 public:
  Key(bool grad, const Torch& torch) : grad_(grad), torch_(torch) { mix(grad); }

  void add(PyObject* value) {
    if (value == Py_None) return mix(1);
    if (PyTuple_CheckExact(value) || PyList_CheckExact(value)) {
      mix(2 + 4 * PySequence_Fast_GET_SIZE(value));
      for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); ++i) add(PySequence_Fast_GET_ITEM(value, i));
    } else if (PyType_IsSubtype(Py_TYPE(value), reinterpret_cast<PyTypeObject*>(torch_.packed))) {
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
  // Only of tensors whose type is torch's own: a subclass may be something else than the memory it lies in. DLPack hands out
  // a pointer too, so that a lazy clone (torch._lazy_clone) becomes a real one here.
  bool look(PyObject* t, ts::dlpack::Tensor& found) {
    PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(t));
    if (!torch_.api || (type != torch_.tensor && type != torch_.parameter)) return false;
    if (!torch_.api->look(t, &found)) return true;
    PyErr_Clear();  // not on a device of DLPack's, or not strided
    return false;
  }

  void tensor(PyObject* t) {
    ts::dlpack::Tensor found;
    if (!look(t, found)) return attributes(t);
    bool contiguous = true;
    int64_t inner = 1;
    mix(static_cast<Py_ssize_t>(found.ndim));
    for (int32_t d = found.ndim; d-- > 0;) {
      mix(static_cast<Py_ssize_t>(found.shape[d]));
      contiguous &= found.shape[d] == 1 || found.strides[d] == inner;
      inner *= found.shape[d];
    }
    if (contiguous) mix(4);
    else
      for (int32_t d = 0; d < found.ndim; ++d) mix(static_cast<Py_ssize_t>(found.strides[d]));
    if (grad_) mix(truth(PyObject_GetAttr(t, names().requires_grad)));
    if (first_) {
      first_ = false;
      mix(found.code << 24 | found.bits << 16 | found.lanes);
      if (found.device_type != ts::dlpack::kCPU) mix(static_cast<Py_ssize_t>(found.device_type) << 32 | found.device_id);
    }
  }

  void attributes(PyObject* t) {
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
  const Torch& torch_;
};

// The key of a call, of whether autograd is on, its tensors and its other arguments. Throws what Python raised.
PyObject* key_of(const Torch& torch, bool grad, PyObject* tensors, PyObject* others) {
  Key key(grad, torch);
  key.add(tensors);
  key.mix(others);
  key.mix(ts_threads());
  return key.number();
}

// args: whether autograd is on, the tensors, the other arguments.
PyObject* call_key(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) return PyErr_Format(PyExc_TypeError, "call_key: expected grad, tensors and others, got %zd arguments", count);
  try {
    return key_of(torch_of(self), args[0] == Py_True, args[1], args[2]);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

// args: the tensors, the other arguments. An answer is kept under the call's key; what has no key is asked for each time.
PyObject* remembered(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "expected tensors and others, got %zd arguments", count);
  PyObject* const answers = PyTuple_GET_ITEM(self, kAnswers);
  py::object key;
  try {
    const Torch& torch = torch_of(self);
    const bool grad = truth(PyObject_CallNoArgs(torch.grad_enabled));
    if (!grad && PyTuple_GET_ITEM(self, kWithoutGrad) == Py_False) return PyUnicode_New(0, 0);
    key = own(key_of(torch, grad, args[0], args[1]));
    if (PyObject* const found = PyDict_GetItemWithError(answers, key.ptr())) return Py_NewRef(found);
  } catch (py::error_already_set&) {
    key = {};
  }
  py::object answer = py::reinterpret_steal<py::object>(PyObject_Vectorcall(PyTuple_GET_ITEM(self, kSlow), args, 2, nullptr));
  if (!answer || !key) return answer.release().ptr();
  if (PyDict_GET_SIZE(answers) >= torch_of(self).most) PyDict_Clear(answers);  // lengths that never repeat
  if (PyDict_SetItem(answers, key.ptr(), answer.ptr())) return nullptr;
  return answer.release().ptr();
}

PyMethodDef key_definition = {"call_key", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_key)), METH_FASTCALL,
                              "The key of a call: of whether autograd is on, its tensors and its other arguments."};
PyMethodDef remembered_definition = {"remembered", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&remembered)),
                                     METH_FASTCALL, "What was answered for such a call, of (tensors, others)."};

py::object made(PyMethodDef& definition, const py::type& packed, const py::type& tensor, const py::type& parameter,
                const py::object& grad_enabled, const py::object& slow, bool without_grad, Py_ssize_t most) {
  const auto* api = ts::exchange_api(tensor);
  auto* const torch = new Torch{packed.ptr(), tensor.ptr(), parameter.ptr(), grad_enabled.ptr(), api, most};
  const py::capsule owner(torch, [](void* p) { delete static_cast<Torch*>(p); });
  const py::tuple state = py::make_tuple(owner, packed, tensor, parameter, grad_enabled, py::dict(), slow, without_grad);
  return own(PyCFunction_New(&definition, state.ptr()));
}

}  // namespace

void bind_call_key(py::module_& m) {
  m.def(
      "call_key",
      [](const py::type& packed, const py::type& tensor, const py::type& parameter) {
        return made(key_definition, packed, tensor, parameter, py::none(), py::none(), true, 0);
      },
      py::arg("packed"), py::arg("tensor"), py::arg("parameter"),
      "A function of (grad, tensors, others) that gives the key of a call: tensors, Nones, packed sequences (of the type\n"
      "`packed`) and lists of them, by shape, strides, need of a gradient if `grad`, the first one's dtype and device; the other\n"
      "arguments by hash (TypeError where they have none); and the number of threads. `tensor` and `parameter` are torch's types.");
  m.def(
      "remembered",
      [](const py::type& packed, const py::type& tensor, const py::type& parameter, const py::object& grad_enabled,
         const py::object& slow, bool without_grad, Py_ssize_t most) {
        return made(remembered_definition, packed, tensor, parameter, grad_enabled, slow, without_grad, most);
      },
      py::arg("packed"), py::arg("tensor"), py::arg("parameter"), py::arg("grad_enabled"), py::arg("slow"),
      py::arg("without_grad"), py::arg("most"),
      "A function of (tensors, others) that gives what slow(tensors, others) gave for a call with the same key, of `most` calls\n"
      "at a time; \"\" at once for calls while autograd is off, unless `without_grad`. `grad_enabled` tells of that.");
}
