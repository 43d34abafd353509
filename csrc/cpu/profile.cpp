#include "profile.h"

#include <atomic>
#include <chrono>

namespace fastlstm {
namespace {

Profile g_profile;
std::atomic<bool> g_profiling{false};

}  // namespace

Profile* active_profile() { return g_profiling.load(std::memory_order_relaxed) ? &g_profile : nullptr; }

Profile set_profiling(bool on) {
  const Profile before = g_profile;
  g_profile = {};
  g_profiling.store(on);
  return before;
}

int64_t nanoseconds_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace fastlstm
