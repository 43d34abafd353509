#include "threads.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <future>
#include <string>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FASTLSTM_TEXT_(x) #x
#define FASTLSTM_TEXT(x) FASTLSTM_TEXT_(x)

namespace fastlstm {
namespace {

std::atomic<int> g_threads{0};  // 0: not asked for, OpenMP's own default holds
std::atomic<bool> g_forked{false};

// libgomp's threads do not survive a fork but its records of them do, and the next region would wait for them for ever,
// whoever opened the first one (torch in the parent is enough). So a child starts single-threaded.
void after_fork_in_child() {
  g_forked.store(true);
  g_threads.store(1);
}

[[maybe_unused]] const int g_registered = pthread_atfork(nullptr, nullptr, after_fork_in_child);

// Flush-to-zero and denormals-are-zero while it lives.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t(1) << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void run_rank(int rank, const std::function<void(int)>& body) {
  FlushDenormals flush;
  body(rank);
}

// Rare and slow, for where OpenMP gives too few: a barrier needs all of its members at once, so none starts before all are there.
void run_threads(int threads, const std::function<void(int)>& body) {
  std::promise<bool> start;
  const std::shared_future<bool> started = start.get_future().share();
  std::vector<std::thread> others;
  try {
    for (int rank = 1; rank < threads; ++rank)
      others.emplace_back([&, rank] {
        if (started.get()) run_rank(rank, body);
      });
    start.set_value(true);
    run_rank(0, body);
  } catch (const std::system_error&) {
    start.set_value(false);
    for (auto& other : others) other.join();
    throw std::runtime_error("cannot start " + std::to_string(threads) + " threads: ask for fewer with threads=");
  }
  for (auto& other : others) other.join();
}

void run_region(int threads, const std::function<void(int)>& body) {
  bool complete = true;  // OpenMP may give fewer threads: in a nested region, under a limit, by its own adjustment
#pragma omp parallel num_threads(threads)
  {
    if (omp_get_num_threads() == threads)
      run_rank(omp_get_thread_num(), body);
    else if (omp_get_thread_num() == 0)
      complete = false;
  }
  if (!complete) run_threads(threads, body);
}

int default_threads() { return omp_in_parallel() ? 1 : std::min(omp_get_max_threads(), omp_get_thread_limit()); }

}  // namespace

int get_num_threads() {
  const int threads = g_threads.load();
  return threads > 0 ? threads : default_threads();
}

void set_num_threads(int n) { g_threads.store(n); }

const char* openmp_version() { return FASTLSTM_TEXT(_OPENMP); }

void Barrier::wait(int member) {
  constexpr int kSpins = 4000;  // some 100 us, longer than any step is uneven on a quiet machine
  const uint32_t round = flags_[member].round.load(std::memory_order_relaxed) + 1;
  flags_[member].round.store(round, std::memory_order_release);
  for (int other = 0; other < members_; ++other) {
    int spins = 0;
    while (int32_t(flags_[other].round.load(std::memory_order_acquire) - round) < 0) {
      if (++spins < kSpins) {
        pause();
      } else {
        if (interrupt_.stopped()) return;
        sched_yield();
      }
    }
  }
}

void run_team(int threads, const std::function<void(int)>& body) {
  if (threads <= 1) {
    run_rank(0, body);
  } else if (g_forked.load()) {
    // A thread made in the child has no record of the parent's team.
    std::async(std::launch::async, [&] { run_region(threads, body); }).get();
  } else {
    run_region(threads, body);
  }
}

}  // namespace fastlstm
