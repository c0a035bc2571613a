// DLPack's exchange API of torch's tensors, for torchsmith._native: looking at a tensor takes 30 ns and no torch header.
#pragma once

#include <pybind11/pybind11.h>

#include "glue/dlpack.h"

namespace ts {

// Null where torch has none.
inline const dlpack::ExchangeAPI* exchange_api(const pybind11::type& tensor) {
  const pybind11::object capsule = pybind11::getattr(tensor, "__dlpack_c_exchange_api__", pybind11::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* api = static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api && api->major != 1) api = api->previous;
  return api && api->look ? api : nullptr;
}

}  // namespace ts
