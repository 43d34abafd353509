// The state of one row where the forward loop holds it, and its ways in and out. Called by layer_forward.cpp.
#pragma once
#include <algorithm>

#include "panels.h"

namespace fastlstm {

// Elements of a row's state between two windows: [h | c], each to whole vectors.
inline int64_t state_size(const Shape& shape, const Layout& layout) {
  return round_up(shape.output(), layout.lanes) + layout.units;
}

template <class T>
struct RowState {
  const Shape& shape;
  const Layout& layout;
  T* h;  // [output, to whole vectors]
  T* c;  // [blocks][lanes], blocks c_stride apart
  int64_t c_stride;

  // h0 [output], c0 [H]; null: zero.
  void begin(const T* h0, const T* c0) const {
    std::fill_n(h, h_size(), T(0));
    if (h0) std::copy_n(h0, shape.output(), h);
    for_blocks([&](T* block, int64_t unit, int64_t n) {
      std::fill_n(block, layout.lanes, T(0));
      if (c0) std::copy_n(c0 + unit, n, block);
    });
  }
  // h_n [output], c_n [H].
  void end(T* h_n, T* c_n) const {
    std::copy_n(h, shape.output(), h_n);
    for_blocks([&](const T* block, int64_t unit, int64_t n) { std::copy_n(block, n, c_n + unit); });
  }

  // from, to: [state_size].
  void resume(const T* from) const {
    std::copy_n(from, h_size(), h);
    for_blocks([&](T* block, int64_t unit, int64_t) { std::copy_n(from + h_size() + unit, layout.lanes, block); });
  }
  void leave(T* to) const {
    std::copy_n(h, h_size(), to);
    for_blocks([&](const T* block, int64_t unit, int64_t) { std::copy_n(block, layout.lanes, to + h_size() + unit); });
  }

 private:
  int64_t h_size() const { return round_up(shape.output(), layout.lanes); }

  // function(block, unit, n) for each block of c: its n units from `unit` on lie there.
  template <class Function>
  void for_blocks(Function function) const {
    T* block = c;
    for (int64_t unit = 0; unit < shape.H; unit += layout.lanes, block += c_stride)
      function(block, unit, std::min(layout.lanes, shape.H - unit));
  }
};

}  // namespace fastlstm
