#include "fuse_depth.h"

#include "../common/for_each.h"
#include "../common/tiles.cuh"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

// The nearest depth of every pixel, one instance after another: of equal ones the first.
template <typename scalar_t>
__global__ void __launch_bounds__(kTileThreads, 1) fuse_tiles(FuseDepthFwd<scalar_t> p, bool quads) {
  static_assert(kTile * (sizeof(scalar_t) + sizeof(int)) <= 40 * 1024, "a tile and its parts fit shared memory");
  __shared__ scalar_t nearest[kTile];
  __shared__ int winner[kTile];
  const scalar_t infinity = scalar_t(__builtin_inff());
  const TileOfImage tile(blockIdx.x, p.image_size);
  for (int x = threadIdx.x; x < kTile; x += kTileThreads) nearest[x] = infinity, winner[x] = -1;
  for_each_part(p.instances, tile, [&](int64_t n, int64_t begin, int64_t end) {
    for (int64_t at = begin + threadIdx.x; at < end; at += kTileThreads) {
      const scalar_t depth = p.object_depth[at];
      const int64_t x = p.instances.pixel[at] - tile.begin;
      if (is_depth(depth) && depth < nearest[x]) nearest[x] = depth, winner[x] = int(n);
    }
    __syncthreads();
  });
  __syncthreads();
  const auto fuse = [&](int64_t x, scalar_t& depth, int32_t& instance) {
    instance = winner[x - tile.begin];
    if (instance >= 0) depth = nearest[x - tile.begin];
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

template <typename scalar_t>
__global__ void __launch_bounds__(kTileThreads, 1) grad_tiles(FuseDepthBwd<scalar_t> p, bool quads) {
  const TileOfImage tile(blockIdx.x, p.image_size);
  const int64_t image = tile.frame * p.image_size;
  if (quads) {
    for (int64_t x = image + tile.begin + 4 * threadIdx.x; x < image + tile.end; x += 4 * kTileThreads) {
      auto grad = *reinterpret_cast<const Quad<scalar_t>*>(p.grad_fused + x);
      const auto instance = *reinterpret_cast<const Quad<int32_t>*>(p.winner + x);
      for (int k = 0; k < 4; ++k) grad.lanes[k] = instance.lanes[k] < 0 ? grad.lanes[k] : scalar_t(0);
      *reinterpret_cast<Quad<scalar_t>*>(p.grad_background + x) = grad;
    }
  } else {
    for (int64_t x = tile.begin + threadIdx.x; x < tile.end; x += kTileThreads)
      p.template background<scalar_t>(image + x, 1);
  }
  for_each_part(p.instances, tile, [&](int64_t n, int64_t begin, int64_t end) {
    const int64_t first = p.instances.offset[n];
    for (int64_t at = begin + threadIdx.x; at < end; at += kTileThreads)
      p.template objects<scalar_t>(n, at - first, 1);
  });
}

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
        fwd, in_quads(fwd.image_size, fwd.background));
    check_launch("fuse_depth_fwd");
  });
}

void fuse_depth_bwd(
    const Tensor& grad_fused, const Tensor& winner, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const Tensor& grad_background, const Tensor& grad_object_depth, const Where& where) {
  dispatch(grad_fused.dtype, [&](auto scalar) {
    const auto bwd = fuse_depth_grad_of<decltype(scalar)>(
        grad_fused, winner, view_instances(pixel, offset, frame), grad_background, grad_object_depth);
    const int64_t tiles = bwd.batch * tiles_of(bwd.image_size);
    if (tiles == 0) return;
    grad_tiles<decltype(scalar)><<<unsigned(tiles), kTileThreads, 0, cudaStream_t(where.stream)>>>(
        bwd, in_quads(bwd.image_size, bwd.grad_fused));
    check_launch("fuse_depth_bwd");
  });
}

}  // namespace mcd::MCD_TARGET
