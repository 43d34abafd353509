// From flags known at run time to kernels compiled for each of them.
// Included by kernels.cpp and slstm_kernels.cpp inside the namespace of one instruction set.

// Calls function(flag, ...) with each flag as a compile-time constant.
template <class F>
auto with_flags(F function) {
  return function();
}
template <class F, class... Flags>
auto with_flags(F function, bool first, Flags... rest) {
  const auto others = [&](auto flag) {
    return with_flags([&](auto... more) { return function(flag, more...); }, rest...);
  };
  return first ? others(std::true_type{}) : others(std::false_type{});
}
