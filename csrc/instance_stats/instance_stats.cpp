#include "instance_stats.h"

#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int64_t kTile = 8192;  // pixels of the image that one task gives their gradient

template <typename scalar_t> struct StatsOfInstance {
  using V = Pack<scalar_t>;
  InstanceStatsParams<scalar_t> params;

  template <typename Values> struct Read {
    Values values;
    MCD_HD V operator()(int64_t i, int count, Mask<V>* taken) const {
      *taken = first_lanes<V>(count);
      return values.template at<V>(i, count);
    }
  };

  MCD_HD void operator()(int64_t n) const {
    if (params.image_size)
      stats(n, Read<ImageValues<scalar_t>>{params.image_values(n)});
    else
      stats(n, Read<OwnValues<scalar_t>>{params.own_values(n)});
  }

  template <typename Reader> MCD_HD void stats(int64_t n, const Reader& read) const {
    const auto& p = params;
    const int64_t size = p.instances.size(n);
    Summary<V> lanes;
    for (int64_t i = 0; i < size; i += kLanes<V>) {
      Mask<V> taken;
      const V value = read(i, int(min<int64_t>(kLanes<V>, size - i)), &taken);
      lanes.add(value, taken);
    }
    const SummaryOfLanes<V> summary(lanes);
    p.write(n, summary.sum, summary.least, summary.largest, summary.poisoned);
    if (size == 0 || summary.poisoned || p.quantile_count == 0) return;
    Selection<V, Reader> selection(read, size, size, summary.least, summary.largest);
    for (int q = 0; q < p.quantile_count; ++q) {
      const QuantilePosition position(p.quantiles[q], size, p.linear);
      p.quantile[n * p.quantile_count + q] =
          position.between(selection.find(position.rank, position.fraction != 0));
    }
  }
};

template <typename scalar_t> struct MeanGradOfInstance {
  InstanceView instances;
  const scalar_t* grad_mean;  // [N]
  scalar_t* grad_values;      // [P]

  MCD_HD void operator()(int64_t n) const {
    const scalar_t grad = grad_mean[n] / scalar_t(instances.size(n));
    for (int64_t i = instances.offset[n]; i < instances.offset[n + 1]; ++i) grad_values[i] = grad;
  }
};

// Masks that overlap add up, in their order.
template <typename scalar_t> struct MeanGradOfTile {
  InstanceView instances;
  const scalar_t* grad_mean;  // [N]
  scalar_t* grad_values;      // [B, H, W]
  int64_t image_size;

  MCD_HD void operator()(int64_t i) const {
    const int64_t tiles = (image_size + kTile - 1) / kTile, b = i / tiles, begin = i % tiles * kTile;
    const int64_t end = min(begin + kTile, image_size);
    scalar_t* image = grad_values + b * image_size;
    for (int64_t x = begin; x < end; ++x) image[x] = 0;
    for (int64_t n = 0; n < instances.count; ++n) {
      if (instances.frame[n] != b) continue;
      const scalar_t grad = grad_mean[n] / scalar_t(instances.size(n));
      const int64_t last = instances.lower_bound(n, end);
      for (int64_t at = instances.lower_bound(n, begin); at < last; ++at) image[instances.pixel[at]] += grad;
    }
  }
};

}  // namespace

void instance_stats_fwd(
    const Tensor& values, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const std::vector<double>& quantiles, bool linear, const Tensor& count, const Tensor& mean, const Tensor& least,
    const Tensor& largest, const Tensor& quantile, const Where& where) {
  const InstanceView instances = view_instances(pixel, offset, frame);
  dispatch_instance_stats(
      values, instances, quantiles, linear, count, mean, least, largest, quantile, [&](auto params) {
        for_each_instance_cpu(
            instances, where.threads, StatsOfInstance<typename decltype(params)::scalar>{params});
      });
}

void instance_stats_bwd(
    const Tensor& grad_mean, const Tensor&, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const Tensor& grad_values, const Where& where) {
  const InstanceView instances = view_instances(pixel, offset, frame);
  dispatch(grad_mean.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    if (grad_values.dims == 1)
      return for_each_instance_cpu(
          instances, where.threads,
          MeanGradOfInstance<scalar_t>{instances, grad_mean.as<scalar_t>(), grad_values.as<scalar_t>()});
    const int64_t image_size = grad_values.size[2] * grad_values.size[3];
    for_each_cpu(
        grad_values.size[0] * ((image_size + kTile - 1) / kTile), where.threads,
        MeanGradOfTile<scalar_t>{instances, grad_mean.as<scalar_t>(), grad_values.as<scalar_t>(), image_size});
  });
}

}  // namespace mcd::MCD_TARGET
