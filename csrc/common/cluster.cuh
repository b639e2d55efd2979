// Blocks that work on one set together: a cluster, which runs on neighbouring multiprocessors at the same time, where the
// processor has those (compute capability 9.0 and above), else one block.
#pragma once

#include <cuda_runtime.h>

#include "host_device.h"

// Of a kernel, before its bounds. Code for older processors has no clusters: there the kernel is empty and never launched.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define MCD_CLUSTER(blocks)
#define MCD_HAS_CLUSTERS 0
#else
#define MCD_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#define MCD_HAS_CLUSTERS 1
#endif

namespace mcd::MCD_TARGET {

constexpr int kClusterBlocks = 8;  // as many as every processor with clusters allows

inline bool has_clusters() {
  int device = 0, capability = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device);
  return capability >= 9;
}

// Waits for all threads of the cluster; what they wrote to global memory before can be read past the first-level cache.
template <int kBlocks> __device__ __forceinline__ void cluster_sync() {
  if constexpr (kBlocks == 1) {
    __syncthreads();
  } else {
#if MCD_HAS_CLUSTERS && defined(__CUDA_ARCH__)
    asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#endif
  }
}

}  // namespace mcd::MCD_TARGET
