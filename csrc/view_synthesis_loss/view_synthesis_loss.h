// View-synthesis loss: what its CPU loops and CUDA kernels share. The formula stands in mcd/ops/view_synthesis_loss.py.
#pragma once

#include <vector>

#include "../common/bilinear.h"
#include "../common/camera.h"
#include "../common/dispatch.h"
#include "../photometric_error/photometric_error.h"

namespace mcd::MCD_TARGET {

constexpr int kMaxScales = 16;

// Sums of one source at one scale over pixels, from which the camera's gradients follow: of grad_q · depth · (x, y, 1)
// and of grad_q.
enum { kSumX = 0, kSumY = 3, kSumOne = 6, kSumB = 9, kCameraSums = 12 };

template <typename T> struct DepthScale {
  const T* depth;  // [B, h, w]
  T* grad;         // [B, h, w], to be multiplied by the scale's coefficient
  int height, width;
  T ratio_y, ratio_x;  // of its size to the images'
};

template <typename T> struct ViewSynthesisParams {
  const T* K;          // [B, 3, 3]
  const T* T_src_ref;  // [B, S, 4, 4]
  const T* motion;     // [B, S, 2, H, W] or null
  T* motion_grads;     // [scales, B, S, 2, H, W], to be multiplied by the scales' coefficients, or null
  bool* auto_mask;     // [B, H, W] of the first scale
  DepthScale<T> scales[kMaxScales];
  PhotometricWeights<T> weights;
  int64_t batch;
  int sources, height, width, scale_count;
  bool mask_invalid, need_grad;

  MCD_HD int64_t pixels() const { return int64_t(height) * width; }
  MCD_HD bool full(int s) const { return scales[s].height == height && scales[s].width == width; }
  MCD_HD Camera<T> camera(int64_t b, int i) const {
    return make_camera(K + 9 * b, T_src_ref + 16 * (b * sources + i));
  }
};

template <typename T>
ViewSynthesisParams<T> view_synthesis_params(
    const Tensor& reference, const Tensor& sources, const std::vector<Tensor>& depths, const Tensor& K,
    const Tensor& T_src_ref, const Tensor& motion, bool mask_invalid, double ssim_weight, double l1_weight, double c1,
    double c2, bool need_grad, bool need_motion, const Tensor& auto_mask, const std::vector<Tensor>& grad_depths,
    const Tensor& motion_parts) {
  ViewSynthesisParams<T> p{};
  p.K = K.as<T>(), p.T_src_ref = T_src_ref.as<T>(), p.motion = motion.as<T>();
  p.motion_grads = need_motion ? motion_parts.as<T>() : nullptr;
  p.auto_mask = auto_mask.as<bool>();
  p.weights = photometric_weights<T>(ssim_weight, l1_weight, c1, c2);
  p.batch = reference.size[0], p.height = int(reference.size[2]), p.width = int(reference.size[3]);
  p.sources = int(sources.size[1]), p.scale_count = int(depths.size());
  p.mask_invalid = mask_invalid, p.need_grad = need_grad;
  if (p.scale_count > kMaxScales) throw std::invalid_argument("view_synthesis_loss: more than 16 scales");
  for (int s = 0; s < p.scale_count; ++s)
    p.scales[s] = {depths[s].as<T>(), need_grad ? grad_depths[s].as<T>() : nullptr, int(depths[s].size[2]),
                   int(depths[s].size[3]), T(depths[s].size[2]) / p.height, T(depths[s].size[3]) / p.width};
  return p;
}

// Where pixels look; u is NaN where depth or motion is not finite, or the look-up is 0/0.
template <typename V>
MCD_HD Projection<V> look(const Camera<Scalar<V>>& camera, V x, Scalar<V> y, V depth, V motion_x, V motion_y) {
  const Mask<V> usable = is_finite(depth) & is_finite(motion_x) & is_finite(motion_y);
  const V shift[3] = {select<V>(usable, motion_x, V{}), select<V>(usable, motion_y, V{}), V{}};
  Projection<V> at = project<V>(camera, x, y, select<V>(usable, depth, splat<V>(1)), shift);
  const Mask<V> seen = usable & (at.u_x == at.u_x) & (at.u_y == at.u_y);
  at.u_x = select<V>(seen, at.u_x, nan<V>());
  at.u_y = select<V>(seen, at.u_y, nan<V>());
  return at;
}
template <typename V> MCD_HD Mask<V> is_valid(const Projection<V>& at, int height, int width) {
  using T = Scalar<V>;
  return (at.q_z > T(kNearest)) & (at.u_x >= 0) & (at.u_x <= T(width - 1)) & (at.u_y >= 0) & (at.u_y <= T(height - 1));
}

// Gradient to q from that to the position in the source; zero where the look-up is clamped or NaN.
template <typename V>
MCD_HD void look_grad(const Projection<V>& at, int height, int width, V grad_x, V grad_y, V* grad_q) {
  using T = Scalar<V>;
  const Mask<V> moves_x = moves_freely(at.u_x, T(width - 1)), moves_y = moves_freely(at.u_y, T(height - 1));
  project_grad<V>(at, select<V>(moves_x, grad_x, V{}), select<V>(moves_y, grad_y, V{}), grad_q);
  // A choice, not a product: u and its scale may be infinite where nothing moves.
  for (int k = 0; k < 3; ++k) grad_q[k] = select<V>(moves_x | moves_y, grad_q[k], V{});
}

// Adds a pixel's part to its camera's sums.
template <typename V> MCD_HD void add_camera_sums(const V* grad_q, V depth, V x, V y, V* sums) {
  for (int k = 0; k < 3; ++k) {
    const V by_depth = grad_q[k] * depth;
    sums[kSumX + k] += by_depth * x;
    sums[kSumY + k] += by_depth * y;
    sums[kSumOne + k] += by_depth;
    sums[kSumB + k] += grad_q[k];
  }
}

}  // namespace mcd::MCD_TARGET
