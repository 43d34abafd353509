#include "timelines.h"

#include <algorithm>
#include <numeric>

namespace fastlstm {
namespace {

struct Marks {
  const StepMarks& marks;
  int64_t B;

  bool inside(int64_t t, int64_t b) const { return !marks.lengths || t < marks.lengths[b]; }
  bool counts(int64_t t, int64_t b) const { return inside(t, b) && (!marks.mask || marks.mask[t * B + b]); }
  bool resets(int64_t t, int64_t b) const { return marks.reset && marks.reset[t * B + b] && inside(t, b); }
};

}  // namespace

Buffer<uint8_t> step_flags(int64_t T, int64_t B, const StepMarks& marks) {
  if (!marks.lengths && !marks.mask && !marks.reset) return {};
  const Marks at{marks, B};
  Buffer<uint8_t> flags(size_product(T, B));
  for (int64_t t = 0; t < T; ++t)
    for (int64_t b = 0; b < B; ++b)
      flags.data()[t * B + b] = uint8_t((at.counts(t, b) ? 0 : kHeld) | (at.resets(t, b) ? kCut : 0));
  return flags;
}

Timelines::Timelines(int64_t T, int64_t B, const StepMarks& marks, int64_t directions) : order_(B) {
  std::iota(order_.data(), order_.data() + B, int64_t(0));
  const bool marked = marks.lengths || marks.mask;
  if (marked) sort_rows(T, B, marks);
  for (int64_t d = 0; d < directions; ++d) {
    Timeline& walk = walks_[d];
    walk.order = order_.data();
    walk.reverse = d == 1;
    walk.repeat = marks.repeat;
    if (marked && B > 0 && end_.data()[B - 1] < T) {
      walk.end = end_.data();
      active_[d] = Buffer<int64_t>(T);
      for (int64_t s = 0, rows = walk.reverse ? 0 : B; s < T; ++s) {
        const int64_t t = walk.time(s, T);
        while (!walk.reverse && rows > 0 && end_.data()[rows - 1] <= t) --rows;
        while (walk.reverse && rows < B && end_.data()[rows] > t) ++rows;
        active_[d].data()[s] = rows;
      }
      walk.active = active_[d].data();
    }
    if (marked || marks.reset) set_flags(T, B, marks, d);
  }
}

// Longest first: then the rows that a step concerns are the first ones.
void Timelines::sort_rows(int64_t T, int64_t B, const StepMarks& marks) {
  const Marks at{marks, B};
  Buffer<int64_t> end(B);
  for (int64_t b = 0; b < B; ++b) {
    int64_t t = marks.lengths ? marks.lengths[b] : T;
    while (t > 0 && !at.counts(t - 1, b) && !at.resets(t - 1, b)) --t;
    end.data()[b] = t;
  }
  std::stable_sort(order_.data(), order_.data() + B,
                   [&](int64_t a, int64_t b) { return end.data()[a] > end.data()[b]; });
  end_ = Buffer<int64_t>(B);
  for (int64_t row = 0; row < B; ++row) end_.data()[row] = end.data()[order_.data()[row]];
}

void Timelines::set_flags(int64_t T, int64_t B, const StepMarks& marks, int64_t d) {
  const Marks at{marks, B};
  Timeline& walk = walks_[d];
  flags_[d] = Buffer<uint8_t>(size_product(T, B));
  uint8_t* flags = flags_[d].data();
  bool any = false;
  for (int64_t s = 0; s < T; ++s) {
    const int64_t t = walk.time(s, T), active = walk.rows(s, B);
    for (int64_t row = 0; row < B; ++row) {
      const int64_t b = order_.data()[row];
      // The cut of episode t lies before step t: in reverse that is before the step t - 1 is processed.
      const int64_t begins = walk.reverse ? t + 1 : t;
      const bool cut = begins < T && at.resets(begins, b);
      const uint8_t flag = uint8_t((at.counts(t, b) ? 0 : kHeld) | (cut ? kCut : 0));
      flags[s * B + row] = flag;
      any = any || (flag && row < active);
    }
  }
  if (any) walk.flags = flags;
}

}  // namespace fastlstm
