// The Python side of plans.h: _native.cuda_plan and _native.cuda_planned.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "plans.h"

namespace py = pybind11;

namespace {

using namespace ts::plans;

Value value_of(const py::handle& v);

Shape shape_of(const py::handle& v) {
  const auto fields = v.cast<py::dict>();
  return {fields["sizes"].cast<Ints>(), fields["strides"].cast<Ints>(), fields["dtype"].cast<std::string>()};
}

Value value_of(const py::handle& v) {
  if (v.is_none()) return std::monostate{};
  if (py::isinstance<py::bool_>(v)) return v.cast<bool>();
  if (py::isinstance<py::int_>(v)) return v.cast<int64_t>();
  if (py::isinstance<py::float_>(v)) return v.cast<double>();
  if (py::isinstance<py::dict>(v)) return shape_of(v);
  const auto items = v.cast<py::list>();
  if (items.empty() || !py::isinstance<py::dict>(items[0])) return items.cast<Ints>();
  Shapes shapes;
  for (const auto& item : items) shapes.push_back(shape_of(item));
  return shapes;
}

std::vector<std::string> planned() {
  std::vector<std::string> names;
  for (const auto& [name, explain] : table()) names.push_back(name);
  return names;
}

py::list plan(const std::string& op, const py::list& arguments, int sm, int multiprocessors, int shared_limit) {
  const auto found = table().find(op);
  if (found == table().end()) {
    std::string known;
    for (const auto& name : planned()) known += (known.empty() ? "'" : ", '") + name + "'";
    throw py::value_error("'" + op + "' has no plan; there are: " + known);
  }
  Call call;
  for (const auto& argument : arguments) call.arguments.push_back(value_of(argument));
  Steps steps;
  found->second(call, {sm, multiprocessors, shared_limit}, steps);
  py::list result;
  for (const Step& s : steps.all) {
    py::dict one;
    one["product"] = s.product;
    one["kernel"] = s.launch.kernel;
    one["grid"] = py::make_tuple(s.launch.grid.x, s.launch.grid.y, s.launch.grid.z);
    one["threads"] = s.launch.block.x * s.launch.block.y * s.launch.block.z;
    one["shared"] = s.launch.shared;
    one["cooperative"] = s.launch.cooperative;
    one["arithmetic"] = s.work.arithmetic;
    one["flops"] = s.work.flops;
    one["bytes"] = s.work.bytes;
    result.append(one);
  }
  return result;
}

}  // namespace

void bind_plans(py::module_& m) {
  m.def("cuda_planned", &planned, "The native ops whose CUDA launches cuda_plan knows.");
  m.def("cuda_plan", &plan, py::arg("op"), py::arg("arguments"), py::arg("sm"), py::arg("multiprocessors"), py::arg("shared_limit"),
        "The CUDA launches of one call of a native op, which are not made: no GPU is needed. Tensors among the arguments are\n"
        "{'sizes', 'strides', 'dtype'}; sm is 10 * major + minor, shared_limit the bytes of shared memory a block may have.\n"
        "A list of {'product', 'kernel', 'grid', 'threads', 'shared', 'cooperative', 'arithmetic', 'flops', 'bytes'}.");
}
