// Stands in for CUDA's header where kernels run without a GPU, compiled as C++. The blocks of a launch run one after another.
// A block's threads are fibers, each of which runs until it waits for others. EMULATED_ORDER (forward, reverse, shuffled)
// is the order of blocks and fibers: a result that changes with it tells of a race.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __shared__ static

using cudaStream_t = void*;
struct int4 {
  int x, y, z, w;
};
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
// A processor without clusters.
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrMaxSharedMemoryPerMultiprocessor };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 164 * 1024, cudaSuccess;
}
template <typename Kernel> cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) { return cudaSuccess; }

using std::fabs, std::fma, std::frexp, std::isfinite, std::ldexp;

namespace emulated {

enum class State { ready, at_warp, at_block, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  int parity;  // of its exchanges
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  unsigned current, index, size;
  std::function<void()> kernel;
  std::vector<double> shared;
  std::vector<uint64_t> slots[2];  // what a thread hands to its warp; two, so that one barrier does for an exchange
  bool vote, voted;
};
inline Block block;

struct Index {
  unsigned x;
};

inline void wait(State state) {
  Fiber& own = block.fibers[block.current];
  own.state = state;
  swapcontext(&own.context, &block.scheduler);
}
inline void run_fiber() {
  block.kernel();
  wait(State::done);
}

// Lets those threads go on that wait together: whether there are any.
inline bool release() {
  bool some = false;
  const auto all_wait = [&](unsigned first, unsigned last, State state) {
    bool waits = false, all = true;
    for (unsigned i = first; i < last; ++i) {
      waits |= block.fibers[i].state == state;
      all &= block.fibers[i].state == state || block.fibers[i].state == State::done;
    }
    return waits && all;
  };
  const auto go = [&](unsigned first, unsigned last, State state) {
    if (!all_wait(first, last, state)) return;
    for (unsigned i = first; i < last; ++i)
      if (block.fibers[i].state == state) block.fibers[i].state = State::ready;
    some = true;
    if (state == State::at_block) block.voted = block.vote, block.vote = false;
  };
  for (unsigned first = 0; first < block.size; first += 32)
    go(first, std::min(first + 32, block.size), State::at_warp);
  go(0, block.size, State::at_block);
  return some;
}

inline std::vector<unsigned> order_of(unsigned count) {
  static std::mt19937 random(1);
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  const char* wanted = std::getenv("EMULATED_ORDER");
  const std::string name = wanted ? wanted : "forward";
  if (name == "reverse") std::reverse(order.begin(), order.end());
  if (name == "shuffled") std::shuffle(order.begin(), order.end(), random);
  return order;
}

template <typename Kernel> void launch(unsigned blocks, unsigned threads, size_t bytes, void*, const Kernel& kernel) {
  if (blocks == 0 || threads == 0 || threads > 1024) throw std::runtime_error("invalid launch configuration");
  constexpr size_t stack = 256 * 1024;
  block.size = threads;
  block.kernel = kernel;
  if (block.fibers.size() < threads) block.fibers.resize(threads);
  for (auto& slots : block.slots) slots.resize((threads + 31) / 32 * 32);
  for (const unsigned index : order_of(blocks)) {
    block.index = index;
    block.vote = false;
    block.shared.assign(bytes / sizeof(double) + 1, std::nan(""));
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = block.fibers[i];
      if (!fiber.stack) fiber.stack.reset(new char[stack]);
      fiber.state = State::ready, fiber.parity = 0;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get(), fiber.context.uc_stack.ss_size = stack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, run_fiber, 0);
    }
    const auto order = order_of(threads);
    do {
      for (const unsigned i : order) {
        if (block.fibers[i].state != State::ready) continue;
        block.current = i;
        swapcontext(&block.scheduler, &block.fibers[i].context);
      }
    } while (release());
    for (unsigned i = 0; i < threads; ++i)
      if (block.fibers[i].state != State::done) throw std::runtime_error("threads of a block wait at different barriers");
  }
}

template <typename T> T exchange(T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const unsigned own = block.current;
  auto& slots = block.slots[block.fibers[own].parity ^= 1];
  std::memcpy(&slots[own], &value, sizeof(T));
  wait(State::at_warp);
  std::memcpy(&value, &slots[own / 32 * 32 + lane], sizeof(T));
  return value;
}
template <typename To, typename From> To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
template <typename T, typename F> T update(T* at, F f) {
  const T before = *at;
  *at = f(before);
  return before;
}

}  // namespace emulated

#define threadIdx (emulated::Index{emulated::block.current})
#define blockIdx (emulated::Index{emulated::block.index})
#define blockDim (emulated::Index{emulated::block.size})

inline void __syncthreads() { emulated::wait(emulated::State::at_block); }
inline void __syncwarp() { emulated::wait(emulated::State::at_warp); }
inline int __syncthreads_or(int predicate) {
  emulated::block.vote |= predicate != 0;
  __syncthreads();
  return emulated::block.voted;
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulated::exchange(value, emulated::block.current % 32 ^ unsigned(mask));
}
template <typename T> T __shfl_sync(unsigned, T value, int lane) { return emulated::exchange(value, unsigned(lane) % 32); }
template <typename T> T __shfl_down_sync(unsigned, T value, int step) {
  const unsigned lane = emulated::block.current % 32;
  return emulated::exchange(value, lane + unsigned(step) < 32 ? lane + unsigned(step) : lane);
}
template <typename T> T __shfl_up_sync(unsigned, T value, int step) {
  const unsigned lane = emulated::block.current % 32;
  return emulated::exchange(value, lane < unsigned(step) ? lane : lane - unsigned(step));
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned votes = predicate ? 1u << emulated::block.current % 32 : 0u;
  for (int step = 16; step > 0; step /= 2) votes |= __shfl_xor_sync(~0u, votes, step);
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __reduce_add_sync(unsigned, int value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  for (int step = 16; step > 0; step /= 2) value = std::min(value, __shfl_xor_sync(~0u, value, step));
  return value;
}
template <typename T> T __ldcg(const T* from) { return *from; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clzll(long long bits) { return __builtin_clzll(bits); }

template <typename T> T atomicAdd(T* at, T value) {
  return emulated::update(at, [&](T before) { return before + value; });
}
template <typename T> T atomicExch(T* at, T value) {
  return emulated::update(at, [&](T) { return value; });
}
template <typename T> T atomicMin(T* at, T value) {
  return emulated::update(at, [&](T before) { return std::min(before, value); });
}
template <typename T> T atomicMax(T* at, T value) {
  return emulated::update(at, [&](T before) { return std::max(before, value); });
}

inline unsigned __float_as_uint(float value) { return emulated::cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return emulated::cast<float>(bits); }
inline long long __double_as_longlong(double value) { return emulated::cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return emulated::cast<double>(bits); }
inline long long __double2ll_rn(double value) { return std::llrint(value); }
