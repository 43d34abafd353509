// What csrc/cuda/dispatch.h asks of CUDA's runtime, for a device that is not here. Its header is not included: nvcc's would
// declare the same for devices.
extern "C" {
int device_processors, device_shared_of_block;

int cudaGetDevice(int* device) { return *device = 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  constexpr int kMultiProcessorCount = 16;  // cudaDeviceAttr's; else it is the shared memory of a block
  *value = attribute == kMultiProcessorCount ? device_processors : device_shared_of_block;
  return 0;
}
// By which nvcc's code makes its kernels known, of which there are none.
void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
const char* cudaGetErrorName(int) { return ""; }
const char* cudaGetErrorString(int) { return ""; }
}
