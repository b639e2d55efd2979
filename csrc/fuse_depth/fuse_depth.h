// Depth fusion: what the CPU loops and CUDA kernels share. The formulas stand in mcd/ops/fuse_depth.py.
#pragma once

#include "../common/dispatch.h"
#include "../common/instances.h"

namespace mcd::MCD_TARGET {

template <typename scalar_t> struct FuseDepthFwd {
  const scalar_t* background;    // [B, H, W]
  const scalar_t* object_depth;  // [P]
  InstanceView instances;
  int64_t batch, image_size;
  scalar_t* fused;  // [B, H, W]
  int32_t* winner;  // [B, H, W]
};
template <typename T> MCD_HD bool is_depth(T depth) { return depth > 0 && is_finite(depth); }

template <typename scalar_t> struct FuseDepthBwd {
  const scalar_t* grad_fused;  // [B, H, W]
  const int32_t* winner;       // [B, H, W]
  InstanceView instances;
  int64_t batch, image_size;
  scalar_t* grad_background;    // [B, H, W]
  scalar_t* grad_object_depth;  // [P]

  // `count` pixels of the batch from `i` on.
  template <typename V> MCD_HD void background(int64_t i, int count) const {
    const auto behind = as_mask<V>(load<Int<V>>(winner + i, count) < 0);
    store(grad_background + i, select<V>(behind, load<V>(grad_fused + i, count), V{}), count);
  }
  // `count` pixels of instance n from its i-th on.
  template <typename V> MCD_HD void objects(int64_t n, int64_t i, int count) const {
    const int64_t at = instances.offset[n] + i, image = instances.frame[n] * image_size;
    const auto pixel = load<Int<V>>(instances.pixel + at, count);
    const auto seen = as_mask<V>(gather<Int<V>>(winner + image, pixel) == int32_t(n));
    store(grad_object_depth + at, select<V>(seen, gather<V>(grad_fused + image, pixel), V{}), count);
  }
};

template <typename scalar_t>
FuseDepthFwd<scalar_t> fuse_depth_of(
    const Tensor& background, const Tensor& object_depth, const InstanceView& instances, const Tensor& fused,
    const Tensor& winner) {
  return {background.as<scalar_t>(), object_depth.as<scalar_t>(), instances, background.size[0],
          background.size[2] * background.size[3], fused.as<scalar_t>(), winner.as<int32_t>()};
}
template <typename scalar_t>
FuseDepthBwd<scalar_t> fuse_depth_grad_of(
    const Tensor& grad_fused, const Tensor& winner, const InstanceView& instances, const Tensor& grad_background,
    const Tensor& grad_object_depth) {
  return {grad_fused.as<scalar_t>(), winner.as<int32_t>(), instances, grad_fused.size[0],
          grad_fused.size[2] * grad_fused.size[3], grad_background.as<scalar_t>(), grad_object_depth.as<scalar_t>()};
}

}  // namespace mcd::MCD_TARGET
