// Images cut into tiles of neighbouring pixels, a CUDA block for each, and the parts of the instances in a tile. The pixels
// of a mask ascend, so that its part is found by bisection.
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

// f(n, begin, end), by all threads together and in order, for every instance n that has pixels [begin, end) in the tile.
template <typename F> __device__ void for_each_part(const InstanceView& instances, const TileOfImage& tile, F f) {
  __shared__ int32_t begin[kTileThreads], end[kTileThreads], who[kTileThreads], found[kTileThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t first = 0; first < instances.count; first += kTileThreads) {
    const int64_t n = first + threadIdx.x;
    int32_t own_begin = 0, own_end = 0;
    if (n < instances.count && instances.frame[n] == tile.frame) {
      own_begin = int32_t(instances.lower_bound(n, tile.begin));
      own_end = int32_t(instances.lower_bound(n, tile.end));
    }
    const unsigned here = __ballot_sync(0xffffffffu, own_begin < own_end);
    if (lane == 0) found[warp] = __popc(here);
    __syncthreads();
    int place = __popc(here & ((1u << lane) - 1)), total = 0;
    for (int w = 0; w < kTileThreads / 32; ++w) place += w < warp ? found[w] : 0, total += found[w];
    if (own_begin < own_end) begin[place] = own_begin, end[place] = own_end, who[place] = int32_t(n);
    __syncthreads();
    for (int i = 0; i < total; ++i) f(int64_t(who[i]), int64_t(begin[i]), int64_t(end[i]));
    __syncthreads();
  }
}

}  // namespace mcd::MCD_TARGET
