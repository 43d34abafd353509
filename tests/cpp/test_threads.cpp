// The barrier and the team of cpu/threads.h, in numbers of members beyond the machine's cores. Run under ThreadSanitizer by
// the preset tsan: all threads are std::thread here, since libgomp, which is not instrumented, shows races that are none.
#include "../../csrc/cpu/threads.h"

#include <omp.h>

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <thread>
#include <vector>

using fastlstm::Barrier;
using fastlstm::Interrupt;

namespace {

int g_failures = 0;

void check(bool ok, const char* what, int members) {
  if (ok) return;
  std::fprintf(stderr, "FAILED with %d members: %s\n", members, what);
  ++g_failures;
}

template <class Body>
void run_threads(int members, Body body) {
  std::vector<std::thread> threads;
  for (int member = 0; member < members; ++member) threads.emplace_back([&body, member] { body(member); });
  for (auto& thread : threads) thread.join();
}

// Everybody writes a plain int, waits and reads all others': a barrier that lets one through early is a data race.
void test_barrier_orders_writes_and_reads(int members) {
  constexpr int kRounds = 300;
  Interrupt interrupt(nullptr);
  Barrier barrier(members, interrupt);
  std::vector<int> written(std::size_t(members), -1), wrong(std::size_t(members), 0);
  run_threads(members, [&](int me) {
    for (int round = 0; round < kRounds; ++round) {
      written[std::size_t(me)] = round;
      barrier.wait(me);
      for (int value : written) wrong[std::size_t(me)] += value != round;
      barrier.wait(me);
    }
  });
  for (int count : wrong) check(count == 0, "a member passed the barrier too early", members);
}

// Two buffers in turn, as in the time loops: then one barrier a round is enough.
void test_one_barrier_is_enough_for_two_buffers(int members) {
  constexpr int kRounds = 300;
  Interrupt interrupt(nullptr);
  Barrier barrier(members, interrupt);
  std::vector<int> buffers[2] = {std::vector<int>(std::size_t(members)), std::vector<int>(std::size_t(members))};
  std::vector<int> wrong(std::size_t(members), 0);
  run_threads(members, [&](int me) {
    for (int round = 0; round < kRounds; ++round) {
      auto& buffer = buffers[round % 2];
      buffer[std::size_t(me)] = round;
      barrier.wait(me);
      for (int value : buffer) wrong[std::size_t(me)] += value != round;
    }
  });
  for (int count : wrong) check(count == 0, "a buffer was written while it was read", members);
}

// One member leaves when it sees the interrupt; nobody may wait for it for ever.
void test_interrupt_frees_those_who_wait(int members) {
  int polls = 0;
  Interrupt interrupt([&polls] { return ++polls == 5; });
  Barrier barrier(members, interrupt);
  std::vector<int> rounds(std::size_t(members), 0);
  run_threads(members, [&](int me) {
    while (true) {
      if (me == 0) interrupt.check();
      if (interrupt.stopped()) return;
      barrier.wait(me);
      ++rounds[std::size_t(me)];
    }
  });
  check(interrupt.stopped(), "the interrupt was lost", members);
  check(rounds[0] == 4, "rank 0 was stopped at another round", members);
}

// By value: a denormal operand, and a denormal result of normal ones.
bool denormals_are_zero() {
  volatile float tiny = std::numeric_limits<float>::denorm_min(), smallest = std::numeric_limits<float>::min(),
                 half = 0.5f;
  volatile float sum = tiny + tiny, product = smallest * half;
  return sum == 0 && product == 0;
}

void test_team_has_every_rank_once(int members) {
  std::vector<int> calls(std::size_t(members), 0), flushed(std::size_t(members), 0);
  const auto caller = std::this_thread::get_id();
  bool caller_is_first = false;
  Interrupt interrupt(nullptr);
  Barrier barrier(members, interrupt);
  fastlstm::run_team(members, [&](int rank) {
    ++calls[std::size_t(rank)];
    flushed[std::size_t(rank)] = denormals_are_zero();
    if (rank == 0) caller_is_first = std::this_thread::get_id() == caller;
    barrier.wait(rank);  // hangs unless all members run at once
  });
  for (int count : calls) check(count == 1, "a rank did not run once", members);
  for (int yes : flushed) check(yes, "a member computes with denormals", members);
  check(caller_is_first, "rank 0 is not the caller", members);
  check(!denormals_are_zero(), "the caller's denormals are gone", members);
}

// Teams of several callers at once, as when Python threads share a layer.
void test_teams_side_by_side(int members) {
  std::vector<int> sums(4, 0);
  run_threads(4, [&](int caller) {
    omp_set_max_active_levels(0);
    for (int round = 0; round < 20; ++round) {
      std::vector<int> parts(std::size_t(members), 0);
      fastlstm::run_team(members, [&](int rank) { parts[std::size_t(rank)] = rank + 1; });
      for (int part : parts) sums[std::size_t(caller)] += part;
    }
  });
  for (int sum : sums) check(sum == 20 * members * (members + 1) / 2, "teams disturbed one another", members);
}

}  // namespace

int main() {
  omp_set_max_active_levels(0);  // OpenMP gives one thread then, and run_team makes std::threads instead
  for (int members : {1, 2, 3, 4, 7}) {
    test_barrier_orders_writes_and_reads(members);
    test_one_barrier_is_enough_for_two_buffers(members);
    test_interrupt_frees_those_who_wait(members);
    test_team_has_every_rank_once(members);
    test_teams_side_by_side(members);
  }
  fastlstm::set_num_threads(3);
  check(fastlstm::get_num_threads() == 3, "set_num_threads was lost", 3);
  if (g_failures == 0) std::puts("all passed");
  return g_failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
