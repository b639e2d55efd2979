// Scale alignment: what the CPU loops and CUDA kernels share. The formulas stand in mcd/ops/align_scale.py.
#pragma once

#include "../common/dispatch.h"
#include "../common/instances.h"
#include "../common/select.h"

namespace mcd::MCD_TARGET {

template <typename scalar_t> struct AlignScaleParams {
  using scalar = scalar_t;

  const scalar_t* object_depth;  // [P]
  const scalar_t* target_depth;  // [B, H, W]
  InstanceView instances;
  int64_t image_size;  // H · W
  scalar_t delta;

  MCD_HD ImageValues<scalar_t> targets(int64_t n) const {
    return {target_depth + instances.frame[n] * image_size, instances.pixel + instances.offset[n]};
  }
  MCD_HD const scalar_t* depths(int64_t n) const { return object_depth + instances.offset[n]; }

  template <typename V> MCD_HD V huber(V error) const {
    const V size = abs(error);
    return select<V>(size <= delta, V(error * error / 2), V(delta * (size - delta / 2)));
  }
  template <typename V> MCD_HD V huber_grad(V error) const {
    const V limit = splat<V>(delta);
    return select<V>(error > limit, limit, select<V>(error < -limit, -limit, error));
  }
};

// Whether depths can be divided by this mean.
template <typename scalar_t> MCD_HD bool usable_mean(scalar_t mean) { return mean > 0 && is_finite(mean); }

// target / normalised depth, where there is a target.
template <typename scalar_t> struct ScaleRatios {
  const scalar_t* depth;
  ImageValues<scalar_t> target;
  scalar_t mean;

  template <typename V> MCD_HD V at(int64_t i, int count, Mask<V>* taken) const {
    const V there = target.template at<V>(i, count);
    *taken = first_lanes<V>(count) & (there > 0);
    return there / (load<V>(depth + i, count) / mean);
  }
};

template <typename scalar_t> struct AlignScaleFwd {
  AlignScaleParams<scalar_t> params;
  const scalar_t* given;  // [N] or null: the closed form
  scalar_t* aligned;      // [P]
  scalar_t* loss;         // [N]
  scalar_t* mean;         // [N], NaN where there is nothing to align
  scalar_t* scale;        // [N]

  // Writes `count` aligned depths of instance n from its i-th on, and returns their errors.
  template <typename V> MCD_HD V pixels(int64_t n, int64_t i, int count, scalar_t mean_value, scalar_t factor) const {
    const V value = load<V>(params.depths(n) + i, count) / mean_value * factor;
    store(aligned + params.instances.offset[n] + i, value, count);
    return select<V>(
        first_lanes<V>(count), params.template huber<V>(value - params.targets(n).template at<V>(i, count)), V{});
  }
};

// With g the gradient to aligned, and G = Σ g · normalised, which is that to the scale:
//   grad_object_depth = scale / mean · (g - G / count)
template <typename scalar_t> struct AlignScaleBwd {
  AlignScaleParams<scalar_t> params;
  const scalar_t* grad_aligned;  // [P] or null
  const scalar_t* grad_loss;     // [N] or null
  const scalar_t* mean;          // [N]
  const scalar_t* scale;         // [N]
  scalar_t* grad_object_depth;   // [P]
  scalar_t* grad_scale;          // [N]

  template <typename V> struct Grad {
    V to_aligned, normalised;
  };
  template <typename V> MCD_HD Grad<V> grad(int64_t n, int64_t i, int count) const {
    const V normalised = load<V>(params.depths(n) + i, count) / mean[n];
    V total = grad_aligned ? load<V>(grad_aligned + params.instances.offset[n] + i, count) : V{};
    if (grad_loss) {
      const V error = normalised * scale[n] - params.targets(n).template at<V>(i, count);
      total += params.template huber_grad<V>(error) * (grad_loss[n] / scalar_t(params.instances.size(n)));
    }
    return {total, normalised};
  }
};

template <typename F>
void dispatch_align_scale(
    const Tensor& object_depth, const Tensor& target_depth, const InstanceView& instances, double delta, F f) {
  dispatch(object_depth.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    f(AlignScaleParams<scalar_t>{
        object_depth.as<scalar_t>(), target_depth.as<scalar_t>(), instances,
        target_depth.size[2] * target_depth.size[3], scalar_t(delta)});
  });
}

}  // namespace mcd::MCD_TARGET
