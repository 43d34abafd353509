// How one layer's work is split over threads and steps: the one place where a path is chosen. The results do not depend on it.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "../layer.h"
#include "panels.h"

namespace fastlstm {

// Part `part` of `parts` nearly equal parts of 0 .. n, cut at multiples of `grain`.
Range share(int64_t n, int64_t parts, int64_t part, int64_t grain = 1);

// Threads form a grid: row groups work on rows of their own and never wait for one another; the members of a group share its
// rows, divide the units and meet at a barrier after every step.
struct Plan {
  int row_groups = 1, unit_groups = 1;
  int64_t row_block = 48;  // rows that run through all steps (row groups) or through one step (unit groups) together
  int64_t hoisted_steps =
      1;  // x . W for so many steps at once, before the recurrence; 1: folded into the step's own product
  bool prefetch = false;     // panels, since a step reads more of them than a core's own cache holds
  bool single_step = false;  // backward: what is read but once or twice is not transposed and packed before

  int threads() const { return row_groups * unit_groups; }
  std::string text() const;  // "2 threads share the units, 48 rows at a time, x . W for 48 steps at once"
};

// Blocks of units that one thread takes as a whole: those of a panel of gate columns; of a panel of the transposed weights.
inline int64_t forward_grain(const Layout& layout) { return std::max<int64_t>(1, layout.panel / (4 * layout.lanes)); }
inline int64_t backward_grain(const Layout& layout) { return std::max<int64_t>(1, layout.panel / layout.lanes); }

// What the variant of a cell asks of a plan.
struct Needs {
  bool whole_rows = false;      // a thread has every unit of its rows: a projection, layer normalisation
  bool every_step = false;      // x . W in the step itself: normalised, or of inputs that are dropped
  bool usual_gradients = true;  // W, U and biases are all weights there are, and d_pre is the gradient of both products
};

template <class T>
Needs needs_of(const Panels<T>& panels, bool training) {
  const bool drops = training && panels.cell.drops_inputs(), norm = panels.normalised();
  return {panels.shape.P > 0 || norm, norm || drops, panels.peepholes.size() == 0 && !norm && !drops};
}

Plan plan_forward(const Shape& shape, const Layout& layout, int64_t element_bytes, const Needs& needs, int threads);
Plan plan_backward(const Shape& shape, const Layout& layout, int64_t element_bytes, const Needs& needs, int threads);

// Terms of one chain of a long product: its error grows with its length, and each end of a chain costs a little time.
constexpr int64_t kChain = 128;  // at most 512: whole numbers of int8 and int16 must not overflow 32 bits
// An input of at most so many columns is a chain of its own in the product of h; of more, a product of its own.
constexpr int64_t kJoinedInputs = kChain;
// One of so few shares the first chain of h.
constexpr int64_t kChainedInputs = 16;

// The rows of group `group`, such that each group has its part of the active steps.
Range rows_of_group(const Shape& shape, const Timeline& timeline, int groups, int group);

// Steps first .. end of processing, which backward walks last one first; offset[s - first] is the chunk's first row of step s.
struct Chunk {
  int64_t first, end;
  std::vector<int64_t> offset;
  int64_t rows() const { return offset.back(); }
};

// The chunks of backward in these steps, last one first. They depend on the shape only, never on the threads: they are the
// order in which dW and db are summed. steps: all, or those of some segments.
std::vector<Chunk> split_into_chunks(const Shape& shape, const Timeline& timeline, Range steps);
int64_t most_rows_of_chunks(const Shape& shape, const Timeline& timeline);

// Segments of at least `every` steps (the first one may have fewer), first one first: whole chunks, so that they change no
// sum. One segment if `every` is 0, or there are no steps.
std::vector<Range> split_into_segments(const Shape& shape, const Timeline& timeline, int64_t every);

}  // namespace fastlstm
