// Images cut into tiles of neighbouring pixels, a CUDA block for each, and the parts of the instances in a tile. The pixels
// of a mask ascend, so that its part is found by search.
#pragma once

#include "instances.h"

namespace mcd::MCD_TARGET {

constexpr int kTile = 2048, kTileThreads = 256;

inline int64_t tiles_of(int64_t image_size) { return (image_size + kTile - 1) / kTile; }

struct TileOfImage {
  int64_t frame, begin, end;

  __device__ TileOfImage(int64_t tile, int64_t image_size) {
    const int64_t tiles = (image_size + kTile - 1) / kTile;
    frame = tile / tiles;
    begin = tile % tiles * kTile;
    end = min<int64_t>(begin + kTile, image_size);
  }
};

// Where the pixels of instance n that are not below `first` begin, found by a warp: 32 of them are looked at in each step.
__device__ inline int lower_bound_of_warp(const InstanceView& instances, int low, int high, int first) {
  while (low < high) {
    const int size = high - low, step = size / 32 + (size % 32 != 0), lane = int(threadIdx.x % 32);
    const int far = lane * step;  // below 2^31: at most the size and 31
    const int below = __popc(__ballot_sync(0xffffffffu, far < size && instances.pixel[low + far] < first));
    high = low + min(below * step, size);
    if (below > 0) low += (below - 1) * step + 1;
  }
  return low;
}

// f(n, begin, end), by all threads together and in order, for every instance n that has pixels [begin, end) in the tile.
template <typename F> __device__ void for_each_part(const InstanceView& instances, const TileOfImage& tile, F f) {
  constexpr int kWarps = kTileThreads / 32;
  __shared__ int32_t begin[kTileThreads], end[kTileThreads], who[kTileThreads], found[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t first = 0; first < instances.count; first += kTileThreads) {
    const int64_t n = first + threadIdx.x;
    const bool in_frame = n < instances.count && instances.frame[n] == tile.frame;
    const unsigned here = __ballot_sync(0xffffffffu, in_frame);
    if (lane == 0) found[warp] = __popc(here);
    __syncthreads();
    int place = __popc(here & ((1u << lane) - 1)), total = 0;
    for (int w = 0; w < kWarps; ++w) place += w < warp ? found[w] : 0, total += found[w];
    if (in_frame) who[place] = int32_t(n);
    __syncthreads();
    for (int i = warp; i < total; i += kWarps) {
      const int low = instances.offset[who[i]], high = instances.offset[who[i] + 1];
      const int own_begin = lower_bound_of_warp(instances, low, high, int(tile.begin));
      const int own_end = lower_bound_of_warp(instances, own_begin, high, int(tile.end));
      if (lane == 0) begin[i] = own_begin, end[i] = own_end;
    }
    __syncthreads();
    // Those that have pixels here, still in order.
    const int own = threadIdx.x;
    const bool some = own < total && begin[own] < end[own];
    const int32_t part[3] = {some ? who[own] : 0, some ? begin[own] : 0, some ? end[own] : 0};
    const unsigned kept = __ballot_sync(0xffffffffu, some);
    if (lane == 0) found[warp] = __popc(kept);
    __syncthreads();
    place = __popc(kept & ((1u << lane) - 1)), total = 0;
    for (int w = 0; w < kWarps; ++w) place += w < warp ? found[w] : 0, total += found[w];
    if (some) who[place] = part[0], begin[place] = part[1], end[place] = part[2];
    __syncthreads();
    for (int i = 0; i < total; ++i) f(int64_t(who[i]), int64_t(begin[i]), int64_t(end[i]));
    __syncthreads();
  }
}

}  // namespace mcd::MCD_TARGET
