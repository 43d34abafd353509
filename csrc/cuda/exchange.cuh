// How the blocks of a persistent kernel hand numbers to one another: each number is its own flag. Before a launch, memory is
// filled with ones, a NaN that no arithmetic makes; who reads them reads again until they are gone. Nothing else that a block
// has written is meant for others, so no fence is needed.
#pragma once
#include "device.cuh"

namespace fastlstm::gpu {

constexpr int kUnwrittenByte = 0xff;
template <class T>
constexpr Bits<T> kUnwritten = Bits<T>(~Bits<T>(0));

template <class T>
__device__ bool is_written(T x) {
  return bits_of(x) != kUnwritten<T>;
}

// Whether all of them are. Where two numbers of 16 bits lie in a word w, the highest bit of a half goes from 1 to 0 in
// w + 0x00010001 just if the half is all ones; what the lower one then carries over can do no more than say so twice.
template <class T, int N>
__device__ bool all_written(const Brought<Vector<T, N>>& values) {
  const auto& w = values.words.at;
  if constexpr (sizeof(T) == 2 && N > 1) {
    uint32_t lost = 0;
    for (int i = 0; i < N / 2; ++i) lost |= w[i] & ~(w[i] + 0x00010001u);
    return !(lost & 0x80008000u);
  } else {
    bool all = true;
    for (int i = 0; i < N; ++i) all = all && is_written(Vector<T, N>(values).at[i]);
    return all;
  }
}

// A number as others may read it: of the caller's NaNs, the one that means "not yet" becomes another.
template <class T>
__device__ T writable(T x) {
  return is_written(x) || mutated("writable: as it is") ? x : from_bits<T>(Bits<T>(kUnwritten<T> - 1));
}

template <class T, int N>
__device__ void publish(T* to, const Vector<T, N>& values) {
  constexpr int kTogether = N * sizeof(T) < 16 ? N : 16 / int(sizeof(T));
  for (int first = 0; first < N; first += kTogether) {
    Vector<T, kTogether> part;
    for (int i = 0; i < kTogether; ++i) part.at[i] = writable(values.at[first + i]);
    if (!mutated("publish: nothing")) store_relaxed(to + first, part);
  }
}
template <class T>
__device__ void publish(T* to, T value) {
  publish(to, Vector<T, 1>{{value}});
}

// Where a launch says that it has given up, so that a fault ends in an error, not in a hang: for its own blocks in device
// memory, which starts at zero, and for the host of all launches.
struct Failure {
  unsigned *here, *on_host;
};

// How long a thread reads what is not there. Once anybody has given up nobody waits any more, and all come to their end.
class Patience {
 public:
  __device__ explicit Patience(const Failure& failure) : failure_(failure) {}

  // After so many reads in vain, one more than the last time: is it worth reading again?
  __device__ bool is_left(unsigned reads) {
    read_in_vain();
    if (reads == (mutated("publish: nothing") ? 1024 : kMostReads)) {
      store_relaxed(failure_.here, Vector<unsigned, 1>{{1}});
      tell_host(failure_.on_host, 1);
    }
    if (reads % 1024 == 0) {
      Brought<Vector<unsigned, 1>> failed;
      load_relaxed(failed, failure_.here);
      lost_ = lost_ || failed.words.at[0];
    }
    return !lost_;
  }

 private:
  static constexpr unsigned kMostReads = 1u << 24;  // each takes some hundred cycles: seconds

  const Failure failure_;
  bool lost_ = false;
};

}  // namespace fastlstm::gpu
