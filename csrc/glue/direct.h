// Calls of CPU ops that do without torch's dispatcher, whose 4 us are most of what a small op takes. torchsmith._native hands
// the arguments over as DLPack's structs; the op's own glue runs on Views of them.
//
//   static const ts::Direct<&ts::linear_forward<ts::View>> direct{"linear_forward"};
#pragma once

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "direct_abi.h"
#include "view.h"

namespace ts::direct {

template <class T>
struct Argument;
template <>
struct Argument<View> {
  static constexpr char kLetter = 't';
  static View of(const Value& v, Results& r) { return {*v.tensor, r}; }
};
template <>
struct Argument<std::optional<View>> {
  static constexpr char kLetter = '?';
  static std::optional<View> of(const Value& v, Results& r) {
    return v.tensor ? std::optional<View>({*v.tensor, r}) : std::nullopt;
  }
};
template <>
struct Argument<std::vector<View>> {
  static constexpr char kLetter = 'w';
  static std::vector<View> of(const Value& v, Results& r) {
    std::vector<View> views;
    views.reserve(v.tensors.count);
    for (int64_t i = 0; i < v.tensors.count; ++i) views.emplace_back(v.tensors.data[i], r);
    return views;
  }
};
template <>
struct Argument<bool> {
  static constexpr char kLetter = 'b';
  static bool of(const Value& v, Results&) { return v.number; }
};
template <>
struct Argument<int64_t> {
  static constexpr char kLetter = 'i';
  static int64_t of(const Value& v, Results&) { return v.number; }
};
template <>
struct Argument<std::vector<int64_t>> {
  static constexpr char kLetter = 'l';
  static std::vector<int64_t> of(const Value& v, Results&) { return {v.numbers.data, v.numbers.data + v.numbers.count}; }
};

inline void give(Returned& to, Results& from, const View& v) {
  if (to.count == kMostResults) throw Unfit{};
  to.tensors[to.count++] = from.take(v);
}
inline void give(Returned& to, Results& from, const std::vector<View>& views) {
  for (const View& v : views) give(to, from, v);
}
template <class... Each>
void give(Returned& to, Results& from, const std::tuple<Each...>& each) {
  std::apply([&](const auto&... one) { (give(to, from, one), ...); }, each);
}

template <class T>
struct Result {
  static constexpr char kLetters[] = {Argument<T>::kLetter, 0};
};
template <class... Each>
struct Result<std::tuple<Each...>> {
  static constexpr char kLetters[] = {'(', Argument<Each>::kLetter..., 0};
};

template <class R, class... Each>
struct Signature {
  static constexpr char kArguments[] = {Argument<std::decay_t<Each>>::kLetter..., 0};
  static constexpr const char* kResults = Result<R>::kLetters;

  template <auto function>
  static int call(const Value* arguments, Returned& returned) noexcept {
    try {
      Results results;
      [&]<size_t... i>(std::index_sequence<i...>) {
        give(returned, results, function(Argument<std::decay_t<Each>>::of(arguments[i], results)...));
      }(std::index_sequence_for<Each...>{});
      return 0;
    } catch (...) {  // errors, too: torch's call meets them again and says them
      for (int i = 0; i < returned.count; ++i) returned.tensors[i]->deleter(returned.tensors[i]);
      return 1;
    }
  }
};
template <class R, class... Each>
Signature<R, Each...> signature(R (*)(Each...));

void add(const Op& op);  // direct.cpp

}  // namespace ts::direct

namespace ts {

template <auto function>
struct Direct {
  explicit Direct(const char* name) {
    using Of = decltype(direct::signature(function));
    direct::add({name, Of::kArguments, Of::kResults, &Of::template call<function>});
  }
};

}  // namespace ts
