// Backward warp: what its CPU loops and CUDA kernels share. The formula stands in mcd/ops/backward_warp.py.
#pragma once

#include "../common/bilinear.h"
#include "../common/camera.h"
#include "../common/tensor.h"

namespace mcd {

// kMotion: 0 (none), 2 (pixel · depth) or 3 (translation in the source frame).
template <typename scalar_t, typename image_t, int kMotion> struct BackwardWarpParams {
  const image_t* source;      // [B, C, H, W]
  const scalar_t* depth;      // [B, h, w]
  const scalar_t* K;          // [B, 3, 3]
  const scalar_t* T_src_ref;  // [B, 4, 4]
  const scalar_t* motion;     // [B, kMotion, H, W]
  int64_t batch;
  int channels, height, width, depth_height, depth_width;

  MCD_HD int64_t rows() const { return batch * height; }
  MCD_HD int64_t pixels() const { return int64_t(height) * width; }
  MCD_HD bool full_depth() const { return depth_height == height && depth_width == width; }
  MCD_HD Camera<scalar_t> camera(int64_t b) const { return make_camera(K + 9 * b, T_src_ref + 16 * b); }

  MCD_HD scalar_t depth_at(int64_t b, int y, int x) const {
    if (full_depth()) return depth[b * pixels() + int64_t(y) * width + x];
    const auto row = between(y, scalar_t(depth_height) / height, depth_height);
    const auto column = between(x, scalar_t(depth_width) / width, depth_width);
    const scalar_t* low = depth + (b * depth_height + row.low) * depth_width;
    const scalar_t* high = depth + (b * depth_height + row.high) * depth_width;
    return mix(mix(low[column.low], low[column.high], column.weight),
               mix(high[column.low], high[column.high], column.weight), row.weight);
  }
};

// Where one reference pixel looks. An unusable pixel (depth or motion not finite, or 0/0) reads NaN without gradient.
template <typename scalar_t> struct Look {
  Projection<scalar_t> at;
  scalar_t depth, motion[3];
  bool usable;
};
template <typename scalar_t, typename image_t, int kMotion>
MCD_HD Look<scalar_t> look(
    const BackwardWarpParams<scalar_t, image_t, kMotion>& p, const Camera<scalar_t>& camera, int64_t b, int y, int x,
    scalar_t depth) {
  Look<scalar_t> look = {};
  look.usable = is_finite(depth);
  const scalar_t* motion = p.motion + b * kMotion * p.pixels() + int64_t(y) * p.width + x;
  for (int i = 0; i < kMotion; ++i) {
    look.motion[i] = motion[i * p.pixels()];
    look.usable = look.usable & is_finite(look.motion[i]);
  }
  for (int i = 0; i < kMotion; ++i) look.motion[i] = look.usable ? look.motion[i] : 0;
  look.depth = look.usable ? depth : 1;
  scalar_t shift[3] = {look.motion[0], look.motion[1], 0};
  if constexpr (kMotion == 3) apply(camera.K, look.motion, shift);
  look.at = project(camera, scalar_t(x), scalar_t(y), look.depth, shift);
  look.usable = look.usable & !is_nan(look.at.u_x) & !is_nan(look.at.u_y);
  return look;
}

template <typename scalar_t, typename image_t, int kMotion> struct BackwardWarpFwd {
  BackwardWarpParams<scalar_t, image_t, kMotion> params;
  image_t* warped;   // [B, C, H, W]
  scalar_t* coords;  // [B, 2, H, W] or null
  bool* valid;       // [B, H, W] or null

  MCD_HD void write_coords(int64_t b, int y, int x, const Look<scalar_t>& look) const {
    const scalar_t right = scalar_t(params.width - 1), bottom = scalar_t(params.height - 1);
    const scalar_t u_x = look.at.u_x, u_y = look.at.u_y;
    const int64_t pixel = int64_t(y) * params.width + x;
    scalar_t* out = coords + 2 * b * params.pixels() + pixel;
    out[0] = look.usable ? clamp_coord(u_x, right) : quiet_nan<scalar_t>();
    out[params.pixels()] = look.usable ? clamp_coord(u_y, bottom) : quiet_nan<scalar_t>();
    valid[b * params.pixels() + pixel] =
        look.usable & (look.at.q_z > scalar_t(kNearest)) & (u_x >= 0) & (u_x <= right) & (u_y >= 0) & (u_y <= bottom);
  }
};

// Sums over the pixels of one row, from which the gradients to the camera follow (the row's y is applied to the sums): of
// grad_q · depth · x, grad_q · depth, grad_q, and grad_q · motionᵀ of a 3-D motion.
enum { kSumDepthX = 0, kSumDepth = 3, kSum = 6, kSumMotion = 9, kSums = 18 };

template <typename scalar_t, typename image_t, int kMotion> struct BackwardWarpBwd {
  BackwardWarpParams<scalar_t, image_t, kMotion> params;
  const image_t* grad_warped;  // [B, C, H, W]
  scalar_t* grad_depth;        // [B, H, W], before the adjoint of upsampling
  scalar_t* grad_motion;       // [B, kMotion, H, W]
  scalar_t* sums;              // [B, H, kSums]

  // From (grad_x, grad_y) to a pixel's look-up coordinates, writes its gradients and adds to the sums of its row.
  MCD_HD void pixel(
      const Camera<scalar_t>& camera, int64_t b, int y, int x, const Look<scalar_t>& look, scalar_t grad_x,
      scalar_t grad_y, scalar_t* sums) const {
    const bool moves_x = look.usable & moves_freely(look.at.u_x, scalar_t(params.width - 1));
    const bool moves_y = look.usable & moves_freely(look.at.u_y, scalar_t(params.height - 1));
    scalar_t grad_q[3], grad_m[3];
    project_grad(look.at, moves_x ? grad_x : 0, moves_y ? grad_y : 0, grad_q);
    // A choice, not a product: u and its scale may be infinite where nothing moves.
    for (int i = 0; i < 3; ++i) grad_q[i] = moves_x | moves_y ? grad_q[i] : 0;

    const int64_t at = int64_t(y) * params.width + x;
    grad_depth[b * params.pixels() + at] =
        grad_q[0] * look.at.ray[0] + grad_q[1] * look.at.ray[1] + grad_q[2] * look.at.ray[2];
    if constexpr (kMotion == 2) grad_m[0] = grad_q[0], grad_m[1] = grad_q[1];
    if constexpr (kMotion == 3) apply_transposed(camera.K, grad_q, grad_m);
    for (int i = 0; i < kMotion; ++i) grad_motion[(b * kMotion + i) * params.pixels() + at] = grad_m[i];

    for (int i = 0; i < 3; ++i) {
      sums[kSumDepthX + i] += grad_q[i] * look.depth * x;
      sums[kSumDepth + i] += grad_q[i] * look.depth;
      sums[kSum + i] += grad_q[i];
    }
    if constexpr (kMotion == 3)
      for (int i = 0; i < 9; ++i) sums[kSumMotion + i] += grad_q[i / 3] * look.motion[i % 3];
  }
};

// Gradients to K and T_src_ref of sample b from the sums of its rows.
template <typename scalar_t> struct BackwardWarpCameraGrad {
  const scalar_t *K, *T_src_ref, *sums;
  scalar_t *grad_K, *grad_T;
  int height;

  // Adds row y's sums.
  MCD_HD void add(int64_t b, int y, double* grad_A, double* grad_b, double* grad_motion_K) const {
    const scalar_t* row = sums + (b * height + y) * kSums;
    for (int i = 0; i < 3; ++i) {
      grad_A[3 * i] += row[kSumDepthX + i];
      grad_A[3 * i + 1] += double(row[kSumDepth + i]) * y;
      grad_A[3 * i + 2] += row[kSumDepth + i];
      grad_b[i] += row[kSum + i];
    }
    for (int i = 0; i < 9; ++i) grad_motion_K[i] += row[kSumMotion + i];
  }
  MCD_HD void write(int64_t b, const double* grad_A, const double* grad_b, const double* grad_motion_K) const {
    camera_grad(load_pose(K + 9 * b, T_src_ref + 16 * b), grad_A, grad_b, grad_motion_K, grad_K + 9 * b, grad_T + 16 * b);
  }
};

#ifdef MCD_WITH_CUDA
template <typename scalar_t, typename image_t, int kMotion>
void backward_warp_fwd_cuda(const BackwardWarpFwd<scalar_t, image_t, kMotion>& fwd, const Where& where);
template <typename scalar_t, typename image_t, int kMotion>
void backward_warp_bwd_cuda(
    const BackwardWarpBwd<scalar_t, image_t, kMotion>& bwd, const BackwardWarpCameraGrad<scalar_t>& camera,
    scalar_t* grad_depth, const Where& where);
template <typename scalar_t, typename image_t, int kMotion>
void backward_warp_source_grad_cuda(
    const BackwardWarpBwd<scalar_t, image_t, kMotion>& bwd, image_t* grad_source, int64_t* fixed_point, const Where& where);
#endif

}  // namespace mcd
