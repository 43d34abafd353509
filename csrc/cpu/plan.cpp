#include "plan.h"

#include <algorithm>

namespace fastlstm {
namespace {

// The measured rule (2 cores of Zen 3, then of Zen 4): rows as long as each thread keeps enough of them to reuse every weight
// that it reads, a few being enough where the weights are small; else the units, which divide the weights.
Plan split(const Shape& shape, const Layout& layout, int64_t element_bytes, const Needs& needs, int threads,
           int64_t unit_grain) {
  Plan plan;
  const int64_t weight_bytes = layout.columns * layout.depth * element_bytes;
  const int64_t step = shape.B * layout.columns * layout.depth;  // multiply-adds
  constexpr int64_t kWorthStarting = 96 * 1024;                  // a team of threads for so many in all steps
  constexpr int64_t kWorthMeeting = 24 * 1024;                   // after so many
  if (step * shape.T < kWorthStarting) return plan;
  if (needs.whole_rows) {
    plan.row_groups = int(std::min<int64_t>(threads, shape.B));
    return plan;
  }
  const int64_t enough_rows = weight_bytes <= 512 * 1024 ? 4 : 64;
  const int64_t unit_parts = std::max<int64_t>(1, layout.blocks / unit_grain);
  for (int groups = threads; groups >= 1; --groups) {
    if (threads % groups || (groups > 1 && shape.B / groups < enough_rows)) continue;
    plan.row_groups = groups;
    if (step / groups >= kWorthMeeting + kWorthStarting / 2 / shape.T)
      plan.unit_groups = int(std::min<int64_t>(threads / groups, unit_parts));
    return plan;
  }
  return plan;
}

// Panels from afar are worth more rows at a time, though these then fill the second cache, and worth prefetching: +20-30 % at
// H = 1024, +5 % at 512; where the core's own cache holds them, prefetching costs some 3 %.
void prefetch_panels(Plan& plan, int64_t weight_bytes) {
  constexpr int64_t kNear = 2'500'000;
  if (weight_bytes / plan.unit_groups <= kNear) return;
  plan.prefetch = true;
  plan.row_block = 64;
}

}  // namespace

std::string Plan::text() const {
  std::string text = std::to_string(threads()) + (threads() == 1 ? " thread" : " threads");
  if (unit_groups > 1) text += row_groups > 1 ? " share rows and units" : " share the units";
  if (unit_groups == 1 && row_groups > 1) text += " share the rows";
  text += ", " + std::to_string(row_block) + " rows at a time";
  if (hoisted_steps > 1) text += ", x . W for " + std::to_string(hoisted_steps) + " steps at once";
  if (single_step) text += ", weights transposed while they are read";
  return text + (prefetch ? ", panels prefetched" : "");
}

Range share(int64_t n, int64_t parts, int64_t part, int64_t grain) {
  const int64_t grains = (n + grain - 1) / grain;
  return {std::min(n, grains * part / parts * grain), std::min(n, grains * (part + 1) / parts * grain)};
}

Plan plan_forward(const Shape& shape, const Layout& layout, int64_t element_bytes, const Needs& needs, int threads) {
  Plan plan = split(shape, layout, element_bytes, needs, threads, forward_grain(layout));
  prefetch_panels(plan, layout.columns * layout.depth * element_bytes);
  // A handful of rows is bound by reading the weights once per step: reading W once per many steps halves that.
  constexpr int64_t kFewRows = 3, kHoistedRows = 48;
  if (shape.B > 0 && shape.B <= kFewRows && shape.T > 1 && plan.row_groups == 1 && !needs.every_step)
    plan.hoisted_steps = std::min(shape.T, std::max<int64_t>(1, kHoistedRows / shape.B));
  return plan;
}

Plan plan_backward(const Shape& shape, const Layout& layout, int64_t element_bytes, const Needs& needs, int threads) {
  Plan plan = split(shape, layout, element_bytes, needs, threads, backward_grain(layout));
  plan.row_block = 60;
  prefetch_panels(plan, layout.columns * layout.depth * element_bytes);
  constexpr int64_t kFewRows = 16;
  plan.single_step = shape.T == 1 && shape.B <= kFewRows && shape.P == 0 && needs.usual_gradients;
  return plan;
}

namespace {

struct ChunkSize {
  int64_t first, rows;
};

// Of the chunk that ends with the step before `end`.
ChunkSize chunk_before(const Shape& shape, const Timeline& timeline, int64_t end) {
  // Enough rows to pay for adding a tile to dW, few enough for the second-level cache.
  const int64_t limit = shape.H <= 128 ? 256 : shape.H <= 256 ? 384 : 512;
  int64_t first = end, rows = 0;
  while (first > 0 && (first == end || rows + timeline.rows(first - 1, shape.B) <= limit))
    rows += timeline.rows(--first, shape.B);
  return {first, rows};
}

}  // namespace

std::vector<Chunk> split_into_chunks(const Shape& shape, const Timeline& timeline, Range steps) {
  std::vector<Chunk> chunks;
  for (int64_t end = steps.end; end > steps.begin;) {
    Chunk chunk{chunk_before(shape, timeline, end).first, end, {0}};
    for (int64_t s = chunk.first; s < end; ++s) chunk.offset.push_back(chunk.offset.back() + timeline.rows(s, shape.B));
    end = chunk.first;
    chunks.push_back(std::move(chunk));
  }
  return chunks;
}

int64_t most_rows_of_chunks(const Shape& shape, const Timeline& timeline) {
  int64_t most = 0;
  for (int64_t end = shape.T; end > 0;) {
    const ChunkSize chunk = chunk_before(shape, timeline, end);
    most = std::max(most, chunk.rows);
    end = chunk.first;
  }
  return most;
}

std::vector<Range> split_into_segments(const Shape& shape, const Timeline& timeline, int64_t every) {
  if (every == 0 || shape.T == 0) return {{0, shape.T}};
  std::vector<Range> segments;
  for (int64_t end = shape.T; end > 0; end = segments.back().begin) {
    int64_t begin = end;
    while (begin > 0 && end - begin < every) begin = chunk_before(shape, timeline, begin).first;
    segments.push_back({begin, end});
  }
  std::reverse(segments.begin(), segments.end());
  return segments;
}

Range rows_of_group(const Shape& shape, const Timeline& timeline, int groups, int group) {
  if (!timeline.end) return share(shape.B, groups, group);
  int64_t total = 0;
  for (int64_t row = 0; row < shape.B; ++row) total += timeline.end[row] + 1;
  // The boundary of part p: the first row at which p / groups of the work is done.
  const auto boundary = [&](int64_t part) {
    int64_t done = 0, row = 0;
    while (row < shape.B && done * groups < total * part) done += timeline.end[row++] + 1;
    return row;
  };
  return {boundary(group), boundary(group + 1)};
}

}  // namespace fastlstm
