// Smoothness of disparity: what its CPU loops and CUDA kernels share. The formula stands in mcd/ops/smoothness_loss.py.
#pragma once

#include <vector>

#include "../common/dispatch.h"
#include "../common/lanes.h"

namespace mcd::MCD_TARGET {

constexpr int kMaxSmoothScales = 16;
// Pixels of a task, about. On CUDA a multiprocessor is to have several.
#ifdef __CUDACC__
constexpr int kBlockPixels = 2048;
#else
constexpr int kBlockPixels = 8192;
#endif

// exp(x) for x <= 0, to about the last bit.
template <typename V> MCD_HD V exp_negative(V x) {
  using T = Scalar<V>;
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<V, float>) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
    return result;
  }
#endif
  constexpr bool single = sizeof(T) == 4;
  constexpr double over_factorial[] = {1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,
                                       1.0 / 120,  1.0 / 720,   1.0 / 5040,   1.0 / 40320,   1.0 / 362880,
                                       1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  constexpr int degree = single ? 7 : 13;
  using Bits = typename Lanes<V>::template of<std::conditional_t<single, int32_t, int64_t>>;
  const V bounded = max<V>(x, splat<V>(single ? -87 : -700));  // passes NaN on
  const V steps = convert<V>(convert<Int<V>>(bounded * T(1.4426950408889634) - T(0.5)));
  // ln 2 in two parts: the first has few enough bits for an exact product.
  const V rest = (bounded - steps * T(0.693145751953125)) - steps * T(1.4286068203094173e-6);
  V result = splat<V>(T(over_factorial[degree]));
  for (int k = degree - 1; k >= 0; --k) result = result * rest + T(over_factorial[k]);
  const Bits exponent = convert<Bits>(convert<Int<V>>(steps)) + (single ? 127 : 1023);
  return result * bit_cast<V>(exponent << (single ? 23 : 52));
}

// What weighs the difference of two neighbours: the image between them, or whether both lie in the mask.
template <typename T, typename image_t> struct EdgeGuide {
  using scalar_t = T;
  using value_t = image_t;
  static constexpr bool kCountsAll = true;  // every pair counts as one
  const image_t* image;  // [B, C, h, w]
  int channels;
  int64_t plane;

  // Between the pixels from `at` (within sample b) on and those `step` further.
  template <typename V> MCD_HD V weight(int64_t b, int64_t at, int64_t step, int count) const {
    V difference{};
    const image_t* here = image + b * channels * plane + at;
    const auto add = [&] { difference += abs<V>(load<V>(here, count) - load<V>(here + step, count)), here += plane; };
    for (int c = 0; c < channels; ++c) add();
    return exp_negative<V>(-difference * (T(1) / channels));
  }
  template <typename V> MCD_HD V inside(int64_t, int64_t, int) const { return splat<V>(1); }
  // How many pairs a weight stands for.
  template <typename V> static MCD_HD V counted(V) { return splat<V>(1); }
};
template <typename T> struct MaskGuide {
  using scalar_t = T;
  using value_t = bool;
  static constexpr bool kCountsAll = false;
  const bool* mask;  // [B, 1, h, w]
  int channels;
  int64_t plane;

  template <typename V> MCD_HD V inside(int64_t b, int64_t at, int count) const {
    const bool* from = mask + b * plane + at;
    if constexpr (kLanes<V> == 1) {
      return *from ? V(1) : V(0);
    } else {
      using Bytes = typename Lanes<V>::template of<uint8_t>;
      return convert<V>(convert<Int<V>>(read_lanes<Bytes>(from, count)));
    }
  }
  template <typename V> MCD_HD V weight(int64_t b, int64_t at, int64_t step, int count) const {
    return inside<V>(b, at, count) * inside<V>(b, at + step, count);
  }
  template <typename V> static MCD_HD V counted(V weight) { return weight; }
};

// Sums of one task or sample: of disparity and its pixels; of weighted differences along x and their number; along y.
enum { kSumD = 0, kArea = 1, kCostX = 2, kPairsX = 3, kCostY = 4, kPairsY = 5, kSmoothSums = 6 };

template <typename T> struct SmoothScale {
  const T* disparity;  // [B, 1, h, w]
  const void* guide;   // image or mask
  T* grad;             // [B, 1, h, w]
  int height, width, channels;
  int block_rows;  // rows of a task
  int blocks;      // tasks of a sample
  int64_t first_task;
};

template <typename T> struct SmoothTask {
  int scale, first_row, last_row;  // rows [first, last)
  int64_t b;
};
template <typename T> struct SmoothnessParams {
  SmoothScale<T> scales[kMaxSmoothScales];
  int64_t batch, tasks;
  int count;

  MCD_HD SmoothTask<T> task(int64_t number) const {
    int s = 0;
    while (s + 1 < count && number >= scales[s + 1].first_task) ++s;
    const SmoothScale<T>& scale = scales[s];
    const int64_t local = number - scale.first_task, b = local / scale.blocks;
    const int first = int(local % scale.blocks) * scale.block_rows;
    return {s, first, min(first + scale.block_rows, scale.height), b};
  }
  template <typename Guide> MCD_HD Guide guide(int s) const {
    const SmoothScale<T>& scale = scales[s];
    return {static_cast<const typename Guide::value_t*>(scale.guide), scale.channels,
            int64_t(scale.height) * scale.width};
  }
};
template <typename T>
SmoothnessParams<T> smoothness_params(const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides) {
  SmoothnessParams<T> p{};
  p.count = int(disparities.size());
  if (p.count > kMaxSmoothScales) throw std::invalid_argument("smoothness_loss: too many scales");
  p.batch = disparities[0].size[0];
  for (int s = 0; s < p.count; ++s) {
    SmoothScale<T>& scale = p.scales[s];
    scale.disparity = disparities[s].as<T>(), scale.guide = guides[s].data;
    scale.height = int(disparities[s].size[2]), scale.width = int(disparities[s].size[3]);
    scale.channels = int(guides[s].size[1]);
    scale.block_rows = max(1, kBlockPixels / max(scale.width, 1));
    scale.blocks = max(1, (scale.height + scale.block_rows - 1) / scale.block_rows);
    scale.first_task = p.tasks;
    p.tasks += p.batch * scale.blocks;
  }
  return p;
}

// |a - b| where the pair has weight; a NaN without weight costs nothing.
template <typename V> MCD_HD V pair_cost(V a, V b, V weight) {
  return select<V>(weight != 0, abs<V>(a - b) * weight, V{});
}
template <typename V> MCD_HD V pair_slope(V a, V b, V weight) {
  return select<V>(a > b, weight, select<V>(a < b, -weight, V{}));
}

// Adds `count` pixels from (x, y) on, and the pairs they form with their lower and, for the first `pairs`, right neighbours.
template <typename V, typename Guide>
MCD_HD void add_smoothness_sums(
    const SmoothScale<Scalar<V>>& scale, const Guide& guide, int64_t b, int y, int x, int count, int pairs, V* sums) {
  using T = Scalar<V>;
  const int64_t at = int64_t(y) * scale.width + x;
  const T* from = scale.disparity + b * scale.height * scale.width + at;
  const V lanes = iota<V>(), here = load<V>(from, count);
  const V inside = select<V>(lanes < T(count), guide.template inside<V>(b, at, count), V{});
  sums[kSumD] += select<V>(inside != 0, here, V{});
  sums[kArea] += inside;
  if (pairs > 0) {
    const V weight = select<V>(lanes < T(pairs), guide.template weight<V>(b, at, 1, pairs), V{});
    sums[kCostX] += pair_cost<V>(load<V>(from, pairs), load<V>(from + 1, pairs), weight);
    sums[kPairsX] += select<V>(lanes < T(pairs), Guide::template counted<V>(weight), V{});
  }
  if (y + 1 < scale.height) {
    const V weight = select<V>(lanes < T(count), guide.template weight<V>(b, at, scale.width, count), V{});
    sums[kCostY] += pair_cost<V>(here, load<V>(from + scale.width, count), weight);
    sums[kPairsY] += select<V>(lanes < T(count), Guide::template counted<V>(weight), V{});
  }
}

// From the sums of one sample at scale s: its part of the loss, and the factors of its gradient: by the slope along x, along
// y, and for every pixel inside.
template <typename T>
MCD_HD double finish_smoothness_sample(
    const SmoothnessParams<T>& p, const double* sample, int s, int64_t b, double pairs_x, double pairs_y, T* factors) {
  const double weight = 1.0 / p.count / double(int64_t(1) << s);
  const double over_x = weight / max(pairs_x, 1.0), over_y = weight / max(pairs_y, 1.0);
  const double over_mean = sample[kArea] > 0 ? sample[kArea] / sample[kSumD] : 1;
  const double cost = (sample[kCostX] * over_x + sample[kCostY] * over_y) * over_mean;
  T* factor = factors + (s * p.batch + b) * 3;
  factor[0] = T(over_x * over_mean), factor[1] = T(over_y * over_mean);
  factor[2] = T(sample[kArea] > 0 ? cost * over_mean / sample[kArea] : 0);
  return cost;
}

// Calls f(params, guide) with the types that the tensors have.
template <typename F>
void dispatch_smoothness(const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides, F f) {
  if (guides[0].dtype == Dtype::boolean)
    return dispatch(disparities[0].dtype, [&](auto scalar) {
      using T = decltype(scalar);
      f(smoothness_params<T>(disparities, guides), MaskGuide<T>{});
    });
  dispatch(disparities[0].dtype, guides[0].dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    f(smoothness_params<T>(disparities, guides), EdgeGuide<T, decltype(image)>{});
  });
}

}  // namespace mcd::MCD_TARGET
