// Scale-invariant loss: what the CPU loops and CUDA kernels share. The formulas stand in mcd/ops/scale_invariant_loss.py.
#pragma once

#include "../common/dispatch.h"
#include "../common/instances.h"
#include "../common/select.h"

namespace mcd::MCD_TARGET {

template <typename scalar_t> struct ScaleInvariantParams {
  using scalar = scalar_t;

  const scalar_t* prediction;  // [B, P]
  const scalar_t* target;      // [B, P]
  const bool* mask;            // [B, P]
  int64_t batch, pixels;       // P = H · W

  template <typename V> MCD_HD Mask<V> counted(V target_value, int count) const {
    return first_lanes<V>(count) & (target_value > 0) & is_finite(target_value);
  }
};

// Of sample b: the predictions that count, their ratios to the target, and those of them in the gate.
template <typename scalar_t> struct CountedPredictions {
  ScaleInvariantParams<scalar_t> params;
  int64_t b;

  template <typename V> MCD_HD V at(int64_t i, int count, Mask<V>* taken) const {
    *taken = params.template counted<V>(load<V>(params.target + b * params.pixels + i, count), count);
    return load<V>(params.prediction + b * params.pixels + i, count);
  }
};
template <typename scalar_t> struct CountedRatios {
  ScaleInvariantParams<scalar_t> params;
  int64_t b;

  template <typename V> MCD_HD V at(int64_t i, int count, Mask<V>* taken) const {
    const V target = load<V>(params.target + b * params.pixels + i, count);
    *taken = params.template counted<V>(target, count);
    return load<V>(params.prediction + b * params.pixels + i, count) / target;
  }
};
// Written so that a NaN factor passes, and the loss tells of it.
template <typename scalar_t> struct Gate {
  scalar_t factor, least, large;

  template <typename V> MCD_HD Mask<V> at(V target, Mask<V> counted) const {
    const V rescaled = target * factor;
    return counted & !(rescaled < least) & !(rescaled > large);
  }
};
template <typename scalar_t> struct GatedRatios {
  CountedRatios<scalar_t> ratios;
  Gate<scalar_t> gate;

  template <typename V> MCD_HD V at(int64_t i, int count, Mask<V>* taken) const {
    const V ratio = ratios.template at<V>(i, count, taken);
    *taken = gate.template at<V>(load<V>(ratios.params.target + ratios.b * ratios.params.pixels + i, count), *taken);
    return ratio;
  }
};

template <typename scalar_t> struct ScaleInvariantFwd {
  ScaleInvariantParams<scalar_t> params;
  scalar_t* loss;     // scalar
  bool* gate;         // [B, P]
  scalar_t* factor;   // [B], r₂
  scalar_t* weight;   // scalar, 1 / the loss's divisor

  // Writes the gate of `count` pixels of sample b from its i-th on; their errors, 0 where they are not compared.
  template <typename V>
  MCD_HD V pixels(int64_t b, int64_t i, int count, V target, V ratio, Mask<V> passed, scalar_t scale, Mask<V>* chosen) const {
    const int64_t at = b * params.pixels + i;
    store_mask<V>(gate + at, passed, count);
    *chosen = passed & load_mask<V>(params.mask + at, count);
    return select<V>(*chosen, abs(ratio - scale) * target, V{});
  }

  // From the sum of errors over gate and mask, and of how many pixels it is.
  MCD_HD void finish(double total, int64_t count) const {
    const scalar_t divisor = scalar_t(count) + scalar_t(1e-10);
    *loss = scalar_t(total) / divisor;
    *weight = count ? 1 / divisor : scalar_t(0);
  }
};

template <typename scalar_t> struct ScaleInvariantBwd {
  ScaleInvariantParams<scalar_t> params;
  const scalar_t* grad_loss;  // scalar
  const bool* gate;           // [B, P]
  const scalar_t* factor;     // [B]
  const scalar_t* weight;     // scalar
  scalar_t* grad_prediction;  // [B, P]

  template <typename V>
  MCD_HD V grad(V prediction, V target, Mask<V> chosen, scalar_t factor_of_sample, scalar_t size) const {
    // The error's sign. At the pixel whose ratio is the median it is 0; of p - r₂ q it would be noise.
    const V error = prediction / target - factor_of_sample, sized = splat<V>(size);
    // A NaN error has a NaN gradient, as a zero one has none.
    const V grad = select<V>(error > 0, sized, select<V>(error < 0, -sized, error * sized));
    return select<V>(chosen, grad, V{});
  }
};

template <typename F>
void dispatch_scale_invariant(const Tensor& prediction, const Tensor& target, const Tensor& mask, F f) {
  dispatch(prediction.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    f(ScaleInvariantParams<scalar_t>{
        prediction.as<scalar_t>(), target.as<scalar_t>(), mask.as<bool>(), prediction.size[0],
        prediction.size[2] * prediction.size[3]});
  });
}

}  // namespace mcd::MCD_TARGET
