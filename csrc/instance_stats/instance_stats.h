// Statistics of instances: what the CPU loops and CUDA kernels share. The formulas stand in mcd/ops/instance_stats.py.
#pragma once

#include <vector>

#include "../common/dispatch.h"
#include "../common/instances.h"
#include "../common/select.h"

namespace mcd::MCD_TARGET {

template <typename scalar_t> struct InstanceStatsParams {
  using scalar = scalar_t;

  const scalar_t* values;  // [P], or [B, H, W]
  InstanceView instances;
  int64_t image_size;       // H · W; 0 if there is a value for each of the instances' pixels
  const double* quantiles;  // [Q]
  int quantile_count;
  bool linear;
  int32_t* count;      // [N]
  scalar_t* mean;      // [N]
  scalar_t* least;     // [N]
  scalar_t* largest;   // [N]
  scalar_t* quantile;  // [N, Q]

  MCD_HD OwnValues<scalar_t> own_values(int64_t n) const { return {values + instances.offset[n]}; }
  MCD_HD ImageValues<scalar_t> image_values(int64_t n) const {
    return {values + instances.frame[n] * image_size, instances.pixel + instances.offset[n]};
  }

  MCD_HD void write(int64_t n, double sum, scalar_t least_value, scalar_t largest_value, bool poisoned) const {
    const int64_t size = instances.size(n);
    const bool undefined = size == 0 || poisoned;
    count[n] = int32_t(size);
    mean[n] = undefined ? nan<scalar_t>() : scalar_t(sum / double(size));
    least[n] = undefined ? nan<scalar_t>() : least_value;
    largest[n] = undefined ? nan<scalar_t>() : largest_value;
    if (undefined)
      for (int q = 0; q < quantile_count; ++q) quantile[n * quantile_count + q] = nan<scalar_t>();
  }
};

template <typename F>
void dispatch_instance_stats(
    const Tensor& values, const InstanceView& instances, const std::vector<double>& quantiles, bool linear,
    const Tensor& count, const Tensor& mean, const Tensor& least, const Tensor& largest, const Tensor& quantile, F f) {
  dispatch(values.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    f(InstanceStatsParams<scalar_t>{
        values.as<scalar_t>(), instances, values.dims == 4 ? values.size[2] * values.size[3] : 0, quantiles.data(),
        int(quantiles.size()), linear, count.as<int32_t>(), mean.as<scalar_t>(), least.as<scalar_t>(),
        largest.as<scalar_t>(), quantile.as<scalar_t>()});
  });
}

}  // namespace mcd::MCD_TARGET
