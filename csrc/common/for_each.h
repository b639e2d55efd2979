// The loops around operators: over OpenMP threads on CPU, over a grid on CUDA.
#pragma once

#include <cstdint>

#include "host_device.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#endif

namespace mcd::MCD_TARGET {

#ifndef __CUDACC__
// body(i) for i in [0, count): a contiguous share for each thread. What `body` writes for i must depend on i alone; then
// results are the same bit for bit whatever the number of threads.
template <typename Body> void for_each_cpu(int64_t count, int threads, const Body& body) {
  const int64_t shares = threads < count ? threads : count;
#pragma omp parallel for num_threads(int(shares)) schedule(static, 1) if (shares > 1)
  for (int64_t share = 0; share < shares; ++share)
    for (int64_t i = count * share / shares; i < count * (share + 1) / shares; ++i) body(i);
}
#endif

#ifdef __CUDACC__
inline void check_launch(const char* operator_name) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(operator_name) + ": CUDA launch failed: " + cudaGetErrorString(error));
}

// i / by and i % by. Of 64 bits a division takes a hundred instructions, and few images have so many pixels.
struct Quotient {
  int64_t whole, rest;
};
__device__ __forceinline__ Quotient divide(int64_t i, int64_t by) {
  if ((i | by) >> 32 != 0) return {i / by, i % by};
  const uint32_t whole = uint32_t(i) / uint32_t(by);
  return {whole, uint32_t(i) - whole * uint32_t(by)};
}

// Calls f(y, x) for all of [first_row, last_row) × [first_column, last_column), shared among a block's threads: with additions
// in place of a division for every pixel.
template <int kThreads, typename F>
__device__ __forceinline__ void for_each_place(int first_row, int last_row, int first_column, int last_column, const F& f) {
  const int columns = last_column - first_column;
  if (columns <= 0) return;
  const int down = kThreads / columns, across = kThreads % columns;
  int y = first_row + int(threadIdx.x) / columns, x = first_column + int(threadIdx.x) % columns;
  while (y < last_row) {
    f(y, x);
    y += down, x += across;
    if (x >= last_column) x -= columns, ++y;
  }
}

// Neighbours that are read and written as one.
template <typename T> struct alignas(4 * sizeof(T)) Quad {
  T lanes[4];
};
// Whether images of `size` numbers are whole quads, those that begin at `first`.
template <typename... T> bool in_quads(int64_t size, const T*... first) {
  return size % 4 == 0 && ((reinterpret_cast<uintptr_t>(first) % sizeof(Quad<T>) == 0) && ...);
}

constexpr int kLoopThreads = 256;
// One block at least: else ptxas spills registers where it need not.
template <typename Body> __global__ void __launch_bounds__(kLoopThreads, 1) loop_cuda(Body body, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) body(i);
}

// body(i) for i in [0, count), one CUDA thread each.
template <typename Body> void for_each_cuda(int64_t count, void* stream, const char* operator_name, const Body& body) {
  if (count == 0) return;
  const auto blocks = unsigned((count + kLoopThreads - 1) / kLoopThreads);
  loop_cuda<<<blocks, kLoopThreads, 0, cudaStream_t(stream)>>>(body, count);
  check_launch(operator_name);
}

// Sums sixteen values over a warp; lane i gets the sum of values[i / 2]. Each exchange halves what is left to add, so that it
// takes 16 of them and not 80.
constexpr int kSumsOfWarp = 16;
template <int kHalf = kSumsOfWarp / 2, typename T> __device__ __forceinline__ T sum_of_warp(T (&values)[kSumsOfWarp]) {
  if constexpr (kHalf == 0) {
    return values[0] + __shfl_xor_sync(0xffffffffu, values[0], 1);
  } else {
    const bool upper = threadIdx.x & (2 * kHalf);
#pragma unroll
    for (int k = 0; k < kHalf; ++k) {
      const T low = values[k], high = values[k + kHalf];
      values[k] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, 2 * kHalf);
    }
    return sum_of_warp<kHalf / 2>(values);
  }
}

// Sums `values[0..n)` over a block of `kThreads`; the result is valid in thread 0. A fixed tree: deterministic.
template <int kThreads, int kCount, typename T> __device__ void block_sum(T (&values)[kCount]) {
  static_assert(kThreads % 32 == 0, "whole warps");
  __shared__ T shared[kThreads / 32][kCount];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    for (int step = 16; step > 0; step /= 2) values[k] += __shfl_xor_sync(0xffffffffu, values[k], step);
  if (lane == 0)
    for (int k = 0; k < kCount; ++k) shared[warp][k] = values[k];
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kThreads / 32; ++w)
      for (int k = 0; k < kCount; ++k) values[k] += shared[w][k];
}
#endif

}  // namespace mcd::MCD_TARGET
