// Stands in for CUDA's runtime under the host code that nvcc compiled: a launch becomes a call of a Python function, with
// the kernel's name and what the host code passed. The addresses are those of CPU memory.
#include <cstddef>
#include <cstring>
#include <map>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

struct Size {
  unsigned x, y, z;
};
using LaunchFunction = void (*)(const char* name, const Size* grid, const Size* block, size_t shared, void** arguments);
using FillFunction = void (*)(void* to, int value, size_t bytes);

namespace {
LaunchFunction launch_function;
FillFunction fill_function;
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> found;
  return found;
}
struct Configuration {
  Size grid, block;
  size_t shared;
  void* stream;
} pushed;
}  // namespace

extern "C" __attribute__((visibility("default"))) int capability;
int capability = 9;  // of the device, its first digit

EXPORT void set_functions(LaunchFunction launch, FillFunction fill) { launch_function = launch, fill_function = fill; }

EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT void __cudaRegisterFunction(
    void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names()[host] = name;
}
EXPORT unsigned __cudaPushCallConfiguration(Size grid, Size block, size_t shared, void* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
EXPORT int __cudaPopCallConfiguration(Size* grid, Size* block, size_t* shared, void** stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *stream = pushed.stream;
  return 0;
}
EXPORT int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return 0;
}
EXPORT int cudaLaunchKernel(const void* host, Size grid, Size block, void** arguments, size_t shared, void*) {
  launch_function(names().at(host).c_str(), &grid, &block, shared, arguments);
  return 0;
}
EXPORT int __cudaLaunchKernel(const void* kernel, Size grid, Size block, void** arguments, size_t shared, void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
EXPORT int cudaMemsetAsync(void* to, int value, size_t bytes, void*) {
  fill_function(to, value, bytes);
  return 0;
}
EXPORT int cudaFuncSetAttribute(const void*, int, int) { return 0; }
EXPORT int cudaGetLastError() { return 0; }
EXPORT const char* cudaGetErrorString(int) { return ""; }
EXPORT int cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
// An H200: 132 multiprocessors, 227 KiB of shared memory a block at most.
EXPORT int cudaDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 16: *value = 132; break;           // multiprocessors
    case 39: *value = 2048; break;          // threads of one
    case 75: *value = capability; break;    // compute capability
    case 76: *value = 0; break;
    case 81: *value = 228 * 1024; break;    // shared memory of a multiprocessor
    case 97: *value = 227 * 1024; break;    // and of a block that asks for it
    default: return 1;
  }
  return 0;
}
