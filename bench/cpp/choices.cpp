// How csrc/cuda/dispatch.h would run layers on a device that is not here: a line of numbers in, a line of numbers out.
// Linked with no_device.cpp instead of CUDA's runtime.
#include <cstdio>

#include "../../csrc/cuda/dispatch.h"

using namespace fastlstm::gpu;

// no_device.cpp
extern "C" int device_processors, device_shared_of_block;

template <class T>
void say(int64_t batch, int64_t hidden, bool tf32, bool backward) {
  LayerForward<T> layer{};
  layer.shape.T = 1024, layer.shape.B = batch, layer.shape.H = hidden;
  layer.tf32 = tf32;
  const Choice choice = choose(layer, kPlain, Algorithm::kAutomatic, backward, Device{});
  std::printf("%s %d %d %zu %d %d %d\n", kAlgorithmNames[int(choice.algorithm)], choice.blocks, choice.threads,
              choice.shared_bytes, choice.thread_rows,
              choice.algorithm == Algorithm::kResident ? choice.resident.rows : choice.persistent.rows,
              choice.persistent.columns());
}

// processors, bytes of shared memory of a block; the bytes of a number, B, H; tf32, backward as 0 or 1
int main() {
  int bytes, batch, hidden, tf32, backward;
  while (std::scanf("%d %d %d %d %d %d %d", &device_processors, &device_shared_of_block, &bytes, &batch, &hidden, &tf32,
                    &backward) == 7)
    bytes == 2 ? say<__half>(batch, hidden, false, backward) : say<float>(batch, hidden, tf32, backward);
}
