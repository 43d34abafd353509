// Where the time of the calling thread goes, for the bench. Off, it costs a branch where a phase begins.
#pragma once
#include <cstdint>

namespace fastlstm {

enum Phase { kPack, kLoad, kProject, kRecur, kCell, kWeightGradients, kPhases };

struct Profile {
  int64_t nanoseconds[kPhases] = {};
};

// The profile of the process while one is taken, else null.
Profile* active_profile();
// Starts anew, or ends; what was measured until now.
Profile set_profiling(bool on);

int64_t nanoseconds_now();

// Counts what passes while it lives towards a phase; null counts nothing. Always inline: in a kernel's object it would else be a
// symbol that another instruction set's may replace.
class Timed {
 public:
  [[gnu::always_inline]] Timed(Profile* profile, Phase phase) : profile_(profile), phase_(phase) {
    if (profile_) profile_->nanoseconds[phase_] -= nanoseconds_now();
  }
  [[gnu::always_inline]] ~Timed() {
    if (profile_) profile_->nanoseconds[phase_] += nanoseconds_now();
  }
  Timed(const Timed&) = delete;

 private:
  Profile* profile_;
  Phase phase_;
};

}  // namespace fastlstm
