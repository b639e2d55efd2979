// Photometric error: the mathematics that CPU loops and CUDA kernels share. The formula stands in
// mcd/ops/photometric_error.py.
#pragma once

#include "../common/lanes.h"

namespace mcd::MCD_TARGET {

// x is an image that should look like the reference y; d = x - y. Both terms are means over three channels.
template <typename T> struct PhotometricWeights {
  T ssim;  // of a + b - a·b of one channel: ssim_weight / 6
  T l1;    // of |d| of one channel: l1_weight / 3
  T c1, c2;
  bool luminance;  // c1 is finite
};
template <typename T>
MCD_HD PhotometricWeights<T> photometric_weights(double ssim_weight, double l1_weight, double c1, double c2) {
  return {T(ssim_weight / 6), T(l1_weight / 3), T(c1), T(c2), is_finite(c1)};
}

// One channel of a 3x3 window: its share of the error at its centre, and what its gradients at a pixel p inside need:
// alpha · d(p) - beta · x(p) - gamma to x, and -alpha · d(p) - beta · y(p) - gamma_y to y.
template <typename V> struct SsimWindow {
  V error, alpha, beta, gamma, gamma_y;
};
// From the window's sums of x, x², d², and the mean and variance of y.
template <bool kLuminance, typename V>
MCD_HD SsimWindow<V> ssim_window(
    V sum_x, V sum_xx, V sum_dd, V mean_y, V var_y, const PhotometricWeights<Scalar<V>>& weights) {
  using T = Scalar<V>;
  const T ninth = T(1) / 9, slope = weights.ssim * 2 * ninth;
  const V mean_x = sum_x * ninth, mean_d = mean_x - mean_y;
  const V var_x = max(sum_xx * ninth - mean_x * mean_x, V{});
  const V var_d = max(sum_dd * ninth - mean_d * mean_d, V{});
  const V over = 1 / (var_x + var_y + weights.c2), b = var_d * over;
  if constexpr (!kLuminance) {
    const V alpha = slope * over, beta = alpha * b;
    return {weights.ssim * b, alpha, beta, alpha * mean_d - beta * mean_x, -alpha * mean_d - beta * mean_y};
  } else {
    const V over_means = 1 / (mean_x * mean_x + mean_y * mean_y + weights.c1), a = mean_d * mean_d * over_means;
    const V alpha = slope * (1 - a) * over, beta = alpha * b;
    const V shared = slope * (1 - b) * over_means;
    return {weights.ssim * (a + b - a * b), alpha, beta,
            alpha * mean_d - beta * mean_x - shared * (mean_d - a * mean_x),
            -alpha * mean_d - beta * mean_y + shared * (mean_d + a * mean_y)};
  }
}
template <typename V> MCD_HD V variance(V mean, V sum_of_squares) {
  return max(sum_of_squares * (Scalar<V>(1) / 9) - mean * mean, V{});
}

// Gradient to x at a pixel, of the windows around it (their weighted alpha, beta, gamma summed) and of the pixel's own
// |d|, weighted by l1. A pixel that is NaN has no part in any gradient.
template <typename V> MCD_HD V photometric_grad(V alpha, V beta, V gamma, V l1, V x, V d) {
  const V sign = select<V>(d > 0, l1, select<V>(d < 0, -l1, V{}));
  return select<V>(is_nan(d), V{}, alpha * d - beta * x - gamma + sign);
}

}  // namespace mcd::MCD_TARGET
