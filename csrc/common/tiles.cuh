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
__device__ inline int64_t lower_bound_of_warp(const InstanceView& instances, int64_t n, int64_t first) {
  int64_t low = instances.offset[n], high = instances.offset[n + 1];
  while (low < high) {
    const int64_t step = (high - low + 31) / 32, probe = low + threadIdx.x % 32 * step;
    const int below = __popc(__ballot_sync(0xffffffffu, probe < high && instances.pixel[probe] < first));
    high = min<int64_t>(low + below * step, high);
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
      const auto own_begin = int32_t(lower_bound_of_warp(instances, who[i], tile.begin));
      const auto own_end = int32_t(lower_bound_of_warp(instances, who[i], tile.end));
      if (lane == 0) begin[i] = own_begin, end[i] = own_end;
    }
    __syncthreads();
    for (int i = 0; i < total; ++i)
      if (begin[i] < end[i]) f(int64_t(who[i]), int64_t(begin[i]), int64_t(end[i]));
    __syncthreads();
  }
}

}  // namespace mcd::MCD_TARGET
