// select.h for a CUDA block: all its threads work on one set of values, and all of them get the result.
#pragma once

#include "select.h"

namespace mcd::MCD_TARGET {

// `value` of all threads, combined in a fixed order.
template <int kThreads, typename T, typename Combine> __device__ T block_reduce(T value, Combine combine) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && kWarps <= 32 && (kWarps & (kWarps - 1)) == 0, "whole warps, a power of two");
  __shared__ T shared[kWarps];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  __syncthreads();  // the last reduction has been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[threadIdx.x % kWarps];
#pragma unroll
  for (int step = kWarps / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}
template <int kThreads, typename T> __device__ T block_sum_all(T value) {
  return block_reduce<kThreads>(value, [](T a, T b) { return a + b; });
}

// The least and the largest of `value` of a warp.
template <typename K> __device__ K warp_min(K value) {
  if constexpr (sizeof(K) == 4) return __reduce_min_sync(0xffffffffu, value);
  for (int step = 16; step > 0; step /= 2) value = min(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}
template <typename K> __device__ K warp_max(K value) { return ~warp_min(K(~value)); }

// f(value, taken) for what `read(i, &taken)` gives at every i in [0, size), shared among the block's threads. Several are on
// their way while one is worked on: atomics in f would keep the compiler from reading ahead.
template <int kThreads, typename Read, typename F>
__device__ __forceinline__ void for_each_value(const Read& read, int64_t size, const F& f) {
  constexpr int kAhead = 4;
  bool taken[kAhead];
  decltype(read(size, taken)) values[kAhead];
  for (int64_t first = threadIdx.x; first < size; first += kAhead * kThreads) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t i = first + k * kThreads;
      values[k] = {}, taken[k] = false;
      if (i < size) values[k] = read(i, &taken[k]);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) f(values[k], taken[k]);
  }
}

// What `kThreads` summaries of parts of a set say of the whole.
template <int kThreads, typename T> struct BlockSummary {
  double sum;
  T least, largest;
  bool poisoned;

  __device__ explicit BlockSummary(const Summary<T>& part)
      : sum(block_sum_all<kThreads>(part.sum)),
        least(block_reduce<kThreads>(part.least, [](T a, T b) { return min(a, b); })),
        largest(block_reduce<kThreads>(part.largest, [](T a, T b) { return max(a, b); })),
        poisoned(__syncthreads_or(is_nan(part.poison))) {}
};

// What the threads of a selection share; the sets that one kernel looks at use it in turn.
template <int kThreads, typename T> struct SelectionMemory {
  static constexpr int kBits = 11, kBins = 1 << kBits;
  static constexpr int kFew = 128;  // a further histogram costs less than to rank more of them

  int bins[kBins], warps[kThreads / 32];
  Key<T> few[kFew];
  int count, bin, below, inside;
  Key<T> low, high;
};

// Ranks of the values that `read(i, &taken)` -> T takes, i in [0, size). They lie in [least, largest], none is NaN.
template <int kThreads, typename T, typename Read> class BlockSelection {
  using K = Key<T>;
  using Shared = SelectionMemory<kThreads, T>;
  static constexpr int kBits = Shared::kBits, kBins = Shared::kBins, kFew = Shared::kFew;
  static constexpr int kOwn = kBins / kThreads;  // bins of a thread
  static_assert(kOwn * kThreads == kBins, "every thread has as many bins");

 public:
  __device__ BlockSelection(Shared* shared, const Read& read, int64_t size, int64_t taken, T least, T largest)
      : shared_(shared), read_(read), size_(size), taken_(taken), lowest_(key_of(least)),
        width_(key_of(largest) - key_of(least)) {}

  // The values of `rank` < taken and, if `with_next`, of the rank above it where there is one.
  __device__ Neighbours<T> find(int64_t rank, bool with_next) {
    K low = lowest_, width = width_;
    int64_t below = 0, inside = taken_;
    while (inside > kFew && width > 0) {
      const int shift = bin_shift(width, kBits);
      const bool first_round = inside == taken_;
      if (!first_round || !has_first_round_) count(low, width, shift);
      has_first_round_ = first_round;
      find_bin(int(rank - below));
      below += shared_->below;
      inside = shared_->inside;
      const K start = K(shared_->bin) << shift;
      low += start;
      width = min<K>(width - start, (K(1) << shift) - 1);
    }
    const int64_t end = below + inside;
    with_next = with_next && rank + 1 < taken_;
    K found = low, next = low;
    if (width > 0) {
      collect(low, width);
      of_ranks(int(inside), int(rank - below));
      found = shared_->low;
      next = with_next && rank + 1 < end ? shared_->high : found;
    }
    if (with_next && rank + 1 == end) next = least_above(low + width);
    __syncthreads();  // shared memory is free again
    return {value_of<T>(found), value_of<T>(next)};
  }

 private:
  template <typename F> __device__ void each(F f) const {
    for_each_value<kThreads>(read_, size_, [&](T value, bool taken) {
      if (taken) f(key_of(value));
    });
  }

  __device__ void count(K low, K width, int shift) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) shared_->bins[bin] = 0;
    __syncthreads();
    each([&](K key) {
      if (key - low <= width) atomicAdd(&shared_->bins[(key - low) >> shift], 1);
    });
    __syncthreads();
  }

  // The bin that holds a rank, how many values lie below it and in it.
  __device__ void find_bin(int rank) {
    const int first = threadIdx.x * kOwn, lane = threadIdx.x % 32;
    int own = 0;
    for (int i = 0; i < kOwn; ++i) own += shared_->bins[first + i];
    int end = own;  // of this and the bins before, first of the warp's, then of all
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(0xffffffffu, end, step);
      if (lane >= step) end += before;
    }
    if (lane == 31) shared_->warps[threadIdx.x / 32] = end;
    __syncthreads();
    for (int warp = 0; warp < int(threadIdx.x) / 32; ++warp) end += shared_->warps[warp];
    int below = end - own;
    for (int i = 0; i < kOwn; ++i) {
      const int inside = shared_->bins[first + i];
      if (below <= rank && rank < below + inside) shared_->bin = first + i, shared_->below = below, shared_->inside = inside;
      below += inside;
    }
    __syncthreads();
  }

  // In any order: the ranks among them do not depend on it.
  __device__ void collect(K low, K width) {
    if (threadIdx.x == 0) shared_->count = 0;
    __syncthreads();
    each([&](K key) {
      if (key - low <= width) shared_->few[atomicAdd(&shared_->count, 1)] = key;
    });
    __syncthreads();
  }

  __device__ void of_ranks(int count, int rank) {
    if (int(threadIdx.x) < count) {
      const K own = shared_->few[threadIdx.x];
      int less = 0, equal = 0;
      for (int i = 0; i < count; ++i) less += shared_->few[i] < own, equal += shared_->few[i] == own;
      if (less <= rank && rank < less + equal) shared_->low = own;
      if (less <= rank + 1 && rank + 1 < less + equal) shared_->high = own;
    }
    __syncthreads();
  }

  __device__ K least_above(K limit) const {
    K least = ~K(0);
    each([&](K key) {
      if (key > limit) least = min(least, key);
    });
    return block_reduce<kThreads>(least, [](K a, K b) { return min(a, b); });
  }

  Shared* shared_;
  const Read& read_;
  int64_t size_, taken_;
  K lowest_, width_;
  bool has_first_round_ = false;
};

}  // namespace mcd::MCD_TARGET
