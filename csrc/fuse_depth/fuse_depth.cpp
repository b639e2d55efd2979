#include "fuse_depth.h"

#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int64_t kTile = 4096;  // neighbouring pixels that are one task

inline int64_t tiles_of(int64_t pixels) { return (pixels + kTile - 1) / kTile; }

// The pixels of a mask ascend, so that those inside a tile are found by bisection; nobody else writes there.
template <typename scalar_t> struct FuseTile {
  using V = Pack<scalar_t>;
  FuseDepthFwd<scalar_t> fwd;

  MCD_HD void operator()(int64_t i) const {
    const auto& p = fwd;
    const int64_t tiles = tiles_of(p.image_size), b = i / tiles, begin = i % tiles * kTile;
    const int64_t end = min<int64_t>(begin + kTile, p.image_size), image = b * p.image_size;
    scalar_t* fused = p.fused + image;
    int32_t* winner = p.winner + image;
    for (int64_t x = begin; x < end; ++x) fused[x] = p.background[image + x];
    for (int64_t x = begin; x < end; ++x) winner[x] = -1;
    for (int64_t n = 0; n < p.instances.count; ++n) {
      if (p.instances.frame[n] != b) continue;
      const int64_t last = p.instances.lower_bound(n, end);
      int64_t at = p.instances.lower_bound(n, begin);
      while (at < last) {
        const int32_t x = p.instances.pixel[at];
        // Masks are made of runs of neighbours, which a pack takes at once.
        const bool run = at + kLanes<V> <= last && p.instances.pixel[at + kLanes<V> - 1] - x == kLanes<V> - 1;
        const int count = run ? kLanes<V> : 1;
        put_in_front(p.object_depth + at, int32_t(n), fused + x, winner + x, count);
        at += count;
      }
    }
  }

  // `count` neighbours of instance n, where they are nearer than what is seen.
  static MCD_HD void put_in_front(const scalar_t* depths, int32_t n, scalar_t* fused, int32_t* winner, int count) {
    if (count == 1) {
      if (!is_depth(*depths) || (*winner >= 0 && !(*depths < *fused))) return;
      *fused = *depths, *winner = n;
      return;
    }
    const V depth = load<V>(depths, count), seen = load<V>(fused, count);
    const auto who = load<Int<V>>(winner, count);
    const Mask<V> nearer = (depth > 0) & is_finite(depth) & (as_mask<V>(who < 0) | (depth < seen));
    store(fused, select<V>(nearer, depth, seen), count);
    store(winner, select<Int<V>>(convert<Mask<Int<V>>>(nearer), splat<Int<V>>(n), who), count);
  }
};

template <typename scalar_t> struct GradOfBackground {
  using V = Pack<scalar_t>;
  FuseDepthBwd<scalar_t> bwd;

  MCD_HD void operator()(int64_t chunk) const {
    const int64_t end = min<int64_t>((chunk + 1) * kTile, bwd.batch * bwd.image_size);
    for (int64_t i = chunk * kTile; i < end; i += kLanes<V>)
      bwd.template background<V>(i, int(min<int64_t>(kLanes<V>, end - i)));
  }
};

template <typename scalar_t> struct GradOfObject {
  using V = Pack<scalar_t>;
  FuseDepthBwd<scalar_t> bwd;

  MCD_HD void operator()(int64_t n) const {
    const int64_t size = bwd.instances.size(n);
    for (int64_t i = 0; i < size; i += kLanes<V>)
      bwd.template objects<V>(n, i, int(min<int64_t>(kLanes<V>, size - i)));
  }
};

}  // namespace

void fuse_depth_fwd(
    const Tensor& background, const Tensor& object_depth, const Tensor& pixel, const Tensor& offset,
    const Tensor& frame, const Tensor& fused, const Tensor& winner, const Where& where) {
  dispatch(background.dtype, [&](auto scalar) {
    const auto fwd = fuse_depth_of<decltype(scalar)>(
        background, object_depth, view_instances(pixel, offset, frame), fused, winner);
    for_each_cpu(fwd.batch * tiles_of(fwd.image_size), where.threads, FuseTile<decltype(scalar)>{fwd});
  });
}

void fuse_depth_bwd(
    const Tensor& grad_fused, const Tensor& winner, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const Tensor& grad_background, const Tensor& grad_object_depth, const Where& where) {
  dispatch(grad_fused.dtype, [&](auto scalar) {
    const auto bwd = fuse_depth_grad_of<decltype(scalar)>(
        grad_fused, winner, view_instances(pixel, offset, frame), grad_background, grad_object_depth);
    for_each_cpu(tiles_of(bwd.batch * bwd.image_size), where.threads, GradOfBackground<decltype(scalar)>{bwd});
    for_each_instance_cpu(bwd.instances, where.threads, GradOfObject<decltype(scalar)>{bwd});
  });
}

}  // namespace mcd::MCD_TARGET
