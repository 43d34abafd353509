// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): dropout's random numbers as a function of
// where the unit stands, so that a mask depends on no order of computation. Shared by every device.
#pragma once
#include <cstdint>

#include "device.h"

namespace fastlstm {

struct Philox {
  uint32_t word[4];
};

DEVICE inline Philox philox(Philox counter, uint32_t key0, uint32_t key1) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;  // golden ratio and sqrt(3) - 1
  auto& c = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(kMultiplier0) * c[0], p1 = uint64_t(kMultiplier1) * c[2];
    counter = {{uint32_t(p1 >> 32) ^ c[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ key1, uint32_t(p0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// What is drawn. Each kind has a key of its own; the order is that of KINDS in dropout.py.
enum class Drawn : uint64_t { kBetweenLayers, kInput, kRecurrent, kZoneoutH, kZoneoutC, kWeights };

DEVICE inline uint64_t seed_of(Drawn kind, uint64_t seed) { return seed + uint64_t(kind) * 0x9E3779B97F4A7C15u; }

// A unit is kept if its random word reaches p * 2^32.
DEVICE inline uint64_t threshold_of(double p) { return uint64_t(p * 4294967296.0); }

// The first word of a counter. The others: step or gate, row, call.
DEVICE inline uint32_t place_of(int64_t layer, int64_t direction, int64_t quad) {
  return uint32_t(layer) << 21 | uint32_t(direction) << 20 | uint32_t(quad);
}

// Dropout between layers.
struct Dropout {
  double p = 0;
  uint64_t seed = 0;
  uint32_t call = 0;
  uint32_t first_step = 0;  // the number of the step t = 0

  DEVICE uint64_t threshold() const { return threshold_of(p); }

  // The words of units 4 * quad .. 4 * quad + 3.
  DEVICE Philox words(int64_t layer, int64_t direction, int64_t t, int64_t b, int64_t quad) const {
    const uint32_t where = place_of(layer, direction, quad);
    return philox({{where, first_step + uint32_t(t), uint32_t(b), call}}, uint32_t(seed), uint32_t(seed >> 32));
  }
};

}  // namespace fastlstm
