#include "fuse_depth.h"

#include "../common/for_each.h"
#include "../common/tiles.cuh"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

// Positive floats are in the order of their bits.
template <typename T> struct Bits;
template <> struct Bits<float> {
  using type = unsigned;
};
template <> struct Bits<double> {
  using type = unsigned long long;
};

// Neighbours that are read and written as one: images pass through whole, and are most of what this operator moves.
template <typename T> struct alignas(4 * sizeof(T)) Quad {
  T lanes[4];
};
template <typename T> bool in_quads(const FuseDepthFwd<T>& p) {
  return p.image_size % 4 == 0 && reinterpret_cast<uintptr_t>(p.background) % sizeof(Quad<T>) == 0;
}

// The nearest depth of every pixel first, then the smallest instance that has it: integer minima, in whatever order.
template <typename scalar_t>
__global__ void __launch_bounds__(kTileThreads) fuse_tiles(FuseDepthFwd<scalar_t> p, bool quads) {
  using Word = typename Bits<scalar_t>::type;
  static_assert(kTile * (sizeof(Word) + sizeof(int)) <= 48 * 1024, "a tile fits shared memory");
  __shared__ Word nearest[kTile];
  __shared__ int winner[kTile];
  const Word none = ~Word(0);
  const TileOfImage tile(blockIdx.x, p.image_size);
  for (int x = threadIdx.x; x < kTile; x += kTileThreads) nearest[x] = none, winner[x] = INT32_MAX;
  __syncthreads();
  for_each_part(p.instances, tile, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t at = begin + threadIdx.x; at < end; at += kTileThreads)
      if (is_depth(p.object_depth[at]))
        atomicMin(&nearest[p.instances.pixel[at] - tile.begin], bit_cast<Word>(p.object_depth[at]));
  });
  __syncthreads();
  for_each_part(p.instances, tile, [&](int64_t n, int64_t begin, int64_t end) {
    for (int64_t at = begin + threadIdx.x; at < end; at += kTileThreads) {
      const int64_t x = p.instances.pixel[at] - tile.begin;
      if (bit_cast<Word>(p.object_depth[at]) == nearest[x]) atomicMin(&winner[x], int(n));
    }
  });
  __syncthreads();
  const auto fuse = [&](int64_t x, scalar_t& depth, int32_t& instance) {
    const Word word = nearest[x - tile.begin];
    depth = word == none ? depth : bit_cast<scalar_t>(word);
    instance = word == none ? -1 : winner[x - tile.begin];
  };
  const int64_t image = tile.frame * p.image_size;
  if (quads) {
    for (int64_t x = tile.begin + 4 * threadIdx.x; x < tile.end; x += 4 * kTileThreads) {
      auto depth = *reinterpret_cast<const Quad<scalar_t>*>(p.background + image + x);
      Quad<int32_t> instance;
      for (int k = 0; k < 4; ++k) fuse(x + k, depth.lanes[k], instance.lanes[k]);
      *reinterpret_cast<Quad<scalar_t>*>(p.fused + image + x) = depth;
      *reinterpret_cast<Quad<int32_t>*>(p.winner + image + x) = instance;
    }
    return;
  }
  for (int64_t x = tile.begin + threadIdx.x; x < tile.end; x += kTileThreads) {
    scalar_t depth = p.background[image + x];
    fuse(x, depth, p.winner[image + x]);
    p.fused[image + x] = depth;
  }
}

template <typename scalar_t> struct GradOfPixel {
  FuseDepthBwd<scalar_t> bwd;
  __device__ void operator()(int64_t i) const { bwd.template background<scalar_t>(i, 1); }
};
template <typename scalar_t> struct GradOfEntry {
  FuseDepthBwd<scalar_t> bwd;
  __device__ void operator()(int64_t i) const {
    const int64_t n = bwd.instances.instance_of(i);
    bwd.template objects<scalar_t>(n, i - bwd.instances.offset[n], 1);
  }
};

}  // namespace

void fuse_depth_fwd(
    const Tensor& background, const Tensor& object_depth, const Tensor& pixel, const Tensor& offset,
    const Tensor& frame, const Tensor& fused, const Tensor& winner, const Where& where) {
  dispatch(background.dtype, [&](auto scalar) {
    const auto fwd = fuse_depth_of<decltype(scalar)>(
        background, object_depth, view_instances(pixel, offset, frame), fused, winner);
    const int64_t tiles = fwd.batch * tiles_of(fwd.image_size);
    if (tiles == 0) return;
    fuse_tiles<decltype(scalar)><<<unsigned(tiles), kTileThreads, 0, cudaStream_t(where.stream)>>>(
        fwd, in_quads(fwd));
    check_launch("fuse_depth_fwd");
  });
}

void fuse_depth_bwd(
    const Tensor& grad_fused, const Tensor& winner, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const Tensor& grad_background, const Tensor& grad_object_depth, const Where& where) {
  dispatch(grad_fused.dtype, [&](auto scalar) {
    const auto bwd = fuse_depth_grad_of<decltype(scalar)>(
        grad_fused, winner, view_instances(pixel, offset, frame), grad_background, grad_object_depth);
    for_each_cuda(
        bwd.batch * bwd.image_size, where.stream, "fuse_depth_bwd", GradOfPixel<decltype(scalar)>{bwd});
    for_each_cuda(pixel.size[0], where.stream, "fuse_depth_bwd", GradOfEntry<decltype(scalar)>{bwd});
  });
}

}  // namespace mcd::MCD_TARGET
