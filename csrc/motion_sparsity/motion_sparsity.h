// Motion sparsity: what its CPU loops and CUDA kernels share. The formula stands in mcd/ops/motion_sparsity.py.
#pragma once

#include "../common/dispatch.h"
#include "../common/lanes.h"

namespace mcd::MCD_TARGET {

template <typename V> MCD_HD V root(V value) {
  if constexpr (kLanes<V> == 1)
    value = sizeof(V) == 4 ? V(__builtin_sqrtf(float(value))) : V(__builtin_sqrt(double(value)));
  else
    for (int i = 0; i < kLanes<V>; ++i) value[i] = root<Scalar<V>>(value[i]);
  return value;
}
// √(|m| / (μ + 1e-24) + 1)
template <typename V> MCD_HD V sparsity_root(V motion, Scalar<V> mean) {
  return root<V>(abs<V>(motion) / (mean + Scalar<V>(1e-24)) + 1);
}
// Derivative by motion of 2 μ √(…), the mean μ being a constant.
template <typename V> MCD_HD V sparsity_slope(V motion, Scalar<V> mean) {
  const V size = (mean / (mean + Scalar<V>(1e-24))) / sparsity_root<V>(motion, mean);
  return select<V>(motion > 0, size, select<V>(motion < 0, -size, V{}));
}

}  // namespace mcd::MCD_TARGET
