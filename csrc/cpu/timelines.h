// From what the caller says of the batch (lengths, mask, reset) to the walk of each direction.
#pragma once
#include "../layer.h"
#include "workspace.h"

namespace fastlstm {

struct StepMarks {
  const int64_t* lengths = nullptr;  // [B]; null: T
  const uint8_t* mask = nullptr;     // [T,B] 1: the step counts; null: every step does
  const uint8_t* reset = nullptr;    // [T,B] 1: a new episode begins with the step; null: none
  bool repeat = false;               // y of a step that does not count is h, not zero
};

// [T,B] StepFlag in the order of time and of the caller's rows; no buffer where nothing is marked.
Buffer<uint8_t> step_flags(int64_t T, int64_t B, const StepMarks& marks);

class Timelines {
 public:
  Timelines(int64_t T, int64_t B, const StepMarks& marks, int64_t directions);
  const Timeline& direction(int64_t d) const { return walks_[d]; }

 private:
  void sort_rows(int64_t T, int64_t B, const StepMarks& marks);
  void set_flags(int64_t T, int64_t B, const StepMarks& marks, int64_t d);

  Buffer<int64_t> order_, end_, active_[2];
  Buffer<uint8_t> flags_[2];
  Timeline walks_[2];
};

}  // namespace fastlstm
