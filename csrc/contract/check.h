// How a contract refuses: throws std::runtime_error; torch turns it into a RuntimeError.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ts {

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::runtime_error(message);
}

}  // namespace ts
