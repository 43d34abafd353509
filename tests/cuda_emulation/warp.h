// What lanes of a warp do together: shuffles, votes, __syncwarp. Included by cuda_runtime.h. As in CUDA's manual, of
// these only __syncwarp orders memory.
#pragma once
#include <cstring>
#include <type_traits>

#include "emulation.h"

namespace emulation {

// What a lane brings to a shuffle, and takes away.
template <class T>
struct Shuffled {
  T value;
  unsigned source;  // a lane
  T result;
};

template <class T>
T shuffle(const char* name, Site site, unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  Shuffled<T> mine{value, source, {}};
  warp_collective(name, site, mask, &mine, [](void* const(&brought)[32], unsigned mask) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      auto* const to = static_cast<Shuffled<T>*>(brought[lane]);
      if (auto* const from = static_cast<const Shuffled<T>*>(brought[to->source]))
        to->result = from->value;
      else
        memset(&to->result, 0xff, sizeof to->result);  // of a lane that does not take part: undefined
    }
  });
  return mine.result;
}

struct Vote {
  bool condition;
  unsigned ballot;
};

inline unsigned ballot(const char* name, Site site, unsigned mask, bool condition) {
  Vote mine{condition, 0};
  warp_collective(name, site, mask, &mine, [](void* const(&brought)[32], unsigned) {
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (brought[lane] && static_cast<Vote*>(brought[lane])->condition) ballot |= 1u << lane;
    for (void* const one : brought)
      if (one) static_cast<Vote*>(one)->ballot = ballot;
  });
  return mine.ballot;
}

}  // namespace emulation

inline void __syncwarp(unsigned mask = ~0u, emulation::Site site = emulation::Site::here()) {
  emulation::warp_barrier(site, mask);
}

// A warp is cut into segments of `width` lanes, a power of two, that shuffle each for itself.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                     emulation::Site site = emulation::Site::here()) {
  const unsigned first = emulation::lane() & ~unsigned(width - 1);
  return emulation::shuffle("__shfl_sync", site, mask, value, first | (unsigned(source) & unsigned(width - 1)));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                         emulation::Site site = emulation::Site::here()) {
  const unsigned lane = emulation::lane(), source = lane ^ unsigned(lanes);
  const bool beyond = source > (lane | unsigned(width - 1));
  return emulation::shuffle("__shfl_xor_sync", site, mask, value, beyond ? lane : source);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                          emulation::Site site = emulation::Site::here()) {
  const unsigned lane = emulation::lane(), source = lane + lanes;
  const bool beyond = source > (lane | unsigned(width - 1));
  return emulation::shuffle("__shfl_down_sync", site, mask, value, beyond ? lane : source);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                        emulation::Site site = emulation::Site::here()) {
  const unsigned lane = emulation::lane();
  const bool beyond = (lane & unsigned(width - 1)) < lanes;
  return emulation::shuffle("__shfl_up_sync", site, mask, value, beyond ? lane : lane - lanes);
}

inline unsigned __ballot_sync(unsigned mask, int condition, emulation::Site site = emulation::Site::here()) {
  return emulation::ballot("__ballot_sync", site, mask, condition != 0);
}
inline int __any_sync(unsigned mask, int condition, emulation::Site site = emulation::Site::here()) {
  return emulation::ballot("__any_sync", site, mask, condition != 0) != 0;
}
inline int __all_sync(unsigned mask, int condition, emulation::Site site = emulation::Site::here()) {
  return emulation::ballot("__all_sync", site, mask, condition == 0) == 0;
}
