// What this machine can do at best: fused multiply-adds and reads a second, on one to n threads. Prints JSON.
// Called by ceilings.py: ceilings <threads> <megabytes of the largest working set>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

namespace {

template <typename T, int bytes>
struct vector_of {
  typedef T type __attribute__((vector_size(bytes)));
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The compiler must take the value for changed and for read here. Outside of the timed loops alone.
template <typename V>
void touch(V& value) {
  asm volatile("" : "+m"(value));
}

// Runs work(thread) on `threads` threads that start together; the seconds until the last of them is done.
template <typename Work>
double together(int threads, Work work) {
  std::atomic<int> waiting{threads};
  std::vector<double> begin(threads), end(threads);
  auto run = [&](int thread) {
    work(thread);  // untimed: pages, caches and the clock of the core
    waiting--;
    while (waiting > 0) {
    }
    begin[thread] = now();
    work(thread);
    end[thread] = now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; thread++) others.emplace_back(run, thread);
  run(0);
  for (auto& other : others) other.join();
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

// 12 independent chains hide the latency of 4 cycles of two units, and leave registers for the factors. A function of
// its own: inlined into more code, gcc 12 keeps the sums in memory and halves the rate.
template <typename V, typename T, int chains>
__attribute__((noinline)) void multiply_add(long rounds) {
  V a[chains] = {}, x = V{} + T(0.999), y = V{} + T(1e-3);
  touch(x), touch(y);
  for (V& chain : a) touch(chain);  // else the compiler sees that all are the same
  for (long i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int k = 0; k < chains; k++) a[k] = a[k] * x + y;
  for (V& chain : a) touch(chain);
}

template <typename T, int bytes>
double fma_rate(int threads) {
  constexpr long rounds = 2'000'000;
  constexpr int chains = 12, lanes = bytes / sizeof(T);
  double best = 0;
  for (int repeat = 0; repeat < 7; repeat++) {
    typedef typename vector_of<T, bytes>::type V;
    const double seconds = together(threads, [](int) { multiply_add<V, T, chains>(rounds); });
    best = std::max(best, 2.0 * lanes * chains * rounds * threads / seconds);
  }
  return best;
}

template <typename T>
double best_fma_rate(int threads) {
  double best = std::max(fma_rate<T, 16>(threads), fma_rate<T, 32>(threads));
#ifdef __AVX512F__
  best = std::max(best, fma_rate<T, 64>(threads));
#endif
  return best;
}

#ifdef __AVX512F__
typedef vector_of<float, 64>::type Widest;
#else
typedef vector_of<float, 32>::type Widest;
#endif
constexpr size_t unroll = 8, stride = unroll * sizeof(Widest);

__attribute__((noinline)) void read(const char* begin, size_t bytes, long rounds) {
  Widest sum[unroll] = {};
  for (long round = 0; round < rounds; round++)
    for (const char* at = begin; at < begin + bytes; at += stride)
#pragma GCC unroll 8
      for (size_t k = 0; k < unroll; k++) sum[k] += reinterpret_cast<const Widest*>(at)[k];
  for (Widest& part : sum) touch(part);
}

// Each thread reads its own part of the working set again and again.
double read_rate(int threads, size_t bytes) {
  const size_t part = bytes / threads / stride * stride;
  std::vector<std::unique_ptr<char, decltype(&free)>> parts;
  for (int thread = 0; thread < threads; thread++) {
    parts.emplace_back(static_cast<char*>(aligned_alloc(4096, (part + 4095) / 4096 * 4096)), &free);
    std::fill_n(parts.back().get(), part, char(0));
  }
  const long rounds = std::max<long>(1, 20'000'000 / part);
  double best = 0;
  for (int repeat = 0; repeat < 5; repeat++) {
    const double seconds = together(threads, [&](int thread) { read(parts[thread].get(), part, rounds); });
    best = std::max(best, double(part) * threads * rounds / seconds);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  const int threads = std::atoi(argv[1]);
  const size_t largest = std::atol(argv[2]) << 20;
  printf("{\"float32\": %.4g, \"float64\": %.4g, \"read\": [", best_fma_rate<float>(threads),
         best_fma_rate<double>(threads));
  for (size_t bytes = 16 << 10; bytes <= largest; bytes *= 2)
    printf("%s[%zu, %.4g]", bytes > (16 << 10) ? ", " : "", bytes, read_rate(threads, bytes));
  printf("]}\n");
}
