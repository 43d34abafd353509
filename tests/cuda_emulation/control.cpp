// The emulator's settings as C functions, for tests that load the module with ctypes.
#include <cstring>

#include "emulation.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulation_set_seed(uint64_t seed) { emulation::set_seed(seed); }
EXPORT void emulation_set_mutation(const char* name) { emulation::set_mutation(name); }

// The names of the mutations that kernels have asked about, one a line; returns the length that they need.
EXPORT size_t emulation_mutations_reached(char* to, size_t size) {
  std::string text;
  for (const std::string& name : emulation::mutations_reached()) text += name + "\n";
  if (text.size() < size) std::memcpy(to, text.c_str(), text.size() + 1);
  return text.size() + 1;
}

EXPORT void emulation_set_livelock_limit(uint64_t idle_points) { emulation::set_livelock_limit(idle_points); }

EXPORT void emulation_set_shared_bytes(int bytes) {
  emulation::Device device = emulation::device();
  device.shared_bytes = bytes;
  emulation::set_device(device);
}
