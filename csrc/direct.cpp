// torchsmith._native.direct: a native op called without torch's dispatcher. That takes 4 us from Python to a kernel and back,
// in which a small one is done several times over; here the tensors are looked at through DLPack's exchange API, the op's own
// glue runs on what it says (glue/direct.h), and the results become torch's tensors: 2 us. Whatever is not plain goes through
// torch as before. Such a result's memory is not torch's: it cannot be resized. No torch header, no ABI of torch.
#include <pybind11/pybind11.h>

#include <cstring>

#include "exchange.h"
#include "glue/direct_abi.h"

namespace py = pybind11;
using ts::direct::Value;

namespace {

constexpr Py_ssize_t kMostArguments = 24, kMostTensors = 64, kMostNumbers = 64;

struct State {
  const ts::direct::Op* op;
  const ts::dlpack::ExchangeAPI* api;
  PyTypeObject *tensor, *parameter;
  Py_ssize_t arguments;
  py::object otherwise, elsewhere, is_neg, keep;  // keep: the types
};

const State& state_of(PyObject* self) { return *static_cast<const State*>(PyCapsule_GetPointer(self, nullptr)); }

// What a call is made of, filled from Python's arguments; false where one of them has to go through torch.
class Call {
 public:
  explicit Call(const State& s) : s_(s) {}

  bool fill(PyObject* const* args, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < s_.arguments; ++i)
      if (!(i < count ? one(letter(i), args[i], values_[i]) : left_out(letter(i), values_[i]))) return false;
    return true;
  }
  const Value* values() const { return values_; }
  int64_t elements() const { return elements_; }  // of all tensors

 private:
  char letter(Py_ssize_t i) const { return s_.op->arguments[i]; }

  static bool left_out(char letter, Value& v) {  // every default of ours is False
    v.number = 0;
    return letter == 'b';
  }

  bool one(char letter, PyObject* given, Value& v) {
    switch (letter) {
      case '?':
        if (given == Py_None) return v.tensor = nullptr, true;
        [[fallthrough]];
      case 't': return v.tensor = tensors_ + tensor_count_, tensor(given);
      case 'b':
        v.number = given == Py_True;
        return PyBool_Check(given);
      case 'i': return number(given, v.number);
      case 'l': {
        if (!PyTuple_Check(given) && !PyList_CheckExact(given)) return false;  // torch.Size is a tuple
        v.numbers = {numbers_ + number_count_, PySequence_Fast_GET_SIZE(given)};
        if (number_count_ + v.numbers.count > kMostNumbers) return false;
        for (Py_ssize_t i = 0; i < v.numbers.count; ++i)
          if (!number(PySequence_Fast_GET_ITEM(given, i), numbers_[number_count_++])) return false;
        return true;
      }
      default: {  // 'w'
        if (!PyTuple_Check(given) && !PyList_CheckExact(given)) return false;
        v.tensors = {tensors_ + tensor_count_, PySequence_Fast_GET_SIZE(given)};
        for (Py_ssize_t i = 0; i < v.tensors.count; ++i)
          if (!tensor(PySequence_Fast_GET_ITEM(given, i))) return false;
        return true;
      }
    }
  }

  static bool number(PyObject* given, int64_t& to) {
    if (!PyLong_CheckExact(given)) return false;
    to = PyLong_AsLongLong(given);
    return to != -1 || !PyErr_Occurred();
  }

  // A subclass may be something else than the memory it lies in, and so is a tensor whose values are negated when read.
  bool tensor(PyObject* given) {
    if ((Py_TYPE(given) != s_.tensor && Py_TYPE(given) != s_.parameter) || tensor_count_ == kMostTensors) return false;
    ts::dlpack::Tensor& t = tensors_[tensor_count_++];
    if (s_.api->look(given, &t) || t.device_type != ts::dlpack::kCPU) return false;
    const int64_t elements = ts::dlpack::elements(t);
    if (elements > ts::direct::kMostElements || (elements > 0 && !t.data)) return false;  // wrappers and zero tensors hold none
    elements_ += elements;
    if (t.bits == 16 && elements > ts::direct::kMostCast) return false;
    PyObject* const negated = PyObject_CallOneArg(s_.is_neg.ptr(), given);
    Py_XDECREF(negated);
    return negated == Py_False;
  }

  const State& s_;
  Value values_[kMostArguments];
  ts::dlpack::Tensor tensors_[kMostTensors];
  int64_t numbers_[kMostNumbers];
  Py_ssize_t tensor_count_ = 0, number_count_ = 0;
  int64_t elements_ = 0;
};

bool is_elsewhere(const State& s) {
  PyObject* const questions = s.elsewhere.ptr();
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(questions); ++i) {
    PyObject* const answer = PyObject_CallNoArgs(PyTuple_GET_ITEM(questions, i));
    const int holds = answer ? PyObject_IsTrue(answer) : 1;
    Py_XDECREF(answer);
    if (holds) return true;
  }
  return false;
}

// torch's tensor of each result in turn; null after an error, when the rest is freed.
class Made {
 public:
  Made(const State& s, ts::direct::Returned& r) : s_(s), r_(r) {}
  ~Made() {
    for (; next_ < r_.count; ++next_) r_.tensors[next_]->deleter(r_.tensors[next_]);
  }
  PyObject* next() {
    void* object = nullptr;
    return s_.api->to_object(r_.tensors[next_++], &object) ? nullptr : static_cast<PyObject*>(object);
  }
  PyObject* all() {
    const char* letters = s_.op->results;
    if (*letters != '(') return next();
    const auto count = static_cast<Py_ssize_t>(std::strlen(++letters));
    py::object tuple = py::reinterpret_steal<py::object>(PyTuple_New(count));
    for (Py_ssize_t i = 0; tuple && i < count; ++i) {
      PyObject* const one = letters[i] == 'w' ? list(r_.count - next_ - (count - i - 1)) : next();
      if (!one) return nullptr;
      PyTuple_SET_ITEM(tuple.ptr(), i, one);
    }
    return tuple.release().ptr();
  }

 private:
  PyObject* list(Py_ssize_t count) {
    py::object made = py::reinterpret_steal<py::object>(PyList_New(count));
    for (Py_ssize_t i = 0; made && i < count; ++i) {
      PyObject* const one = next();
      if (!one) return nullptr;
      PyList_SET_ITEM(made.ptr(), i, one);
    }
    return made.release().ptr();
  }

  const State& s_;
  ts::direct::Returned& r_;
  int next_ = 0;
};

PyObject* straight(const State& s, PyObject* const* args, Py_ssize_t count) {
  if (count > s.arguments || is_elsewhere(s)) return nullptr;
  Call call(s);
  ts::direct::Returned returned;
  if (!call.fill(args, count)) return nullptr;
  constexpr int64_t kFew = 4096;  // done sooner than another thread would have begun
  PyThreadState* const thread = call.elements() > kFew ? PyEval_SaveThread() : nullptr;
  const bool done = s.op->call(call.values(), returned) == 0;
  if (thread) PyEval_RestoreThread(thread);
  if (!done) return nullptr;
  return Made(s, returned).all();
}

PyObject* direct(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const State& s = state_of(self);
  if (PyObject* const result = straight(s, args, count)) return result;
  PyErr_Clear();
  return PyObject_Vectorcall(s.otherwise.ptr(), args, static_cast<size_t>(count), nullptr);
}

PyMethodDef definition = {"direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&direct)), METH_FASTCALL,
                          "The native op, through torch only where the call needs it."};

py::object make(const std::string& name, py::object otherwise, const py::type& tensor, const py::type& parameter,
                const py::tuple& elsewhere) {
  const ts::direct::Op* const op = ts_direct_op(name.c_str());
  const ts::dlpack::ExchangeAPI* const api = ts::exchange_api(tensor);
  if (!op || !api) return otherwise;
  const auto type = [](const py::type& t) { return reinterpret_cast<PyTypeObject*>(t.ptr()); };
  const auto arguments = static_cast<Py_ssize_t>(std::strlen(op->arguments));
  if (arguments > kMostArguments) return otherwise;
  auto* const state = new State{op, api, type(tensor), type(parameter), arguments, std::move(otherwise), elsewhere,
                                tensor.attr("is_neg"), py::make_tuple(tensor, parameter)};
  const py::capsule self(state, [](void* p) { delete static_cast<State*>(p); });
  return py::reinterpret_steal<py::object>(PyCFunction_New(&definition, self.ptr()));
}

}  // namespace

void bind_direct(py::module_& m) {
  m.def("direct", &make, py::arg("name"), py::arg("otherwise"), py::arg("tensor"), py::arg("parameter"), py::arg("elsewhere"),
        "The native op `name` as a function of its positional arguments that does without torch's dispatcher where it may:\n"
        "for small CPU tensors of the types `tensor` and `parameter` themselves. `otherwise` is called with\n"
        "the same arguments where it may not, where one of the functions `elsewhere` gives what is true, and where the op\n"
        "refuses. Autograd must not be about to record the call. `otherwise` is returned where torch has no exchange API.");
}
