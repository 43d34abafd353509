// Teams of threads: one OpenMP region per call, flags inside it instead of further regions. The only file that knows of OpenMP,
// of fork and of the floating-point control register.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace fastlstm {

int get_num_threads();
void set_num_threads(int n);   // n >= 1
const char* openmp_version();  // "201511", or "" where it was compiled without

// Lets a long call be interrupted: `poll` is asked now and then by the calling thread, and true stops the whole team.
class Interrupt {
 public:
  explicit Interrupt(std::function<bool()> poll) : poll_(std::move(poll)) {}
  // For the calling thread only, after so many multiply-adds of its own: polls every 0.1 ms or so.
  void worked(int64_t multiply_adds) {
    constexpr int64_t kEnough = 4'000'000;
    if ((since_ += multiply_adds) < kEnough) return;
    since_ = 0;
    if (poll_ && poll_()) stopped_.store(true, std::memory_order_relaxed);
  }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  std::function<bool()> poll_;
  int64_t since_ = 0;
  std::atomic<bool> stopped_{false};
};

// Everybody waits for everybody: one flag per member on a line of its own (60 ns against 300 ns of `omp barrier`). Spinning is
// bounded, since on a busy machine the thread that is waited for may need this very core.
class Barrier {
 public:
  Barrier(int members, const Interrupt& interrupt)
      : members_(members), interrupt_(interrupt), flags_(new Flag[std::size_t(members)]) {}
  void wait(int member);  // returns early once the interrupt has stopped the team

 private:
  struct alignas(128) Flag {  // 128: the neighbouring line is prefetched along
    std::atomic<uint32_t> round{0};
  };
  int members_;
  const Interrupt& interrupt_;
  std::unique_ptr<Flag[]> flags_;
};

// Runs body(rank) on `threads` threads at once, rank 0 on the caller's. Denormals count as zero inside (they cost a factor of
// 20), the caller's setting is restored. body must not throw.
void run_team(int threads, const std::function<void(int rank)>& body);

}  // namespace fastlstm
