// Photometric error: the mathematics that CPU loops and CUDA kernels share. The formula stands in
// mcd/ops/photometric_error.py.
#pragma once

#include "../common/lanes.h"

namespace mcd::MCD_TARGET {

// x is an image that should look like the reference y; d = x - y. Both terms are means over three channels.
template <typename T> struct PhotometricWeights {
  T ssim;    // of a + b - a·b of one channel: ssim_weight / 6
  T l1;      // of |d| of one channel: l1_weight / 3
  T c1;
  T c2;      // beside spreads of windows of nine: 9 · 3/2 times that of the formula
  bool luminance;  // c1 is finite
};
template <typename T>
MCD_HD PhotometricWeights<T> photometric_weights(double ssim_weight, double l1_weight, double c1, double c2) {
  return {T(ssim_weight / 6), T(l1_weight / 3), T(c1), T(13.5 * c2), is_finite(c1)};
}

// Means and variances of a window come from differences between neighbours alone: a mean of squares less the square of a
// mean would lose, where an image is bright and flat, all that c2 lets matter. A window is three lines of three pixels,
// rows or columns (Chan, Golub and LeVeque, 1983); a spread is 3/2 of the sum of squared differences from the mean, which
// takes the fewest operations.

// Of three numbers in a line: by how much the outer ones are larger than the one between.
template <typename V> struct Steps {
  V before, after;

  static MCD_HD Steps of(V before, V here, V after) { return {before - here, after - here}; }
  MCD_HD Steps operator+(const Steps& other) const { return {before + other.before, after + other.after}; }
  MCD_HD Steps operator-(const Steps& other) const { return {before - other.before, after - other.after}; }
  // How much larger the mean is than the number between.
  MCD_HD V to_mean() const { return (before + after) * (Scalar<V>(1) / 3); }
  MCD_HD V spread() const { return before * before + after * (after - before); }
  // By how much the spread of a sum exceeds the sum of spreads: the one's product with the other's dual.
  MCD_HD Steps dual() const { return {before - (after - before), after + (after - before)}; }
  MCD_HD V times(const Steps& dual) const { return before * dual.before + after * dual.after; }
};
// Mean and spread of a window of nine.
template <typename V> struct Moments {
  V mean, spread;
};

// One channel of a 3x3 window: its share of the error at its centre, and what its gradients at a pixel p inside need:
// alpha · d(p) - beta · x(p) - gamma to x, and -alpha · d(p) - beta · y(p) - gamma_y to y.
template <typename V> struct SsimWindow {
  V error, alpha, beta, gamma, gamma_y;
};
// `spreads` is that of x and of y and c2 in one.
template <bool kLuminance, typename V>
MCD_HD SsimWindow<V> ssim_window(
    V mean_x, V mean_y, const Moments<V>& d, V spreads, const PhotometricWeights<Scalar<V>>& weights) {
  using T = Scalar<V>;
  const V over = reciprocal<V>(spreads), b = d.spread * over;
  if constexpr (!kLuminance) {
    const V alpha = weights.ssim * 3 * over, beta = alpha * b;
    return {weights.ssim * b, alpha, beta, alpha * d.mean - beta * mean_x, -alpha * d.mean - beta * mean_y};
  } else {
    const V over_means = reciprocal<V>(mean_x * mean_x + mean_y * mean_y + weights.c1), a = d.mean * d.mean * over_means;
    const V alpha = weights.ssim * 3 * (1 - a) * over, beta = alpha * b;
    const V shared = weights.ssim * (T(2) / 9) * (1 - b) * over_means;
    return {weights.ssim * (a + b - a * b), alpha, beta,
            alpha * d.mean - beta * mean_x - shared * (d.mean - a * mean_x),
            -alpha * d.mean - beta * mean_y + shared * (d.mean + a * mean_y)};
  }
}

// Gradient to x at a pixel, of the windows around it (their weighted alpha, beta, gamma summed) and of the pixel's own
// |d|, weighted by l1. A pixel that is NaN has no part in any gradient. Products with weights of 0 have the sign of what
// was left in memory: what is 0 in the end is made +0.
template <typename V> MCD_HD V photometric_grad(V alpha, V beta, V gamma, V l1, V x, V d) {
  const V sign = select<V>(d > 0, l1, select<V>(d < 0, -l1, V{}));
  return select<V>(is_nan(d), V{}, (alpha * d - beta * x - gamma + sign) + V{});
}

}  // namespace mcd::MCD_TARGET
