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

Timelines::Timelines(int64_t T, int64_t B, const StepMarks& marks, int64_t directions) : order_(std::size_t(B)) {
  std::iota(order_.begin(), order_.end(), int64_t(0));
  const bool marked = marks.lengths || marks.mask;
  if (marked) sort_rows(T, B, marks);
  for (int64_t d = 0; d < directions; ++d) {
    Timeline& walk = walks_[d];
    walk.order = order_.data();
    walk.reverse = d == 1;
    walk.repeat = marks.repeat;
    if (marked && (B > 0 && end_.back() < T)) {
      walk.end = end_.data();
      active_[d].resize(std::size_t(T));
      for (int64_t s = 0, rows = walk.reverse ? 0 : B; s < T; ++s) {
        const int64_t t = walk.time(s, T);
        while (!walk.reverse && rows > 0 && end_[std::size_t(rows - 1)] <= t) --rows;
        while (walk.reverse && rows < B && end_[std::size_t(rows)] > t) ++rows;
        active_[d][std::size_t(s)] = rows;
      }
      walk.active = active_[d].data();
    }
    if (marked || marks.reset) set_flags(T, B, marks, d);
  }
}

// Longest first: then the rows that a step concerns are the first ones.
void Timelines::sort_rows(int64_t T, int64_t B, const StepMarks& marks) {
  const Marks at{marks, B};
  std::vector<int64_t> end(std::size_t(B), 0);
  for (int64_t b = 0; b < B; ++b) {
    int64_t t = marks.lengths ? marks.lengths[b] : T;
    while (t > 0 && !at.counts(t - 1, b) && !at.resets(t - 1, b)) --t;
    end[std::size_t(b)] = t;
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int64_t a, int64_t b) { return end[std::size_t(a)] > end[std::size_t(b)]; });
  for (int64_t b : order_) end_.push_back(end[std::size_t(b)]);
}

void Timelines::set_flags(int64_t T, int64_t B, const StepMarks& marks, int64_t d) {
  const Marks at{marks, B};
  Timeline& walk = walks_[d];
  auto& flags = flags_[d];
  flags.resize(std::size_t(T * B));
  bool any = false;
  for (int64_t s = 0; s < T; ++s) {
    const int64_t t = walk.time(s, T), active = walk.rows(s, B);
    for (int64_t row = 0; row < B; ++row) {
      const int64_t b = order_[std::size_t(row)];
      // The cut of episode t lies before step t: in reverse that is before the step t - 1 is processed.
      const int64_t begins = walk.reverse ? t + 1 : t;
      const bool cut = begins < T && at.resets(begins, b);
      const uint8_t flag = uint8_t((at.counts(t, b) ? 0 : kHeld) | (cut ? kCut : 0));
      flags[std::size_t(s * B + row)] = flag;
      any = any || (flag && row < active);
    }
  }
  if (any) walk.flags = flags.data();
}

}  // namespace fastlstm
