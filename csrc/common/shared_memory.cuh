// Shared memory whose size the launch tells.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "host_device.h"

namespace mcd::MCD_TARGET {

// Blocks may use more than 48 KiB of shared memory only where that is asked for.
template <typename Kernel> void allow_shared_memory(Kernel kernel, size_t bytes, const char* operator_name) {
  if (bytes <= 48 * 1024) return;
  const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::invalid_argument(
      std::string(operator_name) + ": so many source images need " + std::to_string(bytes) +
      " bytes of shared memory, more than this GPU has; backend=\"reference\" has no such limit");
}

}  // namespace mcd::MCD_TARGET
