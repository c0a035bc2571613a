// The ops that can be called without torch's dispatcher (glue/direct.h), by name.
#ifdef TS_GLUE
#include "../glue/direct.h"

#include <cstring>

namespace ts::direct {
namespace {

std::vector<Op>& ops() {
  static auto* const all = new std::vector<Op>;  // filled by the static constructors of other files, in any order
  return *all;
}

}  // namespace

void add(const Op& op) { ops().push_back(op); }

}  // namespace ts::direct

// Called after the library was loaded: nothing is added any more.
const ts::direct::Op* ts_direct_op(const char* name) {
  for (const auto& op : ts::direct::ops())
    if (std::strcmp(op.name, name) == 0) return &op;
  return nullptr;
}
#endif
